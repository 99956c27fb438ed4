"""The continuous engine inside the embedded Triton, spoken to over gRPC. Needs `make vllm-env`; `make test-vllm`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from uellm_deployer.backends.common import contract as common
from uellm_deployer.backends.vllm import contract

from tests.support import triton
from tests.support.tiny_model import CONTEXT_LIMIT, make_tiny_model, make_tokenizer
from uellm.local.engine import VllmNotInstalledError, vllm_environment
from uellm.local.triton import EmbeddedTriton

try:
    vllm_environment()
except VllmNotInstalledError as missing:
    pytest.skip(str(missing), allow_module_level=True)

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

MODEL = "tiny"
ROWS = 8
PAGE_TOKENS = 32
KV_BYTES = 2 << 20
TOKENIZER = make_tokenizer()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("weights"), head_size=32)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Iterator[EmbeddedTriton]:
    folder = tmp_path_factory.mktemp("triton")
    parameters = {
        common.WEIGHTS: weights,
        common.DTYPE: "float32",
        common.THREADS: 1,
        contract.ROWS: ROWS,
        contract.CONTEXT_TOKENS: CONTEXT_LIMIT,
        contract.KV_BYTES: KV_BYTES,
        contract.PAGE_TOKENS: PAGE_TOKENS,
    }
    triton.write_engine(folder / "models", MODEL, "vllm", {key: str(value) for key, value in parameters.items()})
    server = triton.start_triton(folder, "vllm")
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


def wait_until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.02)


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_answers_are_those_of_transformers(
    client: triton.StaticEngineClient, weights: Path, penalty: float
) -> None:
    prompts = [[1, 2, 3], list(range(40, 90)), [200]]
    rows = {
        str(i): {"prompt": prompt, "max_tokens": 60, "repetition_penalty": penalty} for i, prompt in enumerate(prompts)
    }
    answers = client.run(rows).rows
    model = AutoModelForCausalLM.from_pretrained(weights, dtype=torch.float32)
    for i, prompt in enumerate(prompts):
        arguments = {"max_new_tokens": 60, "do_sample": False, "repetition_penalty": penalty}
        expected = model.generate(torch.tensor([prompt]), **arguments)[0, len(prompt) :].tolist()
        assert answers[str(i)].tokens == expected
        assert answers[str(i)].finish_reason == ("stop" if expected[-1] == TOKENIZER.eos_token_id else "length")
        assert answers[str(i)].input_tokens == len(prompt)


def test_deltas_are_the_text_and_a_bad_row_fails_alone(client: triton.StaticEngineClient) -> None:
    rows = {
        "text": row("héllo 😀"),
        "ids": row([1, 2, 3], temperature=1.0, seed=7, max_tokens=90),
        "short": row(max_tokens=3),
        "unknown key": row(beams=4),
        "hot": row(temperature=50),
        "too long": row([1] * CONTEXT_LIMIT),
        "foreign token": row([264]),
    }
    call = client.run(rows)
    assert call.responses > 3
    good = {name: len(answer.tokens) for name, answer in call.rows.items() if answer.finish_reason == "length"}
    assert good == {"text": 40, "ids": 90, "short": 3}
    for answer in call.rows.values():
        assert answer.indices == list(range(len(answer.tokens)))
        assert answer.text == TOKENIZER.decode(answer.tokens, skip_special_tokens=True)
    bad = {name: answer.error for name, answer in call.rows.items() if answer.finish_reason == "error"}
    assert set(bad) == set(rows) - set(good)
    assert "unknown key beams" in bad["unknown key"]
    assert "temperature must be in [0, 2]" in bad["hot"]
    assert "out of range" in bad["foreign token"]


def test_stop_strings_end_a_row_and_are_not_sent(client: triton.StaticEngineClient) -> None:
    whole = client.run({"a": row(max_tokens=60)}).rows["a"]
    at = len(whole.text) // 2
    stop = whole.text[at : at + 2]
    stopped = client.run({"a": row(max_tokens=60, stop=[stop])}).rows["a"]
    assert stopped.finish_reason == "stop"
    assert stopped.text == whole.text[: whole.text.index(stop)]
    assert whole.tokens[: len(stopped.tokens)] == stopped.tokens


def test_rows_join_a_running_engine_and_leave_before_older_ones(client: triton.StaticEngineClient) -> None:
    alone = client.run({"a": row(max_tokens=400)}).rows["a"].tokens
    old = client.start("old", {"a": row(max_tokens=400)})
    old.next()
    young = client.start("young", {"b": row([5, 6, 7, 8], max_tokens=4), "c": row([9], max_tokens=9)}).finish()
    assert {len(young.rows["b"].tokens), len(young.rows["c"].tokens)} == {4, 9}
    assert client.describe()["batches_running"] == 1
    assert client.cancel("old", ["nobody"]) == []
    old.finish()
    assert old.rows["a"].tokens == alone
    # Every step was reported once: the older one has the steps, the younger one what was read for it.
    assert [(run["rows"], run["tokens"]) for run in young.aggregates["prefill"]] == [(2, 5)]
    assert young.aggregates["decode"] == []
    assert 380 <= sum(run["steps"] for run in old.aggregates["decode"]) <= 398
    assert {run["rows"] for run in old.aggregates["decode"]} >= {1, 2, 3}


def test_what_a_lonely_batch_cost(client: triton.StaticEngineClient) -> None:
    call = client.run({"a": row([1] * 50, max_tokens=11), "b": row([2] * 20, max_tokens=21)})
    prefill, decode = call.aggregates["prefill"], call.aggregates["decode"]
    assert [(run["rows"], run["tokens"], run["padded_tokens"]) for run in prefill] == [(2, 70, 70)]
    assert [(run["rows"], run["steps"], run["first_context"]) for run in decode] == [(2, 10, 51), (1, 10, 31)]
    assert decode[0]["context_tokens"] == sum(50 + k + 20 + k for k in range(1, 11))
    assert call.aggregates["seconds"] == pytest.approx(sum(run["seconds"] for run in prefill + decode))
    assert call.aggregates["kv_bytes_per_token"] == 2 * 2 * 2 * 32 * 4


@pytest.mark.parametrize("cut", [1, 13, 39])
def test_a_resumed_row_goes_on_as_it_would_have(client: triton.StaticEngineClient, cut: int) -> None:
    sampling = {"repetition_penalty": 1.2}
    whole = client.run({"a": row(**sampling)}).rows["a"]
    resumed = client.run({"other": row("y"), "a": row(resume=whole.tokens[:cut], **sampling)}).rows["a"]
    assert resumed.tokens == whole.tokens[cut:]
    assert resumed.indices == list(range(cut, 40))
    assert whole.text.endswith(resumed.text)
    assert resumed.input_tokens == whole.input_tokens


def test_a_row_that_had_everything_ends_at_once(client: triton.StaticEngineClient) -> None:
    whole = client.run({"a": row()}).rows["a"]
    again = client.run({"a": row(resume=whole.tokens)}).rows["a"]
    assert (again.tokens, again.text, again.finish_reason) == ([], "", "length")


def test_seeds_repeat_an_answer(client: triton.StaticEngineClient) -> None:
    sampling = {"temperature": 1.0, "top_p": 0.9, "seed": 11}
    first, again, other = (
        client.run({"a": row(**sampling | change)}).rows["a"].tokens for change in ({}, {}, {"seed": 12})
    )
    assert first == again != other
    resumed = client.run({"a": row(**sampling, resume=first[:10])}).rows["a"]
    assert (len(resumed.tokens), resumed.indices[0]) == (30, 10)


def test_more_rows_than_fit_wait_inside(client: triton.StaticEngineClient) -> None:
    calls = [
        client.start(f"b{i}", {f"r{i}{k}": row([i + 1, k + 1], max_tokens=25) for k in range(2)})
        for i in range(3 * ROWS)
    ]
    for call in calls:
        assert [len(answer.tokens) for answer in call.finish().rows.values()] == [25, 25]
    runs = [run for call in calls for run in call.aggregates["decode"]]
    assert max(run["rows"] for run in runs) == ROWS
    assert sum(run["rows"] * run["steps"] for run in runs) <= 3 * ROWS * 2 * 24


def test_a_full_cache_preempts_rows_and_loses_none(client: triton.StaticEngineClient) -> None:
    rows = {f"r{i}": row([i + 1, 7, 9], max_tokens=480) for i in range(ROWS)}
    facts = client.describe()
    assert facts["kv_budget_bytes"] < ROWS * 483 * facts["kv_bytes_per_token"]
    call = client.run(rows)
    assert sum(run["tokens"] for run in call.aggregates["prefill"]) > 3 * ROWS  # some were read again
    for name in ("r0", f"r{ROWS - 1}"):
        assert call.rows[name].finish_reason == "length"
        assert call.rows[name].tokens == client.run({name: rows[name]}).rows[name].tokens


def test_cancelling_a_row_leaves_the_others(client: triton.StaticEngineClient) -> None:
    rows = {f"r{i}": row("x" * (i + 1), max_tokens=200) for i in range(4)}
    undisturbed = client.run(rows).rows
    call = client.start("cancelled", rows)
    call.next()
    assert client.cancel("cancelled", ["r3"]) == ["r3"]
    call.finish()
    assert call.rows["r3"].finish_reason == "cancelled"
    assert 1 <= len(call.rows["r3"].tokens) < 200
    for i in range(3):
        assert call.rows[f"r{i}"] == undisturbed[f"r{i}"]
    assert client.cancel("cancelled", ["r3"]) == []


def test_a_request_with_a_higher_epoch_ends_older_batches(client: triton.StaticEngineClient) -> None:
    old = client.start("old", {"a": row(max_tokens=450)}, fence_scope="tiny/0", fence_epoch=1)
    old.next()
    new = client.start("new", {"a": row(max_tokens=2)}, fence_scope="tiny/0", fence_epoch=2).finish()
    old.finish()
    assert old.rows["a"].finish_reason == "cancelled"
    assert new.rows["a"].finish_reason == "length"
    late = client.start("late", {"a": row()}, fence_scope="tiny/0", fence_epoch=1).finish()
    assert "fence_epoch 1 of tiny/0 is behind epoch 2" in late.refusal


def test_describe_tells_what_is_really_there(client: triton.StaticEngineClient) -> None:
    facts = client.describe()
    page = PAGE_TOKENS * facts["kv_bytes_per_token"]
    assert facts.pop("weight_bytes") > 300_000
    assert facts == {
        "kv_bytes_per_token": 1024,
        "kv_page_tokens": PAGE_TOKENS,
        "kv_budget_bytes": KV_BYTES // page * page - page,
        "context_limit_tokens": CONTEXT_LIMIT,
        "vocabulary": 264,
        "device": "cpu",
        "dtype": "float32",
        "batches_running": 0,
        "batch_ids": [],
    }


def test_unloading_waits_for_what_runs(server: EmbeddedTriton, client: triton.StaticEngineClient) -> None:
    call = client.start("running", {"a": row(max_tokens=200)})
    call.next()
    triton.unload(server, MODEL)
    assert len(call.finish().rows["a"].tokens) == 200
    wait_until(lambda: triton.state(server, MODEL) == "UNAVAILABLE")
    triton.load(server, MODEL)
    assert client.run({"a": row()}).rows["a"].finish_reason == "length"


# Last: Triton 2.51 may keep a reference to the model of a cancelled stream.
def test_cancelling_the_rpc_ends_its_rows(server: EmbeddedTriton, client: triton.StaticEngineClient) -> None:
    left = client.start("left", {f"r{i}": row(max_tokens=480) for i in range(4)})
    stays = client.start("stays", {"a": row(max_tokens=300)})
    left.next()
    stays.next()
    left.cancel_rpc()
    wait_until(lambda: client.describe()["batches_running"] == 1)
    assert len(stays.finish().rows["a"].tokens) == 300
    assert "Traceback" not in (server.options.state / "triton.log").read_text()
