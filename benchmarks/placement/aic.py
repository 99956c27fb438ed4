"""Our cost model beside AIConfigurator's estimates.

    UELLM_SHARED=../shared python -m benchmarks.placement.aic

The estimates are in `data/aic_estimates_static.csv` of the shared folder: AIConfigurator 0.12.0 (Apache-2.0), static
mode, vLLM. They are built from measured kernels, and no measurements of whole models. The first token is that of a
whole batch of prompts.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from uellm_deployer.adapters.gpu_catalogue import catalogue
from uellm_deployer.adapters.topology_file import read_topology
from uellm_deployer.domain.facts import model_shape
from uellm_deployer.domain.helr.cost import PER_SECOND, CopyPrice, Pricing, Span
from uellm_deployer.domain.placing import problem_of
from uellm_deployer.domain.plan import DeploymentSpec
from uellm_deployer.domain.sizing import Sizing
from uellm_deployer.domain.topology import DeviceKind

from benchmarks.placement.cases import SHARED, llama

FILE = SHARED / "aic_estimates_static.csv"
GPUS = {"h100_sxm": "H100 SXM", "h200_sxm": "H200 SXM", "a100_sxm": "A100 SXM", "l40s": "L40S"}
QWEN_3 = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 128, "vocab_size": 151936}
MODELS = {
    "Qwen/Qwen3-8B": llama(36, 4096, 12288, 32, 8, 40960) | QWEN_3,
    "Qwen/Qwen3-32B": llama(64, 5120, 25600, 64, 8, 40960) | QWEN_3,
}


@dataclass(frozen=True, slots=True)
class Point:
    """A model on some GPUs, with a batch of equal prompts and answers. Milliseconds."""

    model: str
    system: str
    tensor: int
    stages: int
    batch: int
    prompt_tokens: int
    output_tokens: int
    first_token: float
    output_token: float

    @property
    def request(self) -> float:
        """Until the last token."""
        return self.first_token + (self.output_tokens - 1) * self.output_token

    @property
    def name(self) -> str:
        """In a few words."""
        groups = f"TP{self.tensor}" * (self.tensor > 1) + f"PP{self.stages}" * (self.stages > 1)
        return f"{self.model.partition('/')[2]}, {GPUS[self.system]} {groups or 'alone'}"

    @property
    def load(self) -> str:
        """Rows and prompt tokens."""
        return f"{self.batch} x {self.prompt_tokens:,}"


def estimates() -> Iterator[Point]:
    """AIConfigurator's; OSError where the file is not there."""
    with FILE.open(newline="") as file:
        for row in csv.DictReader(file):
            tensor, stages, batch, prompt, output = (int(row[name]) for name in ("tp", "pp", "batch", "isl", "osl"))
            times = float(row["ttft_ms"]), float(row["tpot_ms"])
            yield Point(row["model"], row["system"], tensor, stages, batch, prompt, output, *times)


def predicted(point: Point) -> Point:
    """The same by our cost model: output tokens at the mean context of all steps."""
    prompts = _price(point, point.prompt_tokens)
    steps = _price(point, 2 * point.prompt_tokens + point.output_tokens)
    milli = PER_SECOND / 1e3
    return replace(point, first_token=prompts.prefill / milli, output_token=steps.latency / milli)


def _price(point: Point, context_tokens: int) -> CopyPrice:
    """With rows that are half way through so many tokens."""
    count = point.tensor * point.stages
    gpu = catalogue().get(GPUS[point.system], "gpu")
    machine = read_topology(_machine(count, gpu.nvlinks), gpu.name)
    spec = DeploymentSpec(point.model, "", "vllm", max_batch_rows=point.batch, context_tokens=context_tokens)
    sizing = Sizing.of(spec, model_shape(MODELS[point.model], (), ""), DeviceKind.GPU)
    problem = problem_of(sizing, machine.devices, machine)
    tokens = point.batch * point.prompt_tokens
    hop = tokens * sizing.shape.hidden_size * sizing.element_bytes
    load = replace(problem.workload, prompt_tokens=tokens, prefill_hop_bytes=hop)
    layers, each = len(problem.model.layers), len(problem.model.layers) // point.stages
    copy = [
        Span(tuple(range(stage * point.tensor, (stage + 1) * point.tensor)), first, first + each)
        for stage, first in enumerate(range(0, layers, each))
    ]
    return Pricing(replace(problem, workload=load)).price(copy)


def _machine(count: int, nvlinks: int) -> str:
    ids = ", ".join(f"g{number}" for number in range(count))
    link = f"NV{nvlinks}" if nvlinks else "PIX"
    pairs = f"links: [{{devices: [{ids}], class: {link}}}]" if count > 1 else "links: []"
    return f"devices: [{{id: g, count: {count}}}]\n{pairs}" if count > 1 else "devices: [{id: g0}]"


def table(points: list[Point]) -> str:
    """Ours and theirs, with errors."""
    lines = [
        "| case | rows x prompt | first token, ms: estimate | ours | | output token, ms: estimate | ours | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    errors: dict[str, list[float]] = {"first_token": [], "output_token": []}
    for point in points:
        ours, cells = predicted(point), list[Any]()
        for name, found in errors.items():
            theirs, own = getattr(point, name), getattr(ours, name)
            found.append(own / theirs - 1)
            cells += [f"{theirs:.4g}", f"{own:.4g}", f"{found[-1]:+.0%}"]
        lines.append(f"| {point.name} | {point.load} | {' | '.join(cells)} |")
    first, output = (f"{median(map(abs, found)):.1%}, {median(found):+.1%}" for found in errors.values())
    lines.append(f"| median: absolute, signed | | | | {first} | | | {output} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(list(estimates())))
