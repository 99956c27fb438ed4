"""The front of NVIDIA's vLLM backend on a real Triton, before a stand-in that speaks its tensors.

The backend itself needs a GPU and was not run.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from uellm_deployer.adapters.model_folder import read_shape
from uellm_deployer.adapters.repository import ModelRepository
from uellm_deployer.adapters.triton_config import TritonRenderer
from uellm_deployer.adapters.triton_control import ControlTimes, TritonControl
from uellm_deployer.app.creation import check_report
from uellm_deployer.domain.placement import HelrPlanner
from uellm_deployer.domain.plan import DeploymentPlan

from tests.support.deployer import a_spec
from tests.support.tiny_model import make_tiny_model, make_tokenizer
from tests.support.triton import Call, StaticEngineClient, start_triton, state
from tests.unit.test_deployer_built import EIGHT, nvlinked
from uellm.local.triton import CONTROL_KEY, EmbeddedTriton

STAND_IN = Path(__file__).parents[1] / "support" / "standin_vllm_backend.py"
MODULUS, FIRST, BROKEN, SLOW = 50, 10, "?", "~"
"""As in the stand-in, which only Triton can import."""
TOKENIZER = make_tokenizer()
RAW = {"raw_prompt": True, "ignore_eos": True}


def ids(text: str) -> list[int]:
    return list(TOKENIZER(text)["input_ids"])


def expected(prompt: list[int], count: int) -> list[int]:
    return [(sum(prompt) + index) % MODULUS + FIRST for index in range(count)]


def begun(call: Call, row: str) -> None:
    """Wait for its first token."""
    while row not in call.rows or not call.rows[row].tokens:
        call.next()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedTriton]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("CUDA_VISIBLE_DEVICES", "7,GPU-b, 5,4,3,2,1,0")
        patched.setenv("VLLM_PP_LAYER_PARTITION", "9,9")
        server = start_triton(tmp_path_factory.mktemp("root"), added={"vllm": STAND_IN})
    yield server
    server.stop()


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> DeploymentPlan:
    """Two stages on devices that are neither the first ones nor in order."""
    folder = str(make_tiny_model(tmp_path_factory.mktemp("weights")))
    devices = EIGHT[2].id, EIGHT[1].id
    spec = replace(
        a_spec(weights_path=folder, backend="nvidia_vllm", max_batch_rows=4),
        context_tokens=512,
        device_ids=devices,
        stage_layers=(1, 1),
    )
    return HelrPlanner().place(spec, read_shape(folder), nvlinked(*EIGHT)).plan


@pytest.fixture(scope="module")
def repository(server: EmbeddedTriton) -> Iterator[ModelRepository]:
    repository = ModelRepository(server.options.repository.parent)
    yield repository
    repository.close()


@pytest.fixture
async def control(server: EmbeddedTriton) -> AsyncIterator[TritonControl]:
    async with grpc.aio.insecure_channel(server.address) as channel:
        yield TritonControl(channel, CONTROL_KEY, server.options.control_secret, ControlTimes(unload=60))


@pytest.fixture
async def engine(
    server: EmbeddedTriton, control: TritonControl, plan: DeploymentPlan, repository: ModelRepository
) -> StaticEngineClient:
    """The front and its engine as they are rendered, loaded once: importing a tokenizer's library takes seconds."""
    name = plan.triton_model
    if not repository.contains(name):
        await repository.stage(TritonRenderer(repository.root).render(plan))
        await repository.install(name)
        await control.load(name)
    return StaticEngineClient(server, name)


async def test_the_two_models_are_one_to_the_deployer(engine, control, plan):
    assert await control.ready_models() == {plan.triton_model}
    report = await control.verify(plan.triton_model, plan.plan_hash)
    check_report(plan, report)
    assert (report.kv_budget_bytes, report.step_seconds) == (plan.kv_budget_bytes, 0.0)
    assert await control.batches_running(plan.triton_model) == 0


async def test_the_engine_starts_with_the_devices_and_layers_of_the_plan(engine, server):
    """Numbers count within what Triton sees, whose own partition does not hold."""
    log = (server.options.state / "triton.log").read_text()
    (line,) = (line for line in log.splitlines() if line.startswith("STARTED"))
    assert json.loads(line.removeprefix("STARTED")) == {
        "kind": "MODEL",
        "CUDA_VISIBLE_DEVICES": "5,GPU-b",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "VLLM_PP_LAYER_PARTITION": "1,1",
        "HF_HUB_OFFLINE": "1",
    }


