"""The engine in this process: rows, control, and what happens when things go wrong."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from uellm_deployer.backends.common.request import BadRow, RequestError, Row, SamplingParameters
from uellm_deployer.backends.common.rows import LiveRow, RowDelta
from uellm_deployer.backends.hf.engine import Engine
from uellm_deployer.backends.hf.language_model import LanguageModel, LoadOptions

from tests.support.tiny_model import CONTEXT_LIMIT, make_tiny_model

TIMEOUT_SECONDS = 30.0


class RecordingSink:
    """Keeps what the engine reports; `on_send` runs in the engine's thread after each response."""

    def __init__(self, on_send: Callable[[], None] = lambda: None) -> None:
        self.responses: list[list[RowDelta]] = []
        self.aggregates: dict[str, Any] = {}
        self.cancelled = False
        self.closed = threading.Event()
        self._on_send = on_send

    def send(self, deltas: Sequence[RowDelta], step_aggregates: str | None) -> None:
        assert not self.closed.is_set()
        assert deltas
        self.responses.append(list(deltas))
        if step_aggregates is not None:
            assert not self.aggregates
            self.aggregates = json.loads(step_aggregates)
        self._on_send()

    def close(self) -> None:
        self.closed.set()

    def is_cancelled(self) -> bool:
        return self.cancelled

    def wait(self) -> RecordingSink:
        assert self.closed.wait(TIMEOUT_SECONDS)
        return self

    def of(self, row_id: str) -> list[RowDelta]:
        return [delta for response in self.responses for delta in response if delta.row_id == row_id]

    def tokens(self, row_id: str) -> list[int]:
        return [token for delta in self.of(row_id) for token in delta.token_ids]

    def text(self, row_id: str) -> str:
        return "".join(delta.text for delta in self.of(row_id))

    def end(self, row_id: str) -> str:
        return self.of(row_id)[-1].finish_reason


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    folder = make_tiny_model(tmp_path_factory.mktemp("tiny"))
    return LanguageModel.load(LoadOptions.from_parameters({"weights": str(folder), "threads": "2"}))


@pytest.fixture
def engine(model: LanguageModel) -> Iterator[Engine]:
    engine = Engine(model)
    yield engine
    engine.close()


def row(row_id: str, prompt: Sequence[int] = (3, 4, 5), resume: Sequence[int] = (), **sampling: Any) -> Row:
    values = {"max_tokens": 40, "ignore_eos": True, **sampling}
    return Row(row_id, tuple(prompt), tuple(resume), SamplingParameters(**values))


def submit(
    engine: Engine,
    rows: Sequence[Row | BadRow],
    batch_id: str = "batch",
    fence: tuple[str, int] = ("", 0),
    sink: RecordingSink | None = None,
) -> RecordingSink:
    sink = sink or RecordingSink()
    engine.submit(batch_id, rows, sink, fence)
    return sink


def hold(engine: Engine) -> tuple[RecordingSink, threading.Event]:
    """Start a batch whose first response keeps the engine's thread until the event is set."""
    reached, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        reached.set()
        assert go_on.wait(TIMEOUT_SECONDS)

    sink = submit(engine, [row("held")], "held", ("scope", 1), RecordingSink(wait))
    assert reached.wait(TIMEOUT_SECONDS)
    return sink, go_on


def test_deltas_are_gathered_and_add_up(engine: Engine, model: LanguageModel) -> None:
    sink = submit(engine, [row("a", max_tokens=50), row("b", (9,), max_tokens=3)]).wait()
    assert len(sink.tokens("a")) == 50
    assert sink.text("a") == model.decode(sink.tokens("a"))
    first, *others = sink.of("a")
    assert (len(first.token_ids), first.first_token_index) == (1, 0)
    assert all(len(delta.token_ids) <= 16 for delta in others)
    assert len(others) < 49
    index = 0
    for delta in sink.of("a"):
        assert delta.first_token_index == index
        index += len(delta.token_ids)
    assert [delta.finish_reason for delta in sink.of("a")] == [""] * len(others) + ["length"]
    assert {delta.input_tokens for delta in sink.of("b")} == {1}


