"""Measures how long the demo's prompts are answered by the model that `uellm up` serves, and how fast.

    python benchmarks/demo_lengths.py [--limit TOKENS]

All prompts are submitted at once, with their own limits or with one for all. One JSON line a prompt goes to stdout, a
summary to stderr. Use it to choose prompts: their lengths are to spread, and few are to reach their limit.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import quantiles

from uellm.cli.demo.workload import DemoPrompt, read_prompts
from uellm.client import AsyncClient, Endpoints, Outcome
from uellm.local.model import default_model
from uellm.local.ports import Ports
from uellm.local.stack import StackOptions, background_stack, default_spec
from uellm.v1.query_pb2 import FINISH_REASON_LENGTH


class Stderr:
    """Reports the stack's progress."""

    def step(self, text: str) -> None:
        """A step begins."""
        print(text, file=sys.stderr)

    def note(self, text: str) -> None:
        """Something worth knowing happened."""
        print(text, file=sys.stderr)


async def answer_all(endpoints: Endpoints, prompts: list[DemoPrompt], limit: int | None) -> list[Outcome]:
    """The outcome of each prompt."""
    async with AsyncClient(endpoints) as client:
        return await asyncio.gather(
            *(client.generate(one.prompt, max_output_tokens=limit or one.max_output_tokens) for one in prompts)
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, help="longest answer for all prompts instead of their own limits")
    arguments = parser.parse_args()
    prompts = read_prompts()
    with tempfile.TemporaryDirectory() as folder:
        options = StackOptions(Path(folder), Ports.free(), default_spec(default_model()))
        with background_stack(options, Stderr()) as info:
            endpoints = Endpoints(*(info.parts[name].endpoint for name in ("profiler", "scheduler", "deployer")))
            began = time.monotonic()
            outcomes = asyncio.run(answer_all(endpoints, prompts, arguments.limit))
            seconds = time.monotonic() - began
    cut = [outcome.finish_reason == FINISH_REASON_LENGTH for outcome in outcomes]
    for prompt, outcome, is_cut in zip(prompts, outcomes, cut, strict=True):
        record = {"id": prompt.id, "tokens": outcome.output_tokens, "cut": is_cut, "text": outcome.text}
        print(json.dumps(record, ensure_ascii=False))
    lengths = [outcome.output_tokens for outcome in outcomes]
    deciles = quantiles(lengths, n=10, method="inclusive")
    print(
        f"{len(prompts)} prompts, {sum(lengths):,} tokens in {seconds:.0f} s ({sum(lengths) / seconds:.1f} tokens/s); "
        f"p10 {deciles[0]:.0f}, median {deciles[4]:.0f}, p90 {deciles[8]:.0f}; {sum(cut) / len(cut):.0%} cut off",
        file=sys.stderr,
    )


if __name__ == "__main__":
    main()
