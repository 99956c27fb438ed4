"""The generation thread over a vLLM that is played: batches, refusals, failures, cancelling, fencing."""

from __future__ import annotations

import json
import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from uellm_deployer.backends.common.request import BadRow, RequestError, Row, SamplingParameters
from uellm_deployer.backends.common.rows import Limits, RowDelta
from uellm_deployer.backends.vllm.engine import Engine
from uellm_deployer.backends.vllm.steps import ScheduledRow

LIMITS = Limits(frozenset({2}), 64)
TIMEOUT_SECONDS = 30.0


def decode(tokens: Sequence[int]) -> str:
    return "".join(chr(97 + token % 26) for token in tokens)


@dataclass(frozen=True)
class News:
    key: str
    tokens: tuple[int, ...]
    ended: str


@dataclass(frozen=True)
class Stepped:
    news: tuple[News, ...]
    rows: tuple[ScheduledRow, ...]


class CountingCore:
    """Stands where vLLM stands: a row's next token is a function of its tokens so far. At most `room` rows a step."""

    def __init__(self, room: int = 4) -> None:
        self.facts = {"kv_bytes_per_token": 1}
        self.room = room
        self.rows: dict[str, tuple[list[int], int]] = {}
        self.read: set[str] = set()
        self.steps = 0
        self.fails_at = -1
        self.closed = False

    def add(self, key: str, tokens: Sequence[int], sampling: dict[str, Any]) -> None:
        if tokens[0] == 13:
            raise ValueError("unlucky")
        self.rows[key] = (list(tokens), len(tokens) + sampling["max_tokens"])

    def abort(self, keys: Collection[str]) -> None:
        for key in keys:
            del self.rows[key]

    def step(self) -> Stepped:
        self.steps += 1
        if self.steps == self.fails_at:
            raise RuntimeError("out of luck")
        news, rows = [], []
        for key in list(self.rows)[: self.room]:
            tokens, limit = self.rows[key]
            rows.append(ScheduledRow(key, 1 if key in self.read else len(tokens), len(tokens), key not in self.read))
            self.read.add(key)
            tokens.append(next_token(tokens))
            ended = "length" if len(tokens) == limit else ""
            news.append(News(key, (tokens[-1],), ended))
            if ended:
                del self.rows[key]
        return Stepped(tuple(news), tuple(rows))

    def close(self) -> None:
        self.closed = True


def next_token(tokens: Sequence[int]) -> int:
    return 3 + (sum(tokens) * 7 + len(tokens)) % 200


def answer(prompt: Sequence[int], count: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_token(tokens))
    return tokens[len(prompt) :]


class Sink:
    def __init__(self) -> None:
        self.deltas: list[RowDelta] = []
        self.aggregates: dict[str, Any] | None = None
        self.closed = threading.Event()
        self.cancelled = False
        self.first = threading.Event()

    def send(self, deltas: Sequence[RowDelta], step_aggregates: str | None) -> None:
        assert deltas
        self.deltas += deltas
        self.first.set()
        if step_aggregates is not None:
            assert self.aggregates is None
            self.aggregates = json.loads(step_aggregates)

    def close(self) -> None:
        assert not self.closed.is_set()
        self.closed.set()

    def is_cancelled(self) -> bool:
        return self.cancelled

    def wait(self) -> Sink:
        assert self.closed.wait(TIMEOUT_SECONDS)
        assert self.aggregates is not None
        return self

    def tokens(self, row_id: str) -> list[int]:
        return [token for delta in self.deltas if delta.row_id == row_id for token in delta.token_ids]

    def end(self, row_id: str) -> RowDelta:
        (end,) = [delta for delta in self.deltas if delta.row_id == row_id and delta.finish_reason]
        return end


def a_row(name: str, prompt: tuple[int, ...] = (5, 6), resume: tuple[int, ...] = (), **sampling: Any) -> Row:
    return Row(name, prompt, resume, SamplingParameters(**{"max_tokens": 20, "ignore_eos": True, **sampling}))


@pytest.fixture
def core() -> CountingCore:
    return CountingCore()


@pytest.fixture
def engine(core: CountingCore) -> Any:
    engine = Engine(LIMITS, decode, lambda: core)
    yield engine
    engine.close()
    assert core.closed
    assert not core.rows


