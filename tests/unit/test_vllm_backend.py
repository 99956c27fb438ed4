"""The continuous engine without vLLM: what it is started with, who reports which step, and its generation thread."""

from __future__ import annotations

import ast
import json
import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from uellm_deployer import backends
from uellm_deployer.backends import backend_files
from uellm_deployer.backends.common.aggregates import StepLog
from uellm_deployer.backends.common.request import BadRow, RequestError, Row, SamplingParameters
from uellm_deployer.backends.common.rows import Limits, LiveRow, RowDelta
from uellm_deployer.backends.vllm.engine import Engine
from uellm_deployer.backends.vllm.options import BATCHED_TOKENS, EngineOptions, prepare
from uellm_deployer.backends.vllm.sampling import sampling_arguments, stream_seed
from uellm_deployer.backends.vllm.steps import ScheduledRow, Steps
from uellm_deployer.domain.engines import ENGINES

PARAMETERS = {
    "weights": "/models/smol",
    "dtype": "bfloat16",
    "threads": "2",
    "device": "cpu",
    "rows": "32",
    "context_tokens": "2048",
    "kv_bytes": "1000000",
    "page_tokens": "32",
}
LIMITS = Limits(frozenset({2}), 64)
TIMEOUT_SECONDS = 30.0


def decode(tokens: Sequence[int]) -> str:
    return "".join(chr(97 + token % 26) for token in tokens)


# What it is started with.


def test_options_are_read_from_the_model_config() -> None:
    options = EngineOptions.from_parameters(PARAMETERS)
    arguments = options.arguments()
    assert (arguments["max_num_seqs"], arguments["max_model_len"]) == (32, 2048)
    assert (arguments["kv_cache_memory_bytes"], arguments["block_size"]) == (1_000_000, 32)
    assert arguments["max_num_batched_tokens"] == BATCHED_TOKENS == ENGINES["vllm"].prompt_tokens_at_once
    long = EngineOptions.from_parameters(PARAMETERS | {"context_tokens": "9000"})
    assert long.arguments()["max_num_batched_tokens"] == 9000  # a prompt is never divided
    for name in ("rows", "context_tokens", "kv_bytes", "page_tokens", "threads"):
        with pytest.raises(ValueError, match=name):
            EngineOptions.from_parameters(PARAMETERS | {name: "-1"})
    with pytest.raises(ValueError, match="weights"):
        EngineOptions.from_parameters({})


def test_the_environment_is_prepared_and_the_plan_decides_on_memory() -> None:
    options = EngineOptions.from_parameters(PARAMETERS)
    environment = {"VLLM_CPU_KVCACHE_SPACE": "40", "VLLM_LOGGING_LEVEL": "DEBUG"}
    prepare(environment, options)
    assert "VLLM_CPU_KVCACHE_SPACE" not in environment
    assert environment["VLLM_LOGGING_LEVEL"] == "DEBUG"
    assert (environment["OMP_NUM_THREADS"], environment["OMP_WAIT_POLICY"]) == ("2", "PASSIVE")
    prepare(environment, EngineOptions.from_parameters(PARAMETERS | {"device": "cuda:3"}))
    assert environment["CUDA_VISIBLE_DEVICES"] == "3"


def live(resume: tuple[int, ...] = (), **sampling: Any) -> LiveRow:
    return LiveRow(Row("a", (5, 6, 7), resume, SamplingParameters(**{"max_tokens": 20, **sampling})), LIMITS, decode)


def test_sampling_parameters_in_the_words_of_vllm() -> None:
    greedy = sampling_arguments(live(repetition_penalty=1.15), LIMITS.end_tokens)
    assert (greedy["max_tokens"], greedy["temperature"], greedy["repetition_penalty"]) == (20, 0.0, 1.15)
    assert (greedy["stop_token_ids"], greedy["ignore_eos"]) == ([2], False)
    assert "seed" not in greedy  # rows with a generator of their own are drawn one by one
    resumed = sampling_arguments(live((8, 9), temperature=0.7, top_p=0.9, seed=3, ignore_eos=True), LIMITS.end_tokens)
    assert (resumed["max_tokens"], resumed["top_p"], resumed["stop_token_ids"]) == (18, 0.9, [])
    assert resumed["seed"] != sampling_arguments(live(temperature=0.7, seed=3), LIMITS.end_tokens)["seed"] == 3
    assert sampling_arguments(live(max_tokens=500), LIMITS.end_tokens)["max_tokens"] == 64 - 3


