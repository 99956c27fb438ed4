"""The committed figures as a section of the evaluation page: `python -m benchmarks.validation.section`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

COMMITTED = Path(__file__).resolve().parents[2] / "docs" / "evaluation" / "validation.json"
TITLE = "The simulator against the live stack"
TARGET = 0.1
ENGINES = {"hf": "static (transformers)", "vllm": "continuous (vLLM)"}
FITS = {"step_times_of_other_runs": "the other run", "own_step_times": "this run"}
HEADER = (
    "engine",
    "policy",
    "step times fitted to",
    "makespan, s: live",
    "simulated",
    "completion p50, s: live",
    "simulated",
    "p95, s: live",
    "simulated",
    "query by query: median error",
    "p95",
    "bias",
    "first token: median error",
    "kept: live",
    "simulated",
    "same fate",
)
Cell = str | float | None


def committed() -> dict[str, Any]:
    """The section of the figures that are committed."""
    return section(json.loads(COMMITTED.read_text("utf-8")))


def section(report: dict[str, Any]) -> dict[str, Any]:
    """Title, notes, header and rows: what the evaluation page is made of."""
    options = report["options"]
    disturbed = " Other work disturbed the machine meanwhile: measure anew." if report["disturbed"] else ""
    how = (
        f"{report['date']}, {report['machine']}; {report['model']}. {options['queries']} queries a run, Poisson, at "
        f"{options['load']:g} of capacity, at most {options['max_output_tokens']} tokens each.{disturbed}"
    )
    what = (
        "The simulator played the measured times of acceptance, the predictions that the profiler gave, the deadlines, "
        "and answer lengths as they came. Step times were fitted to the run under the other policy, or to the very "
        "run, which leaves the errors of the queueing alone. Errors are (simulated - live) / live; wanted: "
        f"{TARGET:.0%}. Kept: deadlines, of the queries submitted. Same fate: refused, in time or late in both."
    )
    notes = (how, what)
    rows = list(_rows(report["engines"]))
    return {"title": TITLE, "notes": notes, "header": HEADER, "rows": rows}


def _rows(engines: dict[str, Any]) -> Iterator[tuple[Cell, ...]]:
    for engine, found in engines.items():
        for run in found["runs"]:
            for fit, name in FITS.items():
                yield ENGINES[engine], f"`{run['policy']}`", name, *_figures(run[fit])


def _figures(one: dict[str, Any]) -> Iterator[Cell]:
    completion = one["completion"]
    for pair in (one["makespan_s"], completion["p50_s"], completion["p95_s"]):
        yield from (pair["live"], pair["simulated"])
    yield from (f"{completion[name]:.1%}" for name in ("median_abs_error", "p95_abs_error"))
    yield f"{completion['bias']:+.1%}"
    yield f"{one['first_token']['median_abs_error']:.1%}"
    yield from (f"{one['attainment'][side]:.1%}" for side in ("live", "simulated"))
    yield f"{one['same_fate']:.0%}"


def markdown(content: dict[str, Any]) -> str:
    """A section by itself."""
    lines = [f"## {content['title']}", "", *(line for note in content["notes"] for line in (note, ""))]
    lines += [_line(content["header"]), "|" + " --- |" * len(content["header"])]
    lines += [_line([_shown(cell) for cell in row]) for row in content["rows"]]
    return "\n".join(lines) + "\n"


def _shown(cell: Cell) -> str:
    return f"{cell:.3g}" if isinstance(cell, float) else str(cell or "-")


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Print the committed ones."""
    print(markdown(committed()), end="")


if __name__ == "__main__":
    main()
