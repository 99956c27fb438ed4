"""The front of TensorRT-LLM on a real Triton, before a stand-in that speaks the tensors of the real engine.

TensorRT-LLM itself needs a GPU and was not run.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig
from uellm_deployer.adapters.model_folder import read_shape
from uellm_deployer.adapters.repository import ModelRepository
from uellm_deployer.adapters.triton_config import TritonRenderer
from uellm_deployer.adapters.triton_control import ControlTimes, TritonControl
from uellm_deployer.app.creation import check_report
from uellm_deployer.app.ports import RepositoryEntry
from uellm_deployer.domain.names import engine_model
from uellm_deployer.domain.placement import HelrPlanner
from uellm_deployer.domain.plan import DeploymentPlan

from tests.support.tiny_model import make_tokenizer
from tests.support.triton import Call, StaticEngineClient, start_triton, state
from tests.unit.test_deployer_built import CONFIG, EIGHT, nvlinked, spec
from uellm.local.triton import CONTROL_KEY, EmbeddedTriton

STAND_IN = Path(__file__).parents[1] / "support" / "standin_engine.py"
SMALL = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_size": 32,
}
MODULUS, FIRST, BROKEN, SLOW = 50, 100, 7, 8
"""As in the stand-in, which only Triton can import."""


def begun(call: Call, row: str) -> None:
    """Wait for its first token."""
    while row not in call.rows or not call.rows[row].tokens:
        call.next()


def expected(prompt: list[int], count: int) -> list[int]:
    return [(sum(prompt) + index) % MODULUS + FIRST for index in range(count)]


def plan_of(folder: Path) -> DeploymentPlan:
    """Of an engine on two devices, with the tokenizer of the tests."""
    pretrained = CONFIG["pretrained_config"] | SMALL | {"mapping": {"world_size": 2, "tp_size": 2, "pp_size": 1}}
    make_tokenizer().save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(CONFIG | {"pretrained_config": pretrained}))
    for rank in range(2):
        (folder / f"rank{rank}.engine").write_bytes(bytes(1000))
    shape = read_shape(str(folder))
    return HelrPlanner().place(replace(spec(weights_path=str(folder)), max_batch_rows=4), shape, nvlinked(*EIGHT)).plan


def stand_in(entry: RepositoryEntry) -> RepositoryEntry:
    """The same with another engine behind the same tensors."""
    assert entry.engine is not None
    config = text_format.Parse(entry.engine.files["config.pbtxt"].decode(), ModelConfig())
    config.backend = "python"
    files = {"config.pbtxt": text_format.MessageToString(config).encode(), "1/model.py": STAND_IN.read_bytes()}
    return replace(entry, engine=replace(entry.engine, files=files))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedTriton]:
    server = start_triton(tmp_path_factory.mktemp("root"))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> DeploymentPlan:
    return plan_of(tmp_path_factory.mktemp("engine"))


@pytest.fixture(scope="module")
def repository(server: EmbeddedTriton) -> Iterator[ModelRepository]:
    repository = ModelRepository(server.options.repository.parent)
    yield repository
    repository.close()


@pytest.fixture
async def control(server: EmbeddedTriton) -> AsyncIterator[TritonControl]:
    async with grpc.aio.insecure_channel(server.address) as channel:
        secret = server.options.control_secret
        yield TritonControl(channel, CONTROL_KEY, secret, ControlTimes(unload=60))


@pytest.fixture
async def engine(
    server: EmbeddedTriton, control: TritonControl, plan: DeploymentPlan, repository: ModelRepository
) -> StaticEngineClient:
    """The front and its engine, loaded once: importing a tokenizer's library takes seconds."""
    name = plan.triton_model
    if not repository.contains(name):
        await repository.stage(stand_in(TritonRenderer(repository.root).render(plan)))
        await repository.install(name)
        await control.load(name)
    return StaticEngineClient(server, name)


async def test_the_two_models_are_one_to_the_deployer(engine, control, plan, server):
    assert await control.ready_models() == {plan.triton_model}
    report = await control.verify(plan.triton_model, plan.plan_hash)
    check_report(plan, report)
    assert report.kv_budget_bytes == plan.kv_budget_bytes
    assert await control.batches_running(plan.triton_model) == 0


async def test_rows_come_back_as_the_engine_answered_them(engine):
    prompts = {f"r{n}": list(range(20 + n, 30 + 2 * n)) for n in range(9)}  # more rows than run at once
    rows = {name: {"prompt": ids, "max_tokens": 5 + len(ids), "ignore_eos": True} for name, ids in prompts.items()}
    answer = engine.run(rows)
    for name, ids in prompts.items():
        row = answer.rows[name]
        assert row.tokens == expected(ids, 5 + len(ids))
        assert (row.finish_reason, row.error) == ("length", "")
    assert json.loads(json.dumps(answer.aggregates))["decode"] == [], "its steps are not seen"


async def test_a_resumed_row_asks_for_what_is_missing(engine):
    prompt, resumed = [20, 21], [100, 101, 102]
    row = {"prompt": prompt, "resume": resumed, "max_tokens": 8, "ignore_eos": True, "temperature": 0.7, "seed": -1}
    assert engine.run({"r": row}).rows["r"].tokens == expected(prompt + resumed, 5)


async def test_a_bad_row_fails_alone(engine):
    good = {"prompt": [20, 21], "max_tokens": 3, "ignore_eos": True}
    answer = engine.run({"bad": {"prompt": [BROKEN], "max_tokens": 3}, "good": good, "odd": good | {"top_p": 7}})
    assert "asked to fail" in answer.rows["bad"].error
    assert answer.rows["odd"].finish_reason == "error"
    assert answer.rows["good"].tokens == expected([20, 21], 3)


async def test_cancelled_rows_end_in_the_engine_too(engine):
    """There is room for four rows, and each of those that are cancelled would have taken 80 s."""
    slow = {"prompt": [SLOW], "max_tokens": 4000, "ignore_eos": True}
    call = engine.start("b", {"one": slow, "two": slow | {"max_tokens": 40}})
    begun(call, "one")
    assert engine.cancel("b", ["one"]) == ["one"]
    call.finish()
    assert call.rows["one"].finish_reason == "cancelled"
    assert call.rows["two"].tokens == expected([SLOW], 40)

    full = engine.start("c", dict.fromkeys("abcd", slow))
    for name in "abcd":
        begun(full, name)
    assert len(engine.cancel("c")) == 4
    assert engine.run({"r": {"prompt": [20], "max_tokens": 3, "ignore_eos": True}}).rows["r"].finish_reason == "length"
    full.finish()


async def test_the_end_of_both(engine, control, plan, server, repository):
    """Triton waits for rows that run before it unloads the front: the deployer drains first."""
    name, behind = plan.triton_model, engine_model(plan.triton_model)
    await control._unload(behind)
    assert await control.ready_models() == frozenset(), "a front without its engine"
    await control._load(behind)
    assert await control.ready_models() == {name}
    call = engine.start("b", {"one": {"prompt": [SLOW], "max_tokens": 60, "ignore_eos": True}})
    begun(call, "one")
    await control.unload(name)
    assert call.finish().rows["one"].finish_reason == "length"
    assert [state(server, model) in ("", "UNAVAILABLE") for model in (name, behind)] == [True, True]
    await repository.remove(name)
    assert not list(repository.models.iterdir())
