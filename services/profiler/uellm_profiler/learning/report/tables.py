"""The card as tables, for the terminal and for Markdown."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table as RichTable

from uellm_profiler.learning.report.floor import ANOTHER
from uellm_profiler.learning.report.metrics import METRICS, TOKENS

BEGIN, END = "<!-- {name}: begin -->", "<!-- {name}: end -->"
_BLOCKS = {
    "order": ("tau", "tau_known", "tau_mean", "top_decile_recall"),
    "error in tokens": ("mae", "median_error", "log_ratio", "within_50", "within_100"),
    "length classes": ("accuracy", "macro_f1", "tail_recall"),
    "distribution": ("log_likelihood", "crps", "pinball_p50", "pinball_p90", "pinball_p99"),
    "coverage of p90": ("coverage_p90", "coverage_p90_uncut", "coverage_p90_given_uncut", "p90_excess"),
    "coverage of p99": ("coverage_p99", "coverage_p99_uncut", "coverage_p99_given_uncut"),
    "too low and too high": ("under_share", "under_tokens", "over_share", "over_tokens"),
}
_SUMMARY = ("tau", "log_ratio", "accuracy", "macro_f1", "tail_recall", "pinball_p90", "coverage_p90_given_uncut")
_FLOOR_METRICS = ("mae", "log_ratio", "within_100", "accuracy")
_NONE = "\N{EN DASH}"
_NUMERIC = re.compile(rf"$|{_NONE}$|[+-]?\d[\d,.]*%?( \(.*\))?$")


@dataclass(frozen=True, slots=True)
class Table:
    """Cells of text, without markup."""

    title: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]

    def is_numeric(self, column: int) -> bool:
        """Whether a column holds numbers, which are put to the right."""
        return column > 0 and all(_NUMERIC.match(row[column]) for row in self.rows)


def tables(card: Mapping[str, Any]) -> list[Table]:
    """All tables of a card."""
    found = [_about(card), _entrants(card)]
    for section in card["sections"]:
        found += _section(section, card["about"]["bucket_edges_tokens"])
    found += _floor(card["noise_floor"]) if card["noise_floor"] else []
    for kind in ("source", "family"):
        found.append(_groups(f"by {kind}", card["groups"][kind], card["groups"][f"{kind}_left_out"]))
    if card["collections"]:
        found.append(_groups("prompts of other collections", card["collections"], ()))
    found.append(_serving(card["serving"]))
    if card["skipped"]:
        found.append(Table("left out", ("section", "why"), list(card["skipped"].items())))
    return found


def summary(card: Mapping[str, Any]) -> Table:
    """The most telling metrics of the first section."""
    section = card["sections"][0]
    rows = [[entrant, *_cells(measured, _SUMMARY)] for entrant, measured in section["metrics"].items()]
    title = f"{section['name']}, {section['prompts']:,} held-out prompts, {section['cut_share']:.1%} of the answers cut"
    return Table(title, ("", *(METRICS[name].title for name in _SUMMARY)), rows)


def curve_table(title: str, x_title: str, points: Sequence[Mapping[str, Any]]) -> Table:
    """A learning or cut curve (see `curves`), one row a point."""
    extra = sorted({key for point in points for key in point} - {"name", "x", "tau", "tau_low", "tau_high"})
    rows = [
        [
            str(point["name"]),
            f"{point['x']:,}",
            _estimate([point["tau"], point["tau_low"], point["tau_high"]], 3),
            *(_plain(point.get(key)) for key in extra),
        ]
        for point in points
    ]
    return Table(title, ("", x_title, "tau-b", *extra), rows)


def latency_table(measured: Mapping[str, Any]) -> Table:
    """Timings (see `latency`), one row a predictor, state of the machine, batch and prompt length."""
    rows = [
        [
            model["name"],
            timing["state"],
            str(timing["batch"]),
            f"{timing['prompt_tokens']:,}",
            f"{timing['p50_ms']:.1f}",
            f"{timing['p99_ms']:.1f}",
            f"{timing['prompts_per_second']:.0f}",
        ]
        for model in measured["models"]
        for timing in model["timings"]
    ]
    headers = ("", "machine", "batch", "prompt tokens", "p50, ms", "p99, ms", "prompts/s")
    return Table(f"latency on {measured['machine']}", headers, rows)


def to_markdown(shown: Sequence[Table]) -> str:
    """Tables under bold titles."""
    blocks = []
    for table in shown:
        align = ["--:" if table.is_numeric(i) else ":--" for i in range(len(table.headers))]
        lines = [[cell.replace("|", "\\|") for cell in row] for row in (table.headers, align, *table.rows)]
        blocks.append(f"**{table.title}**\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join(blocks) + "\n"


def to_rich(shown: Sequence[Table]) -> RenderableType:
    """For the terminal."""
    rendered = []
    for table in shown:
        drawn = RichTable(title=escape(table.title), title_justify="left", title_style="bold", box=None, pad_edge=False)
        for i, header in enumerate(table.headers):
            drawn.add_column(escape(header), justify="right" if table.is_numeric(i) else "left", overflow="fold")
        for row in table.rows:
            drawn.add_row(*map(escape, row))
        rendered.append(drawn)
    return Group(*(part for drawn in rendered for part in (drawn, "")))


def insert(document: str, name: str, content: str) -> str:
    """The document with other content between the markers of this name. Raises ValueError where they are missing."""
    begin, end = BEGIN.format(name=name), END.format(name=name)
    before, found, rest = document.partition(begin)
    _, found_end, after = rest.partition(end)
    if not found or not found_end:
        raise ValueError(f"the document needs the lines {begin} and {end}")
    return f"{before}{begin}\n\n{content.strip()}\n\n{end}{after}"


def _about(card: Mapping[str, Any]) -> Table:
    about = card["about"]
    rows = [
        ("served model", about["served_model"]),
        ("decoding", "; ".join(about["decodings"])),
        ("limit", f"{', '.join(f'{limit:,}' for limit in about['limits_tokens'])} tokens"),
        ("test", _counts(about, "test")),
        ("training", _counts(about, "train")),
        ("split", about["split"]),
        ("point prediction", f"{about['point_prediction']}, as whole tokens"),
        ("intervals", about["interval"]),
    ]
    return Table("what was measured", ("", "value"), rows)


def _counts(about: Mapping[str, Any], part: str) -> str:
    cut = about[f"{part}_cut_share"]
    share = "" if cut is None else f", {cut:.1%} of them cut at the limit"
    return f"{about[f'{part}_prompts']:,} prompts, {about[f'{part}_rows']:,} answers{share}"


def _entrants(card: Mapping[str, Any]) -> Table:
    rows = [
        [name, _plain(entrant["parameters"]), _plain(entrant["trained_parameters"]), entrant["description"]]
        for name, entrant in card["entrants"].items()
    ]
    return Table("predictors", ("", "parameters", "of them trained", "what it is"), rows)


def _section(section: Mapping[str, Any], edges: Sequence[int]) -> list[Table]:
    cut, where = section["cut_share"], section["name"]
    counts = f"{section['prompts']:,} prompts, {section['rows']:,} answers, {cut:.1%} cut"
    found = []
    for title, names in _BLOCKS.items():
        rows = [[entrant, *_cells(measured, names)] for entrant, measured in section["metrics"].items()]
        note = f"; {counts}" if title == "order" else ""
        if title == "length classes":
            majority = _estimate(section["majority_accuracy"], 3)
            note = f"; edges {', '.join(map(str, edges))} tokens; always the most frequent class: {majority}"
        found.append(Table(f"{where}: {title}{note}", ("", *(METRICS[name].title for name in names)), rows))
    compared = section["tau_differences"]
    if compared:
        baselines = list(next(iter(compared.values())))
        rows = [[name, *(_estimate(row[one], 3, signed=True) for one in baselines)] for name, row in compared.items()]
        found.append(Table(f"{where}: paired difference of tau-b to each baseline", ("", *baselines), rows))
    return found


def _floor(floor: Mapping[str, Any]) -> list[Table]:
    counts = f"{floor['samples']} samples each of {floor['prompts']} test prompts, {floor['cut_share']:.1%} cut"
    title = f"noise floor, {floor['decoding']}: {counts}"
    ratios = floor["tau_ratios"]
    order = [
        [name, *_cells(measured, ("tau",)), "1" if name == ANOTHER else _estimate(ratios[name], 3)]
        for name, measured in floor["metrics"].items()
    ]
    found = [Table(title, ("", METRICS["tau"].title, "divided by that of another sample"), order)]
    found.append(_floor_errors("noise floor: errors on the same prompts", floor["metrics"]))
    if "all_prompts" in floor:
        every = floor["all_prompts"]
        title = f"noise floor, all {every['prompts']:,} prompts with samples, training prompts among them"
        found.append(_floor_errors(title, every["metrics"], "tau"))
    return found


def _floor_errors(title: str, metrics: Mapping[str, Any], *more: str) -> Table:
    names = (*more, *_FLOOR_METRICS)
    rows = [[name, *_cells(measured, names)] for name, measured in metrics.items()]
    return Table(title, ("", *(METRICS[name].title for name in names)), rows)


def _groups(title: str, groups: Sequence[Mapping[str, Any]], left_out: Sequence[str]) -> Table:
    rows = []
    for group in groups:
        head = [group["name"], f"{group['rows']:,}", f"{group['cut_share']:.1%}", f"{group['median_tokens']:.0f}"]
        for name, measured in group["metrics"].items():
            rows.append([*head, name, *_cells(measured, measured)])
            head = [""] * len(head)
    names = next(iter(groups[0]["metrics"].values())) if groups else ()
    note = f" (too few for their own: {', '.join(left_out)})" if left_out else ""
    headers = ("", "answers", "cut", "median", "predictor", *(METRICS[name].title for name in names))
    return Table(f"{title}{note}", headers, rows)


def _serving(serving: Mapping[str, Any]) -> Table:
    loads = serving["loads"]
    headers = ["shortest expected first, by"]
    for load in loads:
        headers += [f"on time, load {load['utilisation']:g}", f"wait, load {load['utilisation']:g}"]
    rows = [
        [
            name,
            *(cell for load in loads for cell in (f"{load['on_time'][name]:.1%}", f"{load['wait_answers'][name]:.2f}")),
        ]
        for name in loads[0]["on_time"]
    ]
    note = (
        f"{serving['rows']} rows, on time is within {serving['deadline_p90_answers']:g} times the 90th percentile of "
        "the time to answer, wait in mean answers"
    )
    return Table(f"simulated serving: {note}", headers, rows)


def _cells(measured: Mapping[str, Any], names: Sequence[str] | Mapping[str, Any]) -> list[str]:
    return [_estimate(measured[name], METRICS[name].digits) for name in names]


def _estimate(estimate: Sequence[float | None], digits: int, *, signed: bool = False) -> str:
    value, low, high = estimate
    if value is None:
        return _NONE
    sign = "+" if signed else ""
    if low is None or high is None or low == high:
        return f"{value:{sign}.{digits}f}"
    shown = max(digits - 1, 0) if digits > TOKENS else 0
    return f"{value:{sign}.{digits}f} ({low:{sign}.{shown}f} … {high:{sign}.{shown}f})"


def _plain(value: Any) -> str:
    return _NONE if value is None else f"{value:,}" if isinstance(value, int) else str(value)
