"""Play the grid and write the report.

    python -m benchmarks.evaluation [--full | --quick] [--jobs 2]

What was played before with the same traffic, scenario and code is not played again; Ctrl-C keeps what has ended.
Progress goes to stderr; the report to `docs/evaluation.{md,html,json}`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.evaluation import factors, story
from benchmarks.evaluation.cache import Cache, code_digest
from benchmarks.evaluation.content import Block, markdown
from benchmarks.evaluation.grid import QUICK, Point, Size, full_grid, main_grid, quick_grid
from benchmarks.evaluation.others import other_sections
from benchmarks.evaluation.page import page
from benchmarks.evaluation.results import Results
from benchmarks.evaluation.sweep import Played, Sweep
from benchmarks.evaluation.traces import TRACE_NAMES, described, shared_data, source_of

ROOT = Path(__file__).resolve().parents[2]
TITLE = "Evaluation"
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    options = _options(arguments)
    size, grid = (QUICK, quick_grid) if options.quick else (Size(), full_grid if options.full else main_grid)
    points = grid(size)
    sources = {name: source_of(name, options.data) for name in TRACE_NAMES}
    code, cache = code_digest(), Cache(options.cache)
    sweep = Sweep(sources, cache, code, options.jobs)
    try:
        played = sweep.play(points, size)
        others = [] if options.quick else other_sections(cache, options.jobs, options.data)
    except KeyboardInterrupt:
        sweep.console.print("interrupted; what has ended is kept, and the same command goes on from there")
        return INTERRUPTED
    told = [described(name, options.data) for name in TRACE_NAMES]
    blocks = report(played, told, others)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "evaluation.md").write_text(f"# {TITLE}\n\n{markdown(blocks)}", encoding="utf-8")
    (options.out / "evaluation.html").write_text(page(TITLE, blocks), encoding="utf-8")
    (options.out / "evaluation.json").write_text(raw(played, code, told), encoding="utf-8")
    sweep.console.print(f"written: {options.out}/evaluation.md, .html and .json")
    return 0


def report(played: Played, sources: Sequence[str], others: Sequence[Block]) -> list[Block]:
    """The whole content."""
    results = Results(played.runs)
    return [
        *story.introduction(played.size, len(played.runs), sources),
        *story.goal_list(results),
        *story.load_sweep(results),
        *story.outcomes(results),
        *story.times(results),
        *story.timelines(played.timelines),
        *factors.sensitivity(results),
        *factors.confidences(results),
        *factors.yardsticks(results),
        *others,
        *story.method(results, played.capacities),
    ]


def raw(played: Played, code: str, sources: Sequence[str]) -> str:
    """Every figure of every run, a line each."""
    head = {"code": code, "sources": list(sources), "size": asdict(played.size)}
    capacities = [{**_varied(point), "requests_per_s": rate} for point, rate in sorted(played.capacities.items())]
    runs = [{"point": asdict(point), **played.runs[point]} for point in sorted(played.runs)]
    lines = ",\n".join(json.dumps(_rounded(run), separators=(",", ":")) for run in runs)
    about = json.dumps({**head, "capacities": _rounded(capacities)}, separators=(",", ":"))
    return f'{about[:-1]},"runs":[\n{lines}\n]}}\n'


def _varied(point: Point) -> dict[str, Any]:
    return {"trace": point.trace, "engine": point.engine, "gpus": point.gpus}


def _rounded(content: Any) -> Any:
    """Five significant digits: what is beyond is noise, and makes the file large."""
    match content:
        case float():
            return float(f"{content:.5g}")
        case dict():
            return {key: _rounded(value) for key, value in content.items()}
        case list() | tuple():
            return [_rounded(value) for value in content]
    return content


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.evaluation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--full", action="store_true", help="every policy at every load: hours")
    which.add_argument("--quick", action="store_true", help="a few tiny runs, to see that all works")
    parser.add_argument("--jobs", type=int, default=0, help="processes; 0: as many as there are cores")
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="folder of the report")
    parser.add_argument("--cache", type=Path, default=ROOT / ".uellm" / "evaluation", help="folder of the results")
    parser.add_argument("--data", type=Path, default=shared_data(), help="folder of the traces")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