@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 10_000))
def test_seeds_are_ones_that_vllm_takes(seed: int, resumed: int) -> None:
    assert 0 <= stream_seed(seed, resumed) < 2**63
    assert stream_seed(seed, resumed) == stream_seed(seed, resumed)


# Who reports which step.


@dataclass
class Reporter:
    arrival: int
    log: StepLog = field(default_factory=StepLog)


def test_a_step_of_both_kinds_is_divided() -> None:
    old, young = Reporter(1), Reporter(2)
    requests = {"a": old, "b": young}
    steps = Steps()
    reading, decoding = ScheduledRow("b", 10, 10, prefill=True), ScheduledRow("a", 1, 5, prefill=False)
    steps.add([decoding, reading], 0.5, requests)
    assert young.log.prefill == []  # nobody knows what share of it was whose
    steps.add([decoding], 0.2, requests)
    steps.add([decoding, reading], 0.5, requests)
    assert [(run.rows, run.tokens) for run in young.log.prefill] == [(1, 10)]
    assert young.log.prefill[0].seconds == pytest.approx(0.3)
    assert [(run.rows, run.steps, run.seconds) for run in old.log.decode] == [(1, 1, 0.2)]


scheduled_rows = st.lists(
    st.tuples(st.sampled_from("abcdef"), st.booleans(), st.integers(1, 50)), min_size=1, unique_by=lambda row: row[0]
)


@given(st.lists(st.tuples(scheduled_rows, st.floats(0.001, 1.0)), max_size=30))
def test_each_pure_step_is_reported_by_exactly_one_request(history: list[Any]) -> None:
    reporters = {name: Reporter(i // 2) for i, name in enumerate("abcdef")}
    for first, second in ("ab", "cd", "ef"):
        reporters[second] = reporters[first]  # two rows each
    logs = [reporters[name].log for name in "ace"]
    steps = Steps()
    for rows, seconds in history:
        steps.add([ScheduledRow(name, 1, tokens, prefill) for name, prefill, tokens in rows], seconds, reporters)
    pure = [(rows, seconds) for rows, seconds in history if not any(prefill for _, prefill, _ in rows)]
    runs = [run for log in logs for run in log.decode]
    assert sum(run.steps for run in runs) == len(pure)
    assert sum(run.rows * run.steps for run in runs) == sum(len(rows) for rows, _ in pure)
    assert sum(run.context_tokens for run in runs) == sum(tokens for rows, _ in pure for _, _, tokens in rows)
    assert sum(run.seconds for run in runs) == pytest.approx(sum(seconds for _, seconds in pure))
    assert sum(log.seconds for log in logs) <= sum(seconds for _, seconds in history) + 1e-9


# The generation thread.


@dataclass(frozen=True)
class News:
    key: str
    tokens: tuple[int, ...]
    ended: str


@dataclass(frozen=True)
class Stepped:
    news: tuple[News, ...]
    rows: tuple[ScheduledRow, ...]
    seconds: float


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
        return Stepped(tuple(news), tuple(rows), 0.001)

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


# What is written into the repository.


@pytest.mark.parametrize("backend", ["hf", "vllm"])
def test_a_backend_is_whole_and_imports_nothing_of_ours(backend: str) -> None:
    files = backend_files(backend)
    other = {"hf": "vllm", "vllm": "hf"}[backend]
    assert {"model.py", "uellm_backends/__init__.py", f"uellm_backends/{backend}/engine.py"} <= set(files)
    assert not any(f"/{other}/" in name for name in files)
    assert "uellm_backends/common/triton_model.py" in files
    root = Path(backends.__file__).parent
    for name, file in files.items():
        assert file.is_relative_to(root)
        for node in ast.walk(ast.parse(file.read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                modules = [node.module or ""]
            assert not [
                m for m in modules if m.split(".")[0].startswith("uellm") and m.split(".")[0] != "uellm_backends"
            ], name