def test_step_aggregates_account_for_every_token(engine: Engine) -> None:
    lengths = {"a": 30, "b": 1, "c": 12}
    prompts = {"a": (1, 2), "b": (1,), "c": (1, 2, 3, 4, 5)}
    sink = submit(engine, [row(name, prompts[name], max_tokens=n) for name, n in lengths.items()]).wait()
    decode, [prefill] = sink.aggregates["decode"], sink.aggregates["prefill"]
    assert (prefill["rows"], prefill["tokens"], prefill["padded_tokens"]) == (3, 8, 15)
    assert prefill["rows"] + sum(run["rows"] * run["steps"] for run in decode) == sum(lengths.values())
    assert [(run["rows"], run["steps"], run["first_context"]) for run in decode] == [(2, 11, 6), (1, 18, 14)]
    contexts = [len(prompts[name]) + step for name, n in lengths.items() for step in range(1, n)]
    assert sum(run["context_tokens"] for run in decode) == sum(contexts)
    parts = [*decode, prefill]
    assert 0 < sum(part["seconds"] for part in parts) <= sink.aggregates["seconds"]
    assert sink.aggregates["kv_bytes_per_token"] == 512


def test_end_of_sequence_counts_and_has_no_text(engine: Engine, model: LanguageModel) -> None:
    # Every token ends the sequence, so the first one does.
    engine._limits = type(engine._limits)(frozenset(range(model.vocabulary)), CONTEXT_LIMIT)
    sink = submit(engine, [row("a", ignore_eos=False), row("b", ignore_eos=True, max_tokens=2)]).wait()
    assert (len(sink.tokens("a")), sink.text("a"), sink.end("a")) == (1, "", "stop")
    assert (len(sink.tokens("b")), sink.end("b")) == (2, "length")


def test_context_limit_ends_a_row(engine: Engine) -> None:
    sink = submit(engine, [row("a", [5] * (CONTEXT_LIMIT - 4), max_tokens=100)]).wait()
    assert (len(sink.tokens("a")), sink.end("a")) == (4, "length")


def test_stop_strings_end_a_row_before_them(engine: Engine) -> None:
    whole = submit(engine, [row("a", seed=4, temperature=1.0, max_tokens=60)]).wait().text("a")
    stop = whole[len(whole) // 2 :][:3]
    sink = submit(engine, [row("a", seed=4, temperature=1.0, max_tokens=60, stop=(stop,))]).wait()
    assert (sink.text("a"), sink.end("a")) == (whole[: whole.find(stop)], "stop")


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.9, "seed": 11, "top_p": 0.95, "repetition_penalty": 1.3}])
@pytest.mark.parametrize("cut", [1, 17, 39, 40])
def test_a_resumed_row_goes_on_as_it_would_have(
    engine: Engine, model: LanguageModel, cut: int, sampling: dict[str, Any]
) -> None:
    whole = submit(engine, [row("a", **sampling)]).wait()
    tokens = whole.tokens("a")
    attempt = LiveRow(row("a", **sampling), engine._limits, model.decode)
    for token in tokens[:cut]:
        attempt.accept(token)
    sent = attempt.take_delta()
    assert sent is not None
    resumed = submit(engine, [row("x", (8, 8, 8, 8)), row("a", resume=tokens[:cut], **sampling)]).wait()
    assert resumed.tokens("a") == tokens[cut:]
    assert resumed.of("a")[0].first_token_index == cut
    assert resumed.end("a") == "length"
    assert sent.text + resumed.text("a") == whole.text("a")


def test_cancelling_a_row_leaves_the_others_as_they_were(engine: Engine) -> None:
    rows = [row(f"r{i}", range(3, 6 + i), temperature=i % 2, seed=i, max_tokens=60) for i in range(8)]
    undisturbed = submit(engine, rows).wait()
    cancelled: list[str] = []

    def cancel() -> None:
        if len(sink.tokens("r7")) >= 10:
            cancelled.extend(engine.cancel("batch", ["r7", "unknown"]))

    sink = RecordingSink(cancel)
    submit(engine, rows, sink=sink).wait()
    assert cancelled[0] == "r7"
    assert sink.end("r7") == "cancelled"
    assert 10 <= len(sink.tokens("r7")) < 60
    assert sink.tokens("r7") == undisturbed.tokens("r7")[: len(sink.tokens("r7"))]
    for i in range(7):
        assert sink.tokens(f"r{i}") == undisturbed.tokens(f"r{i}")
        assert sink.text(f"r{i}") == undisturbed.text(f"r{i}")


