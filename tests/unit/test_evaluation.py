"""The sweep: its grid, what it keeps, and the report of a tiny one that was really played."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Mapping
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from uellm_simulator.arrivals import OnOff
from uellm_simulator.runs import Source
from uellm_simulator.scenario import Scenario
from uellm_simulator.workload import Arrival

from benchmarks.evaluation import playing
from benchmarks.evaluation.__main__ import main
from benchmarks.evaluation.cache import Cache, code_digest
from benchmarks.evaluation.content import Heading, Points, Table, Text, html, markdown
from benchmarks.evaluation.factors import yardsticks
from benchmarks.evaluation.goals import AT_OVERLOAD, LEADS, MISSES, WITHIN, goals, sigma
from benchmarks.evaluation.grid import (
    CLAIRVOYANT,
    MAIN,
    OURS,
    STRONG,
    Point,
    Size,
    full_grid,
    known_policies,
    main_grid,
)
from benchmarks.evaluation.others import section
from benchmarks.evaluation.results import Results
from benchmarks.evaluation.svg import linear
from benchmarks.evaluation.sweep import Sweep
from benchmarks.evaluation.traces import STATISTICS, TENANTS, source_of, with_tenants

SOURCES = {"conversation": Source(trace=tuple(Arrival(0.4 * n, 40, 1 + 7 * n % 50) for n in range(40)))}
SIZE = Size(requests=20, warm_up=4, seeds=2)
POINTS = [Point(policy=policy, seed=seed) for policy in (OURS, "fifo") for seed in (0, 1)]


class Counting:
    """Plays, and counts; stops at a number of runs as Ctrl-C does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, stop_at: int = 0) -> None:
        self.runs = 0
        self._stop_at = stop_at
        tasks = {name: self._counted(task) for name, task in playing.TASKS.items()}
        monkeypatch.setattr("benchmarks.evaluation.sweep.TASKS", tasks)

    def _counted(self, task: playing.Task) -> playing.Task:
        def counted(source: Source, scenario: Scenario, full: float) -> Any:
            if task is playing.measure_run:
                self.runs += 1
                if self.runs == self._stop_at:
                    raise KeyboardInterrupt
            return task(source, scenario, full)

        return counted


def sweep(folder: Path, code: str = "code", jobs: int = 1) -> Sweep:
    return Sweep(SOURCES, Cache(folder), code, jobs)


# --- the grid ---


def test_the_main_grid_has_at_most_600_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    everyone = dict.fromkeys([*known_policies(), CLAIRVOYANT])
    monkeypatch.setattr("benchmarks.evaluation.grid.POLICIES", everyone)
    points = main_grid(Size())
    assert 500 < len(points) <= 600
    assert len(set(points)) == len(points)
    assert set(points) <= set(full_grid(Size()))
    assert {point.seed for point in points} == set(range(5))


def test_the_main_grid_has_what_the_goals_ask_for() -> None:
    points = {point.cell for point in main_grid(Size())}
    for trace in ("conversation", "code"):
        for engine in ("static", "continuous"):
            assert {Point(trace, engine, 1.2, policy) for policy in MAIN} <= points
            assert {Point(trace, engine, load, policy) for load in (0.8, 1.0, 1.5) for policy in STRONG} <= points
    assert {Point(confidence=confidence) for confidence in (0.5, 0.9, 0.99)} <= points
    assert {Point(gpus=gpus) for gpus in (1, 4, 8)} <= points


def test_feedback_comes_early() -> None:
    points = main_grid(Size())
    assert [point.seed for point in points] == sorted(point.seed for point in points)
    assert points[0].engine == "static"


# --- what is kept ---


def test_what_was_played_is_not_played_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = sweep(tmp_path).play(POINTS, SIZE)
    counting = Counting(monkeypatch)
    assert sweep(tmp_path).play(POINTS, SIZE) == first
    assert counting.runs == 0


def test_the_cores_together_find_what_one_finds(tmp_path: Path) -> None:
    alone = sweep(tmp_path / "alone").play(POINTS, SIZE)
    assert sweep(tmp_path / "together", jobs=2).play(POINTS, SIZE) == alone
    files = [
        {path.relative_to(tmp_path / folder): path.read_bytes() for path in (tmp_path / folder).rglob("*.json")}
        for folder in ("alone", "together")
    ]
    assert files[0] == files[1]


@pytest.mark.parametrize("change", ["code", "size", "scenario", "arrivals"])
def test_other_content_is_played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    sweep(tmp_path).play(POINTS[:1], SIZE)
    other = sweep(tmp_path, code="other code") if change == "code" else sweep(tmp_path)
    if change == "arrivals":
        trace = (*SOURCES["conversation"].trace[:-1], Arrival(16.0, 41, 9))
        other = Sweep({"conversation": Source(trace=trace)}, Cache(tmp_path), "code", 1)
    point = replace(POINTS[0], tightness=2.0) if change == "scenario" else POINTS[0]
    counting = Counting(monkeypatch)
    other.play([point], replace(SIZE, requests=19) if change == "size" else SIZE)
    assert counting.runs == 1


