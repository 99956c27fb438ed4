"""vLLM over several devices in the embedded Triton: a group, a pipeline. Needs `make vllm-env`; `make test-vllm`."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from uellm_deployer.backends.common import contract as common
from uellm_deployer.backends.vllm import contract

from tests.support import triton
from tests.support.tiny_model import CONTEXT_LIMIT, make_tiny_model
from uellm.local.engine import VllmNotInstalledError, vllm_environment
from uellm.local.triton import EmbeddedTriton

try:
    vllm_environment()
except VllmNotInstalledError as missing:
    pytest.skip(str(missing), allow_module_level=True)

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

STAGES = {
    "alone": [[["cpu"], 2]],
    "group": [[["cpu", "cpu"], 2]],
    "pipeline": [[["cpu"], 1], [["cpu"], 1]],
}
SEVERAL = ("group", "pipeline")
LOAD_SECONDS = 300.0
"""Three processes import vLLM at once."""
ROWS = {
    "a": {"prompt": [1, 2, 3], "max_tokens": 40, "ignore_eos": True},
    "b": {"prompt": list(range(40, 90)), "max_tokens": 25, "ignore_eos": True, "repetition_penalty": 1.2},
    "c": {"prompt": [7], "max_tokens": 30, "ignore_eos": True, "temperature": 1.0, "seed": 5},
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedTriton]:
    folder = tmp_path_factory.mktemp("triton")
    weights = make_tiny_model(folder / "weights", head_size=32)
    numbers = {
        common.THREADS: 1,
        contract.ROWS: 4,
        contract.CONTEXT_TOKENS: CONTEXT_LIMIT,
        contract.PAGE_TOKENS: 32,
    }
    # Each device has half of the cache, so half of the memory makes as many pages.
    for name, stages in STAGES.items():
        own = {contract.STAGES: json.dumps(stages), contract.KV_BYTES: (2 << 20) // (2 if name in SEVERAL else 1)}
        parameters = {common.WEIGHTS: weights, common.DTYPE: "float32", **numbers, **own}
        triton.write_engine(folder / "models", name, "vllm", {key: str(value) for key, value in parameters.items()})
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


@pytest.mark.parametrize("name", SEVERAL)
def test_several_devices_answer_as_one(server: EmbeddedTriton, alone: tuple[Any, dict[str, Any]], name: str) -> None:
    expected, facts = alone
    triton.load(server, name, LOAD_SECONDS)
    started = workers()
    assert len(started) == 2
    client = triton.StaticEngineClient(server, name)
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

    triton.unload(server, name)
    _, alive = psutil.wait_procs(started, timeout=60)
    assert alive == []
    assert workers() == []


def test_a_dead_worker_ends_the_engine_and_the_next_load_is_whole(server: EmbeddedTriton) -> None:
    triton.load(server, "group", LOAD_SECONDS)
    victim, other = workers()
    stub = victim.parent()
    assert stub is not None
    os.kill(victim.pid, signal.SIGKILL)
    _, alive = psutil.wait_procs([other, stub], timeout=60)
    assert alive == []
    triton.unload(server, "group")
    triton.load(server, "group", LOAD_SECONDS)
    answer = triton.StaticEngineClient(server, "group").run({"a": ROWS["a"]}).rows["a"]
    assert len(answer.tokens) == 40


def test_a_killed_server_leaves_no_worker(tmp_path: Path, server: EmbeddedTriton) -> None:
    left = workers()
    assert len(left) == 2
    stub = left[0].parent()
    assert stub is not None
    os.kill(stub.pid, signal.SIGKILL)
    _, alive = psutil.wait_procs(left, timeout=60)
    assert alive == []