async def test_rows_come_back_as_the_engine_answered_them(engine):
    texts = {f"r{n}": "a prompt" + "!" * n for n in range(9)}  # more rows than run at once
    rows = {name: {"prompt": text, "max_tokens": 5 + len(name + text), **RAW} for name, text in texts.items()}
    answer = engine.run(rows)
    for name, text in texts.items():
        row = answer.rows[name]
        assert row.tokens == expected(ids(text), 5 + len(name + text))
        assert row.text == TOKENIZER.decode(row.tokens)
        assert (row.finish_reason, row.error, row.input_tokens) == ("length", "", len(ids(text)))
    assert answer.aggregates["decode"] == [], "its steps are not seen"


async def test_prompts_arrive_as_the_tokens_that_they_are(engine):
    """A chat's special tokens, and tokens that were sent as such."""
    chat = TOKENIZER.apply_chat_template([{"role": "user", "content": "é"}], add_generation_prompt=True)["input_ids"]
    rows: dict[str, dict[str, Any]] = {
        "chat": {"prompt": "é", "max_tokens": 3, "ignore_eos": True},
        "ids": {"prompt": ids("a \u20ac"), "max_tokens": 3, "ignore_eos": True},
        "none": {"prompt": ids("\u20ac")[:2], "max_tokens": 3},  # half a character is no text
    }
    answer = engine.run(rows)
    assert answer.rows["chat"].tokens == expected(chat, 3)
    assert answer.rows["ids"].tokens == expected(ids("a \u20ac"), 3)
    assert "none that is read as these prompt tokens" in answer.rows["none"].error


async def test_a_resumed_row_asks_for_what_is_missing(engine):
    prompt, resumed = ids("begin"), ids(" and on")
    row = {"prompt": prompt, "resume": resumed, "max_tokens": 12, "ignore_eos": True, "temperature": 0.7, "seed": -1}
    assert engine.run({"r": row}).rows["r"].tokens == expected(prompt + resumed, 12 - len(resumed))
    broken = row | {"resume": ids("\u20ac")[:1]}
    assert "cannot be resumed" in engine.run({"r": broken}).rows["r"].error


async def test_stop_strings_end_rows_on_both_sides(engine):
    prompt = ids("x")
    text = TOKENIZER.decode(expected(prompt, 20))
    row = engine.run({"r": {"prompt": prompt, "max_tokens": 400, "stop": [text[7:9]], **RAW}}).rows["r"]
    assert (row.text, row.finish_reason) == (text[:7], "stop")


async def test_a_bad_row_fails_alone(engine):
    good = {"prompt": "good", "max_tokens": 3, **RAW}
    answer = engine.run({"bad": {**good, "prompt": BROKEN}, "good": good, "odd": {**good, "top_p": 7}})
    assert "Error generating stream: the stand-in was asked to fail" in answer.rows["bad"].error
    assert answer.rows["odd"].finish_reason == "error"
    assert answer.rows["good"].tokens == expected(ids("good"), 3)


async def test_a_cancelled_row_ends_at_once_and_its_neighbours_go_on(engine, server):
    slow = {"prompt": SLOW, "max_tokens": 150, **RAW}
    call = engine.start("b", {"one": slow, "two": slow | {"max_tokens": 40}})
    begun(call, "one")
    begun(call, "two")
    assert engine.cancel("b", ["one"]) == ["one"]
    while not call.rows["one"].finish_reason:
        call.next()
    assert call.rows["one"].finish_reason == "cancelled"
    assert len(call.rows["one"].tokens) < 150
    call.finish()
    assert call.rows["two"].tokens == expected(ids(SLOW), 40)
    assert engine.describe()["batch_ids"] == []
    assert "CANCELLED" in (server.options.state / "triton.log").read_text(), "the engine has let go of it, too"


async def test_the_end_of_both(engine, control, plan, server, repository):
    name = plan.triton_model
    await control.unload(name)
    assert [state(server, model) in ("", "UNAVAILABLE") for model in (name, f"{name}-engine")] == [True, True]
    await repository.remove(name)
    assert not list(repository.models.iterdir())
