"""vLLM over several devices in the embedded Triton: a group, a pipeline. Needs `make vllm-env`; `make test-vllm`."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from uellm_deployer.adapters.model_folder import read_shape
from uellm_deployer.adapters.triton_config import TritonRenderer
from uellm_deployer.app.creation import check_report
from uellm_deployer.app.ports import EngineReport
from uellm_deployer.backends.common import contract as common
from uellm_deployer.backends.vllm import contract
from uellm_deployer.domain.engines import ENGINES
from uellm_deployer.domain.placement import HelrPlanner
from uellm_deployer.domain.plan import DeploymentPlan, DeploymentSpec
from uellm_deployer.domain.topology import Link, Topology

from tests.support import triton
from tests.support.deployer import CPU
from tests.support.tiny_model import CONTEXT_LIMIT, make_tiny_model
from uellm.local.engine import VllmNotInstalledError, vllm_environment
from uellm.local.triton import EmbeddedTriton

try:
    vllm_environment()
except VllmNotInstalledError as missing:
    pytest.skip(str(missing), allow_module_level=True)

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

ALONE, PIPELINE = [[["cpu"], 2]], [[["cpu"], 1], [["cpu"], 1]]
SEVERAL = ("group", "pipeline")
PAGE_TOKENS = ENGINES["vllm"].page_tokens
BATCH_ROWS = 4
KV_BYTES = (BATCH_ROWS * CONTEXT_LIMIT + PAGE_TOKENS) * 1024
LOAD_SECONDS = 300.0
"""Three processes import vLLM at once."""
END_SECONDS = 120.0
ROWS = {
    "a": {"prompt": [1, 2, 3], "max_tokens": 40, "ignore_eos": True},
    "b": {"prompt": list(range(40, 90)), "max_tokens": 25, "ignore_eos": True, "repetition_penalty": 1.2},
    "c": {"prompt": [7], "max_tokens": 30, "ignore_eos": True, "temperature": 1.0, "seed": 5},
}


def planned_group(weights: Path) -> DeploymentPlan:
    """The plan for a machine of two processors."""
    nodes = [replace(CPU, id=f"cpu{node}", numa_node=node) for node in range(2)]
    link = Link("cpu0", "cpu1", "SYS", 1e12, 0.0, peer_access=True)
    spec = DeploymentSpec("tiny", str(weights), "vllm", max_batch_rows=BATCH_ROWS, dtype="float32")
    return HelrPlanner().place(spec, read_shape(str(weights)), Topology(tuple(nodes), (link,), "test")).plan


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("weights"), head_size=32)


@pytest.fixture(scope="module")
def names(weights: Path) -> dict[str, str]:
    """Of the Triton models: one as it is planned and rendered, the others written by hand."""
    return {"alone": "alone", "pipeline": "pipeline", "group": planned_group(weights).triton_model}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Iterator[EmbeddedTriton]:
    folder = tmp_path_factory.mktemp("triton")
    numbers = {
        common.THREADS: 1,
        contract.ROWS: BATCH_ROWS,
        contract.CONTEXT_TOKENS: CONTEXT_LIMIT,
        contract.PAGE_TOKENS: PAGE_TOKENS,
    }
    # Each of two stages has half of the cache, so half of the memory makes as many pages.
    for name, stages in ("alone", ALONE), ("pipeline", PIPELINE):
        own = {contract.STAGES: json.dumps(stages), contract.KV_BYTES: KV_BYTES // len(stages)}
        parameters = {common.WEIGHTS: weights, common.DTYPE: "float32", **numbers, **own}
        triton.write_engine(folder / "models", name, "vllm", {key: str(value) for key, value in parameters.items()})
    entry = TritonRenderer(folder).render(planned_group(weights))
    for path, content in entry.files.items():
        target = folder / "models" / entry.name / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    server = triton.start_triton(folder, "vllm")
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def alone(server: EmbeddedTriton) -> tuple[Any, dict[str, Any]]:
    """What one device answers, and says of itself."""
    triton.load(server, "alone", LOAD_SECONDS)
    client = triton.StaticEngineClient(server, "alone")
    found = client.run(ROWS), client.describe()
    triton.unload(server, "alone")
    return found


def workers() -> list[psutil.Process]:
    """vLLM's worker processes of this test's Triton: what its stubs have started, but for multiprocessing's janitor."""
    return [one for one in psutil.Process().children(recursive=True) if _is_worker(one)]


