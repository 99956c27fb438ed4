"""Prints the figures of live runs as Markdown: `python benchmarks/live/tables.py FIGURES.json`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import mean
from typing import Any

COLUMNS = {
    "goodput_per_s": "answers in time a second",
    "attainment": "of those submitted with a deadline, in time",
    "late": "late",
    "rejected": "refused",
    "useful_tokens_per_s": "useful tokens/s",
    "tokens_per_s": "all tokens/s",
    "latency_p50_s": "latency p50, s",
    "latency_p95_s": "p95, s",
}
COMPARED = ("goodput_per_s", "attainment", "useful_tokens_per_s")


def runs_table(runs: dict[str, list[dict[str, Any]]]) -> str:
    """Means over the rounds, a line a server."""
    lines = ["| server | " + " | ".join(COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for server, rounds in runs.items():
        means = [mean(one[key] for one in rounds if one[key] is not None) for key in COLUMNS]
        lines.append(f"| `{server}` | " + " | ".join(f"{value:.3g}" for value in means) + " |")
    return "\n".join(lines)


def paired_table(paired: dict[str, dict[str, dict[str, float]]]) -> str:
    """How `uellm` compares with each other server: ratio of means, and the interval of the mean paired difference."""
    lines = ["| `uellm` against | " + " | ".join(COLUMNS[key] for key in COMPARED) + " |"]
    lines.append("|---" * (len(COMPARED) + 1) + "|")
    for server, figures in paired.items():
        cells = [
            f"{one['ratio']:.2f} x ({one['low']:+.3f} to {one['high']:+.3f})"
            for one in map(figures.get, COMPARED)
            if one
        ]
        lines.append(f"| `{server}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Print."""
    figures = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    print(f"Capacity: {figures['capacity_queries_per_s']:.3g} queries/s; {figures['queries']} queries a run.")
    for load, found in figures["loads"].items():
        rounds = len(next(iter(found["runs"].values())))
        print(f"\n### Load {load}, {rounds} rounds\n\n{runs_table(found['runs'])}\n\n{paired_table(found['paired'])}")


if __name__ == "__main__":
    main()
