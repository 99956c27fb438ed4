"""Measures the local stack: Submit to dispatch when idle, resident memory, and how long a warm `uellm demo` takes.

Run with `make bench`. Figures go to stdout as JSON; they depend on the machine, so no test asserts them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import psutil

from uellm.client import Client, Endpoints
from uellm.local.model import default_model
from uellm.local.ports import Ports
from uellm.local.stack import StackOptions, background_stack, default_spec
from uellm.local.state import StackInfo


class Quiet:
    """Reports the stack's progress on stderr."""

    def step(self, text: str) -> None:
        """A step begins."""
        print(text, file=sys.stderr)

    def note(self, text: str) -> None:
        """Something worth knowing happened."""
        print(text, file=sys.stderr)


def submit_to_dispatch(info: StackInfo, queries: int) -> dict[str, float]:
    """Milliseconds from before the call of Submit to the dispatch of the batch, one query at a time."""
    waits = []
    parts = info.parts
    endpoints = Endpoints(parts["profiler"].endpoint, parts["scheduler"].endpoint, parts["deployer"].endpoint)
    with Client(endpoints) as client:
        client.generate("Say yes.", model=info.model, max_output_tokens=1)
        for number in range(queries):
            before = time.time()
            handle = client.submit(f"Say {number}.", model=info.model, max_output_tokens=1)
            outcome = client.outcome(handle)
            waits.append(1000 * (outcome.timing.dispatch_time.ToNanoseconds() / 1e9 - before))
    ordered = quantiles(waits, n=20)
    return {"queries": queries, "p50_ms": median(waits), "p95_ms": ordered[-1], "max_ms": max(waits)}


def resident_megabytes(info: StackInfo) -> dict[str, float]:
    """Resident memory of each part, its children not included, in MB."""
    return {name: psutil.Process(part.pid).memory_info().rss / 1e6 for name, part in info.parts.items()}


def demo_seconds() -> float:
    """Wall time of `uellm demo`, which starts a stack of its own."""
    begin = time.monotonic()
    subprocess.run([sys.executable, "-m", "uellm.cli.main", "demo"], check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - begin


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", type=int, default=40)
    parser.add_argument("--skip-demo", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        options = StackOptions(Path(folder), Ports.free(), default_spec(default_model()))
        with background_stack(options, Quiet()) as info:
            time.sleep(5)
            figures: dict[str, Any] = {"resident_mb_idle": resident_megabytes(info)}
            figures["submit_to_dispatch"] = submit_to_dispatch(info, arguments.queries)
    if not arguments.skip_demo:
        figures["warm_demo_seconds"] = demo_seconds()
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