def test_an_interrupted_sweep_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Counting(monkeypatch, stop_at=3)
    with pytest.raises(KeyboardInterrupt):
        sweep(tmp_path).play(POINTS, SIZE)
    monkeypatch.undo()
    counting = Counting(monkeypatch)
    sweep(tmp_path).play(POINTS, SIZE)
    assert counting.runs == len(POINTS) - 2


def test_a_torn_result_is_played_again(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.keep("abcd", {"a": 1})
    (path,) = tmp_path.rglob("*.json")
    path.write_text('{"a":')
    assert cache.find("abcd") is None


def test_the_digest_is_of_the_content_of_the_code(tmp_path: Path) -> None:
    for folder in ("one", "same"):
        (tmp_path / folder / "code").mkdir(parents=True)
        (tmp_path / folder / "code" / "a.py").write_text("a = 1")
    one, same = ([tmp_path / folder / "code"] for folder in ("one", "same"))
    assert code_digest(one) == code_digest(same)
    (tmp_path / "same" / "code" / "a.py").write_text("a = 2")
    assert code_digest(one) != code_digest(same)
    (tmp_path / "same" / "code" / "a.py").rename(tmp_path / "same" / "code" / "b.py")
    assert code_digest(one) != code_digest(same)


# --- the traces ---


@pytest.mark.parametrize("name", list(STATISTICS))
def test_a_stand_in_has_the_statistics_of_its_trace(name: str, tmp_path: Path) -> None:
    told = STATISTICS[name]
    drawn = told.drawn(40_000)
    gaps = [after.seconds - before.seconds for before, after in pairwise(drawn)]
    assert len(drawn) / drawn[-1].seconds == pytest.approx(told.rate, rel=0.1)
    wanted = {"conversation": 1.094, "code": 13.15}[name]
    assert statistics.stdev(gaps) / statistics.fmean(gaps) == pytest.approx(wanted, rel=0.12)
    if isinstance(told.gaps, OnOff):
        assert sum(gap for gap in gaps if gap > 5) / sum(gaps) == pytest.approx(0.72, abs=0.05)
    for lengths, of in (
        ([one.prompt_tokens for one in drawn], told.prompts),
        ([one.output_tokens for one in drawn], told.answers),
    ):
        assert statistics.median(lengths) == pytest.approx(of.median, rel=0.04)
        assert of.least <= min(lengths) <= max(lengths) <= of.most
    # Quartiles: the ends are cut.
    low, _, high = statistics.quantiles([math.log(one.output_tokens) for one in drawn], n=4)
    assert (high - low) / 1.349 == pytest.approx(told.answers.spread, rel=0.05)
    played = source_of(name, tmp_path).trace
    assert len(played) == told.requests
    assert [one.output_tokens for one in played[:50]] == [one.output_tokens for one in told.drawn(50)]


def test_tenants_differ_in_what_they_ask() -> None:
    lengths: dict[str, list[int]] = {}
    for one in with_tenants(STATISTICS["conversation"].drawn(4_000)):
        lengths.setdefault(one.tenant, []).append(one.output_tokens)
    assert len(lengths) == TENANTS
    medians = [statistics.median(lengths[tenant]) for tenant in sorted(lengths)]
    assert medians == sorted(medians)
    assert medians[-1] > 3 * medians[0]


# --- goals ---


def run_of(goodput: float, late: float = 0.0, in_time: float = 1.0) -> Mapping[str, Any]:
    return {"goodput": goodput, "attainment": {"requests": 1_000, "in_time": in_time, "late": late, "refused": 0.0}}


def results_of(goodputs: Mapping[str, tuple[float, ...]]) -> Results:
    return Results(
        {
            Point(load=1.2, policy=policy, seed=seed): run_of(value)
            for policy, values in goodputs.items()
            for seed, value in enumerate(values)
        }
    )


def kept(results: Results) -> dict[str, bool | None]:
    return {goal.aim: goal.kept for goal in goals(results)}


def test_goals_are_kept_only_where_the_interval_says_so() -> None:
    clear = results_of({OURS: (2.0, 2.1, 2.2), "fifo": (1.0, 1.1, 1.2), CLAIRVOYANT: (2.2, 2.3, 2.4)})
    assert kept(clear) == {LEADS: True, AT_OVERLOAD: True, WITHIN: True}
    unclear = results_of({OURS: (2.0, 2.1, 2.2), "fifo": (1.9, 2.2, 2.0), CLAIRVOYANT: (3.0, 3.0, 3.0)})
    assert kept(unclear) == {LEADS: False, AT_OVERLOAD: False, WITHIN: False}


def test_a_ratio_to_feasibility_aware_baselines_is_only_reported() -> None:
    (told,) = [goal for goal in goals(results_of({OURS: (2.0, 2.0), "saber": (1.9, 1.9)})) if goal.kept is None]
    assert "1.05 x `saber`" in told.measured


@pytest.mark.parametrize(("late", "is_kept"), [(0.1 + 1.9 * sigma(0.9, 2_000), True), (0.12, False)])
def test_misses_are_counted_of_those_dispatched_over_all_seeds(late: float, is_kept: bool) -> None:
    runs = {Point(seed=seed): run_of(1.0, late, 1 - late) for seed in (0, 1)}
    (goal,) = [goal for goal in goals(Results(runs)) if goal.aim == MISSES]
    assert goal.kept is is_kept


# --- how it looks ---


@given(st.floats(1e-6, 1e7))
def test_an_axis_has_few_round_ticks_and_shows_all(most: float) -> None:
    axis = linear("", most)
    assert axis.low == 0
    assert 2 <= len(axis.ticks) <= 6
    assert most * (1 - 1e-9) <= axis.high <= 2.5 * most


def test_content_is_escaped_and_marked_up() -> None:
    blocks = [
        Heading("A < B"),
        Text("`x` is **1 < 2**, [see](y.md)"),
        Points(["*one*"]),
        Table(["", "n"], [["a&b", "1"]]),
    ]
    page = html(blocks)
    shown = [
        "A &lt; B",
        "<code>x</code>",
        "<strong>1 &lt; 2</strong>",
        '<a href="y.md">see</a>',
        "<em>one</em>",
        "a&amp;b",
    ]
    assert [part for part in shown if part not in page] == []
    assert "| a&b | 1 |" in markdown(blocks)


def test_a_section_of_another_experiment_becomes_a_table() -> None:
    rows = [["a", 1234.5, None], ["b", math.nan, "x"]]
    content = {"title": "Its title", "notes": ["Its note."], "header": ["", "one", "two"], "rows": rows}
    text = markdown(section(content))
    assert text.startswith("### Its title\n\nIts note.\n\n")
    assert "| a | 1,234 | - |\n| b | - | x |" in text


def test_ours_stands_beside_clairvoyance_and_the_bound() -> None:
    results = Results(
        {
            Point(load=1.2): run_of(2.0),
            Point(load=1.2, policy=CLAIRVOYANT): {**run_of(2.2), "bound": 4.0},
            Point(load=0.8): run_of(2.0),
            Point(load=0.8, policy=CLAIRVOYANT): {**run_of(2.0), "bound": None},
        }
    )
    text = markdown(yardsticks(results))
    assert "| conversation, static | 1.2 | 2 | 2.2 | 1.10 | 4 | 50.0% |" in text
    assert "| conversation, static | 0.8 | 2 | 2 | 1.00 |  |  |" in text


class Tags(HTMLParser):
    """Raises AssertionError for a tag that is not closed."""

    VOID = ("meta", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        assert not any(value and value.startswith(("http:", "https:", "//")) for _, value in attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_tiny_sweep_becomes_a_report(tmp_path: Path) -> None:
    arguments = ["--quick", "--jobs", "1", "--cache", str(tmp_path / "cache"), "--data", str(tmp_path)]
    for folder in ("first", "again"):
        assert main([*arguments, "--out", str(tmp_path / folder)]) == 0
    first = {path.name: path.read_bytes() for path in (tmp_path / "first").iterdir()}
    assert first == {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()}
    raw = json.loads(first["evaluation.json"])
    ours = [
        run["goodput"]
        for run in raw["runs"]
        if (run["point"]["policy"], run["point"]["load"], run["point"]["trace"]) == (OURS, 1.2, "conversation")
    ]
    assert len(ours) == 2
    text = first["evaluation.md"].decode()
    row = next(line for line in text.splitlines() if line.startswith(f"| `{OURS}` |"))
    assert float(row.split("|")[3]) == pytest.approx(statistics.fmean(ours), rel=0.01)
    assert not re.search(r"\b(nan|inf)\b", text)
    tags = Tags()
    page = first["evaluation.html"].decode()
    tags.feed(page)
    assert not tags.open
    assert "script" not in tags.seen
    assert tags.seen.count("svg") >= 6
    assert not re.search(r"\b(nan|inf)\b", page)


def test_ctrl_c_says_what_is_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Counting(monkeypatch, stop_at=2)
    folders = ["--cache", str(tmp_path / "cache"), "--data", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main(["--quick", "--jobs", "1", *folders]) == 130
    assert "goes on from there" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()