def test_bad_rows_fail_alone(engine: Engine) -> None:
    sink = submit(engine, [BadRow("bad", "because"), row("good", max_tokens=2)]).wait()
    assert sink.of("bad") == [RowDelta("bad", finish_reason="error", error="because")]
    assert sink.end("good") == "length"
    nothing = submit(engine, [BadRow("one", "x"), BadRow("two", "y")]).wait()
    assert [delta.error for delta in nothing.responses[0]] == ["x", "y"]
    assert nothing.aggregates["prefill"] == []


def test_a_step_that_fails_ends_its_batch_only(
    engine: Engine, model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> torch.Tensor:
        raise MemoryError("no memory for 8 GiB")

    with monkeypatch.context() as patch:
        patch.setattr(model, "forward", fail)
        sink = submit(engine, [row("a"), row("b")]).wait()
    assert [sink.of(name)[-1].error for name in ("a", "b")] == ["MemoryError: no memory for 8 GiB"] * 2
    assert sink.end("a") == "error"
    assert submit(engine, [row("a", max_tokens=2)]).wait().end("a") == "length"


def test_batches_run_in_order_and_a_waiting_one_can_be_cancelled(engine: Engine) -> None:
    held, go_on = hold(engine)
    waiting, left, last = (submit(engine, [row("a"), row("b", max_tokens=4)], name) for name in ("one", "two", "three"))
    assert engine.describe()["batches_running"] == 4
    assert engine.cancel("one", ["a"]) == ["a"]
    assert engine.cancel("two", []) == ["a", "b"]
    assert engine.cancel("nobody", []) == []
    go_on.set()
    left.wait()
    assert [left.end(name) for name in ("a", "b")] == ["cancelled", "cancelled"]
    assert not last.responses, "the waiting batch ended only when its turn came"
    waiting.wait()
    assert (waiting.end("a"), waiting.tokens("a"), waiting.end("b")) == ("cancelled", [], "length")
    assert held.closed.is_set()
    assert last.wait().end("a") == "length"


def test_a_higher_epoch_ends_batches_of_lower_ones(engine: Engine) -> None:
    held, go_on = hold(engine)
    same = submit(engine, [row("a", max_tokens=2)], "same", ("scope", 2))
    other = submit(engine, [row("a", max_tokens=2)], "other", ("else", 1))
    engine.fence("scope", 2)
    with pytest.raises(RequestError, match="fence_epoch 1 of scope is behind epoch 2"):
        engine.fence("scope", 1)
    engine.fence("scope", 2)
    go_on.set()
    assert held.wait().end("held") == "cancelled"
    assert same.wait().end("a") == "length"
    assert other.wait().end("a") == "length"


def test_a_caller_that_left_ends_its_batches(engine: Engine) -> None:
    held, go_on = hold(engine)
    waiting = submit(engine, [row("a")], "waiting")
    held.cancelled = waiting.cancelled = True
    engine._next_look = 0.0
    go_on.set()
    assert held.wait().end("held") == "cancelled"
    assert len(held.tokens("held")) < 40
    assert waiting.wait().end("a") == "cancelled"


def test_closing_ends_what_runs_and_what_waits(model: LanguageModel) -> None:
    engine = Engine(model)
    held, go_on = hold(engine)
    waiting = submit(engine, [row("a")], "waiting")
    closer = threading.Thread(target=engine.close)
    closer.start()
    go_on.set()
    closer.join(TIMEOUT_SECONDS)
    for sink, name in ((held, "held"), (waiting, "a")):
        assert sink.wait().of(name)[-1].error == "the engine is being unloaded"
    with pytest.raises(RequestError, match="unloaded"):
        engine.submit("late", [row("a")], RecordingSink(), ("", 0))


def test_a_batch_needs_an_id_of_its_own(engine: Engine) -> None:
    held, go_on = hold(engine)
    with pytest.raises(RequestError, match="request id is missing"):
        submit(engine, [row("a")], "")
    with pytest.raises(RequestError, match="batch held is already running"):
        submit(engine, [row("a")], "held")
    go_on.set()
    held.wait()
