"""The continuous engine without vLLM: what it is started with, who reports which step, and its generation thread."""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from uellm_deployer import backends
from uellm_deployer.backends import backend_files
from uellm_deployer.backends.common.aggregates import StepLog
from uellm_deployer.backends.common.request import Row, SamplingParameters
from uellm_deployer.backends.common.rows import Limits, LiveRow
from uellm_deployer.backends.common.vllm_sampling import sampling_arguments, stream_seed
from uellm_deployer.backends.vllm.options import BATCHED_TOKENS, EngineOptions, prepare
from uellm_deployer.backends.vllm.steps import ScheduledRow, Steps
from uellm_deployer.domain.engines import ENGINES

PARAMETERS = {
    "weights": "/models/smol",
    "dtype": "bfloat16",
    "threads": "2",
    "rows": "32",
    "context_tokens": "2048",
    "kv_bytes": "1000000",
    "page_tokens": "32",
}
LIMITS = Limits(frozenset({2}), 64)


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
    for share in ("0", "1.5", "nan", "much"):
        with pytest.raises(ValueError, match="memory_share"):
            EngineOptions.from_parameters(PARAMETERS | {"memory_share": share})
    with pytest.raises(ValueError, match="weights"):
        EngineOptions.from_parameters({})


def test_two_deployments_may_share_a_gpu() -> None:
    """vLLM begins only where the share that it is told is free: by default nearly all of the device."""
    on_gpu = {"stages": json.dumps([[["cuda:0"], 30]]), "memory_share": "0.31"}
    assert EngineOptions.from_parameters(PARAMETERS | on_gpu).arguments()["gpu_memory_utilization"] == 0.31
    assert "gpu_memory_utilization" not in EngineOptions.from_parameters(PARAMETERS).arguments()


def test_the_environment_is_prepared_and_the_plan_decides_on_memory() -> None:
    options = EngineOptions.from_parameters(PARAMETERS)
    environment = {"VLLM_CPU_KVCACHE_SPACE": "40", "VLLM_LOGGING_LEVEL": "DEBUG"}
    prepare(environment, options)
    assert "VLLM_CPU_KVCACHE_SPACE" not in environment
    assert environment["VLLM_LOGGING_LEVEL"] == "DEBUG"
    assert (environment["OMP_NUM_THREADS"], environment["OMP_WAIT_POLICY"]) == ("2", "PASSIVE")
    prepare(environment, staged([["cuda:3"], 30]))
    assert (environment["CUDA_VISIBLE_DEVICES"], environment["CUDA_DEVICE_ORDER"]) == ("3", "PCI_BUS_ID")


def staged(*stages: list[Any]) -> EngineOptions:
    return EngineOptions.from_parameters(PARAMETERS | {"stages": json.dumps(stages)})


def test_the_order_of_the_visible_devices_is_that_of_the_workers() -> None:
    options = staged([["cuda:2", "cuda:3"], 12], [["cuda:1", "cuda:0"], 18])
    environment = {"VLLM_PP_LAYER_PARTITION": "1,2,3"}
    prepare(environment, options)
    # vLLM's worker `stage * 2 + place` takes the visible device of its number.
    assert environment["CUDA_VISIBLE_DEVICES"] == "2,3,1,0"
    assert environment["VLLM_PP_LAYER_PARTITION"] == "12,18"
    assert environment["VLLM_WORKER_MULTIPROC_METHOD"] == "spawn"
    arguments = options.arguments()
    assert (arguments["tensor_parallel_size"], arguments["pipeline_parallel_size"]) == (2, 2)
    assert arguments["distributed_executor_backend"] == "mp"
    environment = {"VLLM_PP_LAYER_PARTITION": "1,2,3"}
    prepare(environment, staged([["cuda:5", "cuda:4"], 30]))
    assert environment["CUDA_VISIBLE_DEVICES"] == "5,4"
    assert "VLLM_PP_LAYER_PARTITION" not in environment


def test_workers_on_one_processor_share_its_threads() -> None:
    environment: dict[str, str] = {}
    prepare(environment, staged([["cpu", "cpu"], 30]))
    assert (environment["OMP_NUM_THREADS"], environment["VLLM_CPU_OMP_THREADS_BIND"]) == ("1", "nobind")
    alone: dict[str, str] = {}
    prepare(alone, EngineOptions.from_parameters(PARAMETERS))
    assert "VLLM_CPU_OMP_THREADS_BIND" not in alone
    assert EngineOptions.from_parameters(PARAMETERS).arguments()["distributed_executor_backend"] == "uni"


@pytest.mark.parametrize(
    ("stages", "what"),
    [
        ('[["cuda:0", 2]]', "is no list of"),
        ('[[["cuda:0"]]]', "is no list of"),
        ("[]", "without layers"),
        ('[[["cuda:0"], 0]]', "without layers"),
        ("[[[], 2]]", "different sizes, or none"),
        ('[[["cuda:0", "cuda:1"], 2], [["cuda:2"], 2]]', "different sizes"),
        ('[[["cuda:0"], 2], [["cpu"], 2]]', "mixes"),
        ('[[["cuda:0"], 2], [["cuda:0"], 2]]', "twice"),
    ],
)
def test_stages_that_vllm_cannot_form_are_refused(stages: str, what: str) -> None:
    with pytest.raises(ValueError, match=f"model config parameter stages .*{what}"):
        EngineOptions.from_parameters(PARAMETERS | {"stages": stages})


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