def _is_worker(process: psutil.Process) -> bool:
    try:
        parent = process.parent()
        started = parent is not None and "python_backend_stub" in " ".join(parent.cmdline()[:1])
        return started and not any("resource_tracker" in word for word in process.cmdline())
    except psutil.NoSuchProcess:
        return False


def wait_gone(processes: list[psutil.Process]) -> None:
    """Until they have ended; Triton does not bury a stub before its model is unloaded."""
    end = time.monotonic() + END_SECONDS
    while left := [one for one in processes if _lives(one)]:
        assert time.monotonic() < end, f"still there: {left}"
        psutil.wait_procs(left, timeout=0.2)


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("name", SEVERAL)
def test_several_devices_answer_as_one(
    server: EmbeddedTriton, names: dict[str, str], weights: Path, alone: tuple[Any, dict[str, Any]], name: str
) -> None:
    expected, facts = alone
    triton.load(server, names[name], LOAD_SECONDS)
    started = workers()
    assert len(started) == 2
    client = triton.StaticEngineClient(server, names[name])
    call = client.run(ROWS)
    assert {key: row.tokens for key, row in call.rows.items()} == {
        key: row.tokens for key, row in expected.rows.items()
    }
    # One batch at a time: each step is reported, once, and the time is theirs.
    runs = [(run["rows"], run["steps"]) for run in call.aggregates["decode"]]
    assert runs == [(run["rows"], run["steps"]) for run in expected.aggregates["decode"]] == [(3, 24), (2, 5), (1, 10)]
    assert all(run["seconds"] > 0 for run in call.aggregates["decode"])

    found = client.describe()
    assert found["device"] == "cpu, cpu"
    same = ("kv_bytes_per_token", "kv_page_tokens", "kv_budget_bytes", "context_limit_tokens", "vocabulary")
    assert {key: found[key] for key in same} == {key: facts[key] for key in same}
    # Each worker has the table of rotations, and in a group all of the norms; a head that is not tied is there once.
    repeated = CONTEXT_LIMIT * 32 * 4 + (5 * 64 * 4 if name == "group" else 0)
    assert 0 <= found["weight_bytes"] - facts["weight_bytes"] - repeated < 64

    if name == "group":
        plan = planned_group(weights)
        assert [len(stage.device_ids) for stage in plan.stages] == [2]
        check_report(plan, EngineReport(found["weight_bytes"], found["kv_bytes_per_token"], 0.0))
        assert found["kv_budget_bytes"] == plan.kv_budget_bytes

    triton.unload(server, names[name])
    wait_gone(started)
    assert workers() == []


def test_a_dead_worker_ends_the_engine_and_the_next_load_is_whole(
    server: EmbeddedTriton, names: dict[str, str]
) -> None:
    group = names["group"]
    triton.load(server, group, LOAD_SECONDS)
    victim, other = workers()
    stub = victim.parent()
    assert stub is not None
    os.kill(victim.pid, signal.SIGKILL)
    wait_gone([other, stub])
    triton.unload(server, group)
    triton.load(server, group, LOAD_SECONDS)
    answer = triton.StaticEngineClient(server, group).run({"a": ROWS["a"]}).rows["a"]
    assert len(answer.tokens) == 40


def test_a_killed_stub_leaves_no_worker(server: EmbeddedTriton) -> None:
    left = workers()
    assert len(left) == 2
    stub = left[0].parent()
    assert stub is not None
    os.kill(stub.pid, signal.SIGKILL)
    wait_gone(left)