def submit(engine: Engine, batch_id: str, *rows: Row | BadRow, fence: tuple[str, int] = ("", 0)) -> Sink:
    sink = Sink()
    engine.submit(batch_id, rows, sink, fence)
    return sink


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.lists(st.tuples(st.lists(st.integers(3, 12), min_size=1, max_size=5), st.integers(1, 70)), max_size=4),
        min_size=1,
        max_size=6,
    ),
    st.integers(1, 5),
    st.data(),
)
def test_every_row_gets_its_answer_whatever_runs_beside_it(batches: list[Any], room: int, data: st.DataObject) -> None:
    core = CountingCore(room)
    engine = Engine(LIMITS, decode, lambda: core)
    sinks = []
    for number, rows in enumerate(batches):
        parsed: list[Row | BadRow] = [BadRow("bad", "why")]
        for i, (prompt, limit) in enumerate(rows):
            cut = data.draw(st.integers(0, limit - 1))
            resume = tuple(answer(prompt, min(cut, 64 - len(prompt) - 1)))
            parsed.append(a_row(str(i), tuple(prompt), resume, max_tokens=limit))
        sinks.append((submit(engine, f"b{number}", *parsed), parsed))
    steps = row_steps = 0
    for sink, parsed in sinks:
        sink.wait()
        assert sink.end("bad").error == "why"
        for row in parsed:
            if isinstance(row, Row):
                whole = answer(row.prompt, min(row.sampling.max_tokens, 64 - len(row.prompt)))
                assert sink.tokens(row.row_id) == whole[len(row.resume) :]
                assert sink.end(row.row_id).finish_reason == "length"
                text = "".join(delta.text for delta in sink.deltas if delta.row_id == row.row_id)
                assert text == decode(whole[len(row.resume) :])
        assert sink.aggregates is not None
        steps += sum(run["steps"] for run in sink.aggregates["decode"])
        row_steps += sum(run["rows"] * run["steps"] for run in sink.aggregates["decode"])
        assert max((run["rows"] for run in sink.aggregates["decode"]), default=0) <= room
    engine.close()
    assert steps <= core.steps
    assert row_steps <= sum(len(sink.tokens(row.row_id)) for sink, parsed in sinks for row in parsed)


def test_a_step_takes_as_long_as_the_rows_wait_for_the_next() -> None:
    now, stepped = [100.0], []

    class SlowCore(CountingCore):
        def step(self) -> Stepped:
            now[0] += 1.0
            stepped.append(now[0])
            return super().step()

    def slow_decode(tokens: Sequence[int]) -> str:
        now[0] += 0.25
        return decode(tokens)

    engine = Engine(LIMITS, slow_decode, SlowCore, lambda: now[0])
    for number in range(2):
        begin = now[0]
        sink = submit(engine, f"b{number}", a_row("a", max_tokens=9)).wait()
        assert sink.aggregates is not None
        parts = sink.aggregates["prefill"] + sink.aggregates["decode"]
        assert sum(part["seconds"] for part in parts) == pytest.approx(stepped[-1] - begin)
        assert sink.aggregates["decode"][0]["seconds"] > 8 * 1.0
    engine.close()


def test_a_stop_string_ends_a_row_inside_vllm_too(engine: Engine, core: CountingCore) -> None:
    whole = decode(answer((5, 6), 20))
    sink = submit(engine, "b", a_row("a", stop=(whole[4:7],)), a_row("b", (7,), max_tokens=3)).wait()
    assert "".join(delta.text for delta in sink.deltas if delta.row_id == "a") == whole[: whole.index(whole[4:7])]
    assert sink.end("a").finish_reason == "stop"
    assert sink.end("b").finish_reason == "length"
    assert not core.rows


def test_a_row_that_vllm_refuses_fails_alone(engine: Engine) -> None:
    sink = submit(engine, "b", a_row("a", (13,)), a_row("b")).wait()
    assert sink.end("a").error == "vLLM refuses the row: unlucky"
    assert sink.end("b").finish_reason == "length"


def test_a_step_that_fails_ends_what_was_there_and_nothing_else(engine: Engine, core: CountingCore) -> None:
    core.fails_at = 3
    sink = submit(engine, "b", a_row("a"), a_row("b", (7,))).wait()
    assert {sink.end(name).error for name in "ab"} == {"RuntimeError: out of luck"}
    assert len(sink.tokens("a")) == 2
    assert submit(engine, "c", a_row("a")).wait().tokens("a") == answer((5, 6), 20)


def test_batches_are_cancelled_fenced_and_told_apart() -> None:
    going = threading.Event()

    class SlowCore(CountingCore):
        def step(self) -> Stepped:
            if self.steps > 2:
                going.wait(TIMEOUT_SECONDS)
            return super().step()

    core = SlowCore()
    engine = Engine(LIMITS, decode, lambda: core)
    old = submit(engine, "old", a_row("a"), a_row("b", (7,)), fence=("m/0", 1))
    left = submit(engine, "left", a_row("a"))
    with pytest.raises(RequestError, match="already running"):
        submit(engine, "old", a_row("a"))
    with pytest.raises(RequestError, match="request id is missing"):
        submit(engine, "", a_row("a"))
    assert old.first.wait(TIMEOUT_SECONDS)
    assert engine.describe()["batches_running"] == 2
    assert engine.cancel("old", ["b"]) == ["b"]
    engine.fence("m/0", 2)
    with pytest.raises(RequestError, match="behind epoch 2"):
        engine.fence("m/0", 1)
    left.cancelled = True
    going.set()
    assert {old.wait().end(name).finish_reason for name in "ab"} == {"cancelled"}
    left.closed.wait(TIMEOUT_SECONDS)
    engine.close()
    with pytest.raises(RequestError, match="unloaded"):
        submit(engine, "late", a_row("a"))


def test_closing_ends_rows_as_errors() -> None:
    core = CountingCore()
    engine = Engine(Limits(frozenset(), 10**6), decode, lambda: core)
    sink = submit(engine, "b", a_row("a", max_tokens=10**5))
    assert sink.first.wait(TIMEOUT_SECONDS)
    engine.close()
    assert sink.wait().end("a").error == "the engine is being unloaded"


def test_a_model_that_does_not_load_says_why() -> None:
    def broken() -> CountingCore:
        raise OSError("no such weights")

    with pytest.raises(OSError, match="no such weights"):
        Engine(LIMITS, decode, broken)
