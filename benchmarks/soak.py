"""Hurts a stack again and again while it serves, and checks every promise after each round.

Real Redis, real Triton with a tiny random model, two schedulers and a profiler, each a process of its own. A round is
300 queries with one to three faults in their midst, drawn from a seed: SIGKILL of the owner, of Triton, of the model's
process, of Redis; SIGSTOP and SIGCONT of the owner and of Redis. Then: one outcome each, deltas equal to texts, nothing
left on the queue, the watchers saw all of it once (`tests/support/traffic.py`). Ends after `--rounds` or `--seconds`,
or at the first promise that was broken. Run with `.venv/bin/python benchmarks/soak.py`; prints JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.support.faults import FaultyStack, faulty_stack
from tests.support.traffic import run_through
from uellm.local.process import free_port
from uellm.local.redis import EmbeddedRedis

FAULTS = ("kill_scheduler", "pause_scheduler", "kill_triton", "kill_stub", "kill_redis", "pause_redis")
MOST_FAULTS = 3
LONGEST_PAUSE_SECONDS = 2.0
LOG_LINES = 60
TRACEBACK_CHARACTERS = 1_500


async def one_round(stack: FaultyStack, number: int, choice: random.Random, queries: int) -> dict[str, Any]:
    """One round; raises AssertionError or TimeoutError where a promise was broken."""
    faults = choice.choices(FAULTS, k=choice.randint(1, MOST_FAULTS))
    print(f"round {number}: {', '.join(faults)}", file=sys.stderr)
    pauses = [choice.uniform(0, LONGEST_PAUSE_SECONDS) for _ in faults]

    async def hurt() -> None:
        for fault, pause in zip(faults, pauses, strict=True):
            await getattr(stack, fault)()
            await asyncio.sleep(pause)

    begin = time.monotonic()
    running, outcomes = await run_through(
        stack, hurt, queries=queries, tokens=choice.choice((8, 24, 60)), prefix=f"r{number}", bound_seconds=180
    )
    attempts = Counter(outcome.dispatch_count for outcome in outcomes)
    return {
        "faults": faults,
        "seconds": round(time.monotonic() - begin, 1),
        "attempts": dict(sorted(attempts.items())),
        "submits_tried_again": len(running.codes),
        "watches_resumed": sum(len(seen.codes) for seen in running.watched.values()),
    }


def ends_of_logs(folder: Path) -> list[str]:
    """What every process said last."""
    logs = sorted(folder.rglob("*.log"))
    return [f"--- {log.name}\n" + "\n".join(log.read_text(errors="replace").splitlines()[-LOG_LINES:]) for log in logs]


def soak(rounds: int, seconds: float, seed: int, queries: int) -> dict[str, Any]:
    """All rounds, within the time."""
    choice, done, broken = random.Random(seed), [], ""
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with faulty_stack(folder, EmbeddedRedis(folder / "redis", free_port())) as stack:
            for number in range(rounds):
                if time.monotonic() >= end or broken:
                    break
                try:
                    done.append(asyncio.run(one_round(stack, number, choice, queries)))
                except Exception:  # noqa: BLE001  (reported)
                    broken = traceback.format_exc()
                    print(*ends_of_logs(folder), sep="\n", file=sys.stderr)
            crashes = stack.triton_crashes
            tracebacks = [line for line in stack.logs().splitlines() if "Traceback" in line]
    return {
        "seed": seed,
        "rounds": len(done),
        "queries": queries * len(done),
        "faults": dict(Counter(fault for one in done for fault in one["faults"])),
        "broken": broken,
        "triton_crashes": crashes,
        "tracebacks_in_logs": [line[-TRACEBACK_CHARACTERS:] for line in tracebacks],
        "load_average": round(os.getloadavg()[0], 1),
        "each": done,
    }


def main() -> None:
    """Soak and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1_000)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--queries", type=int, default=300)
    arguments = parser.parse_args()
    report = soak(arguments.rounds, arguments.seconds, arguments.seed, arguments.queries)
    print(json.dumps(report, indent=2))
    sys.exit(1 if report["broken"] else 0)


if __name__ == "__main__":
    main()
