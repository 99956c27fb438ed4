"""The simulator against the embedded stack: the same queries, live with the real model and played, side by side.

    python -m benchmarks.validation --write docs/evaluation/validation.json

For each engine a stack of its own is started. Queries one by one tell what surrounds a batch, and a burst of all
prompts the answers' lengths and the capacity. Then a seeded open-loop workload is served under each policy, and played
with its measured times of acceptance, its very predictions and deadlines, answer lengths as they came (as in the burst
where an answer was refused), and step times fitted to the *other* policies' runs; beside that with those of the run
itself, which leaves the errors of the queueing alone. Progress goes to stderr.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean, median
from typing import Any

import psutil
import uellm_profiler
from uellm_profiler.learning.dataset import part_of
from uellm_profiler.learning.prompts import read_prompts
from uellm_simulator.workload import CLASSES

from benchmarks.validation.live import LiveRun, Stack, Wanted, asking
from benchmarks.validation.played import Machine, compared, machine, play, rounded, told
from uellm.cost.steps import StepTime
from uellm.local.engine import Backend
from uellm.local.model import default_model
from uellm.local.ports import Ports
from uellm.local.stack import StackOptions, background_stack, default_spec
from uellm.local.state import StackInfo

DATA = Path(uellm_profiler.__path__[0]) / "learning" / "data"
ALONE = 5
"""Queries that are asked one by one."""


class Progress:
    """Reports on stderr."""

    def step(self, text: str) -> None:
        """A step begins."""
        print(text, file=sys.stderr, flush=True)

    note = step


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", nargs="+", type=Backend, default=list(Backend), choices=list(Backend))
    parser.add_argument("--policies", nargs="+", default=["fifo", "uellm"])
    parser.add_argument("--queries", type=int, default=36)
    parser.add_argument("--load", type=float, default=1.0, help="of what the burst was served with")
    parser.add_argument("--max-output-tokens", type=int, default=96)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--disturbed", action="store_true", help="say that other work ran on the machine")
    parser.add_argument("--write", type=Path, help="overwrite this file; default: stdout")
    options = parser.parse_args()
    report = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": _machine(),
        "disturbed": options.disturbed,
        "load_average": 0.0,
        "model": "SmolLM2-135M-Instruct, greedy, repetition penalty 1.15",
        "options": {key: getattr(options, key) for key in ("queries", "load", "max_output_tokens", "seed")},
        "engines": {str(engine): _measure(engine, options) for engine in options.engines},
    }
    report["load_average"] = os.getloadavg()[2]
    text = json.dumps(rounded(report), indent=1) + "\n"
    if options.write is None:
        print(text, end="")
        return
    options.write.parent.mkdir(parents=True, exist_ok=True)
    options.write.write_text(text, encoding="utf-8")


def _measure(engine: Backend, options: argparse.Namespace) -> dict[str, Any]:
    async def run(info: StackInfo) -> dict[str, Any]:
        async with asking(info) as stack:
            return await _validate(stack, options)

    with tempfile.TemporaryDirectory() as folder:
        spec = default_spec(default_model(), engine)
        chosen = StackOptions(Path(folder) / "stack", Ports.free(), spec, policy="fifo")
        with background_stack(chosen, Progress()) as info:
            return asyncio.run(run(info))


async def _validate(stack: Stack, options: argparse.Namespace) -> dict[str, Any]:
    prompts = _prompts(options.seed, options.queries)
    idle = await stack.run("fifo", [Wanted(0.0, one, 32) for one in prompts[:ALONE]], one_by_one=True)
    burst = await stack.run("fifo", [Wanted(0.0, one, options.max_output_tokens) for one in prompts])
    begin, end = min(one.accepted for one in burst.served), max(one.finished for one in burst.served)
    capacity = len(prompts) / (end - begin)
    lengths = {one.wanted.prompt: one.output_tokens for one in burst.served}
    alone = _alone_seconds(machine(stack.record, [burst], idle).step, burst)
    arrivals = _arrivals(options, prompts, options.load * capacity, alone)
    runs = [await stack.run(policy, arrivals) for policy in options.policies]
    found = []
    for run in runs:
        others = [one for one in runs if one is not run] or [burst]
        found.append(_compare(stack, run, lengths, *(machine(stack.record, some, idle) for some in (others, [run]))))
        Progress().step(json.dumps(rounded(found[-1])))
    return {"capacity_per_s": capacity, "median_answer_alone_s": alone, "runs": found}


def _compare(stack: Stack, live: LiveRun, lengths: dict[str, int], other: Machine, own: Machine) -> dict[str, Any]:
    """With the step times of the other runs, and with those of the run itself."""
    completed = [one for one in live.served if not one.refused]
    return {
        "policy": live.policy,
        "same_length_as_in_burst": fmean(one.output_tokens == lengths[one.wanted.prompt] for one in completed),
        "step_times_of_other_runs": compared(live, play(stack.record, live, lengths, other)),
        "own_step_times": compared(live, play(stack.record, live, lengths, own)),
        "machine": {"of_other_runs": told(other), "own": told(own)},
    }


def _prompts(seed: int, count: int) -> list[str]:
    """Some that the shipped predictor did not learn from."""
    held_out = [one.text for one in read_prompts(DATA / "prompts_own.jsonl") if part_of(one.key) == "test"]
    return random.Random(seed).sample(held_out, count)


def _alone_seconds(step: StepTime, burst: LiveRun) -> float:
    """What the median answer takes alone: the unit of the deadlines, as in the simulator."""
    prompt = median(one.prompt_tokens for one in burst.served)
    return step.alone_seconds(round(prompt), median(one.output_tokens for one in burst.served))


def _arrivals(options: argparse.Namespace, prompts: Sequence[str], rate: float, alone: float) -> list[Wanted]:
    """Poisson; each prompt once, its class drawn."""
    draw = random.Random(options.seed)
    arrivals, at = [], 0.0
    for prompt in prompts:
        (chosen,) = draw.choices(CLASSES, [one.share for one in CLASSES])
        arrivals.append(Wanted(at, prompt, options.max_output_tokens, chosen.name, chosen.completion * alone))
        at += draw.expovariate(rate)
    return arrivals


def _machine() -> str:
    memory = psutil.virtual_memory().total / 2**30
    return f"{psutil.cpu_count()} cores ({platform.machine()}), {memory:.0f} GiB of memory, no GPU"


if __name__ == "__main__":
    main()
