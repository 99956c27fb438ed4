"""The static engine inside the embedded Triton, spoken to over gRPC."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tests.support import triton
from tests.support.tiny_model import make_tiny_model, make_tokenizer
from uellm.local.triton import EmbeddedTriton

MODEL = "tiny"
TOKENIZER = make_tokenizer()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedTriton]:
    folder = tmp_path_factory.mktemp("triton")
    weights = make_tiny_model(folder / "weights")
    triton.write_static_engine(folder / "models", MODEL, weights)
    server = triton.start_triton(folder)
    try:
        triton.load(server, MODEL)
        yield server
    finally:
        server.stop()


@pytest.fixture
def client(server: EmbeddedTriton) -> triton.StaticEngineClient:
    return triton.StaticEngineClient(server, MODEL)


def row(prompt: str | list[int] = "hello", **values: Any) -> dict[str, Any]:
    return {"prompt": prompt, "max_tokens": 40, "ignore_eos": True, **values}


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.02)


def test_a_batch_streams_the_deltas_of_its_rows(client: triton.StaticEngineClient) -> None:
    rows = {
        "text": row("héllo 😀"),
        "ids": row([1, 2, 3], temperature=1.0, seed=7, max_tokens=90),
        "short": row(max_tokens=3),
        "bad": row(beams=4),
    }
    call = client.run(rows)
    assert call.responses > 3
    assert {name: len(answer.tokens) for name, answer in call.rows.items()} == {
        "text": 40,
        "ids": 90,
        "short": 3,
        "bad": 0,
    }
    for answer in call.rows.values():
        assert answer.indices == list(range(len(answer.tokens)))
        assert answer.text == TOKENIZER.decode(answer.tokens, skip_special_tokens=True)
    assert [answer.finish_reason for answer in call.rows.values()].count("length") == 3
    assert call.rows["bad"].finish_reason == "error"
    assert "unknown key beams" in call.rows["bad"].error
    assert call.rows["ids"].input_tokens == 3
    steps = [run["rows"] * run["steps"] for run in call.aggregates["decode"]]
    assert sum(steps) + call.aggregates["prefill"][0]["rows"] == 40 + 90 + 3
    assert [run["rows"] for run in call.aggregates["decode"]] == [3, 2, 1]


def test_answers_do_not_depend_on_the_batch_around_them(client: triton.StaticEngineClient) -> None:
    rows = {f"r{i}": row("x" * (3 * i + 1), temperature=1.0 * (i % 3), seed=100 + i) for i in range(6)}
    together = client.run(rows).rows
    for name, alone in rows.items():
        assert client.run({name: alone}).rows[name].tokens == together[name].tokens


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.8, "seed": 3, "repetition_penalty": 1.2}])
def test_resuming_after_some_tokens_continues_the_answer(
    client: triton.StaticEngineClient, sampling: dict[str, Any]
) -> None:
    whole = client.run({"a": row(**sampling)}).rows["a"]
    resumed = client.run({"other": row("y"), "a": row(resume=whole.tokens[:13], **sampling)}).rows["a"]
    assert resumed.tokens == whole.tokens[13:]
    assert resumed.indices == list(range(13, 40))
    assert whole.text.endswith(resumed.text)
    assert resumed.input_tokens == whole.input_tokens


def test_cancelling_a_row_leaves_the_other_seven(client: triton.StaticEngineClient) -> None:
    rows = {f"r{i}": row("x" * (i + 1), temperature=1.0 * (i % 2), seed=i, max_tokens=300) for i in range(8)}
    undisturbed = client.run(rows).rows
    call = client.start("cancelled", rows)
    call.next()
    assert client.cancel("cancelled", ["r7"]) == ["r7"]
    call.finish()
    assert call.rows["r7"].finish_reason == "cancelled"
    assert 1 <= len(call.rows["r7"].tokens) < 300
    for i in range(7):
        assert call.rows[f"r{i}"] == undisturbed[f"r{i}"]
    assert client.cancel("cancelled", ["r7"]) == []


def test_a_request_with_a_higher_epoch_ends_older_batches(client: triton.StaticEngineClient) -> None:
    old = client.start("old", {"a": row(max_tokens=450)}, fence_scope="tiny/0", fence_epoch=1)
    old.next()
    new = client.start("new", {"a": row(max_tokens=2)}, fence_scope="tiny/0", fence_epoch=2).finish()
    old.finish()
    assert old.rows["a"].finish_reason == "cancelled"
    assert new.rows["a"].finish_reason == "length"
    late = client.start("late", {"a": row()}, fence_scope="tiny/0", fence_epoch=1).finish()
    assert "fence_epoch 1 of tiny/0 is behind epoch 2" in late.refusal
    assert not late.rows


def test_requests_that_make_no_sense_are_refused(client: triton.StaticEngineClient) -> None:
    assert (
        client.call("x", [triton.strings("row_id", ["a"])]).finish().refusal == "input sampling_parameters is missing"
    )
    assert "known: generate, cancel, describe" in client.call("x", [], action="restart").finish().refusal
    assert "batch_id has 0 elements" in client.call("x", [], action="cancel").finish().refusal
    assert "request id is missing" in client.start("", {"a": row()}).finish().refusal


def test_describe_tells_the_facts_of_the_model(client: triton.StaticEngineClient) -> None:
    facts = client.describe()
    assert facts.pop("weight_bytes") > 300_000
    assert facts == {
        "kv_bytes_per_token": 512,
        "context_limit_tokens": 512,
        "vocabulary": 264,
        "device": "cpu",
        "dtype": "float32",
        "batches_running": 0,
        "batch_ids": [],
    }


def test_control_needs_the_secret(server: EmbeddedTriton) -> None:
    request = service_pb2.RepositoryIndexRequest()
    with grpc.insecure_channel(server.address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError) as refused:
            stub.RepositoryIndex(request, timeout=5)
    assert "missing" in refused.value.details() or "protocol" in refused.value.details()
    assert triton.state(server, MODEL) == "READY"


def test_unloading_waits_for_what_runs(server: EmbeddedTriton, client: triton.StaticEngineClient) -> None:
    call = client.start("running", {"a": row(max_tokens=200)})
    call.next()
    triton.unload(server, MODEL)
    assert len(call.finish().rows["a"].tokens) == 200
    wait_until(lambda: triton.state(server, MODEL) == "UNAVAILABLE")
    triton.load(server, MODEL)
    assert client.run({"a": row()}).rows["a"].finish_reason == "length"


# Last: Triton 2.51 may keep a reference to the model of a cancelled stream.
def test_cancelling_the_rpc_ends_its_batch(server: EmbeddedTriton, client: triton.StaticEngineClient) -> None:
    long = {f"r{i}": row(max_tokens=480) for i in range(8)}
    running = client.start("running", long)
    running.next()
    waiting = client.start("waiting", long)
    wait_until(lambda: client.describe()["batches_running"] == 2)
    waiting.cancel_rpc()
    wait_until(lambda: client.describe()["batches_running"] == 1)
    assert not running.done
    running.cancel_rpc()
    begin = time.monotonic()
    wait_until(lambda: client.describe()["batches_running"] == 0, seconds=1.0)
    assert time.monotonic() - begin < 1.0
    assert client.run({"a": row()}).rows["a"].finish_reason == "length"
    assert "Traceback" not in (server.options.state / "triton.log").read_text()
