"""The figures as tables, which are printed for people or as Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from uellm_simulator.runs import Paired

from uellm.bench.experiment import Results
from uellm.bench.figures import COMPARED, Servers, by_load, class_attainment, lag, means, paired, processor
from uellm.bench.morphling import Tuning

COLUMNS = {
    "goodput_per_second": "in time/s",
    "in_time": "in time",
    "late": "late",
    "refused": "refused",
    "refused_after": "after",
    "useful_tokens_per_second": "useful tok/s",
    "tokens_per_second": "tok/s",
    "jain": "Jain",
    "longest_wait_seconds": "longest wait, s",
}
LATENCIES = {"first_token": "first token, s", "latency": "answer, s"}
SHARES = ("in_time", "late", "refused", "refused_after")
QUANTILES = ("p50", "p95", "p99")


@dataclass(frozen=True, slots=True)
class Table:
    """Text in cells."""

    title: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """With the title as a paragraph of its own."""
        lines = [f"{self.title}\n"] if self.title else []
        lines += [_line(self.headers), "|---" * len(self.headers) + "|", *map(_line, self.rows)]
        return "\n".join(lines)


def tables(results: Results) -> list[Table]:
    """All that is said of a measurement."""
    found: list[Table] = []
    for load, servers in by_load(results).items():
        rounds = max(map(len, servers.values()))
        pace = f"Load {load:g}" if load else f"{results.plan.rate:g} queries/s"
        title = f"{pace}, {rounds} round{'s'[: rounds > 1]} of {results.plan.queries} queries"
        found += [_figures(title, servers), _latencies(servers)]
        found.append(_classes(servers))
        if len(servers) > 1:
            found.append(_paired(servers))
        found.append(_processors(servers))
    if results.tuning is not None:
        found.append(_tuning(results.tuning))
    return found


def _figures(title: str, servers: Servers) -> Table:
    rows = []
    for name, runs in servers.items():
        found = means(runs)
        rows.append((name, *(f"{found[key]:.0%}" if key in SHARES else _number(found[key]) for key in COLUMNS)))
    return Table(title, ("", *COLUMNS.values()), rows)


def _latencies(servers: Servers) -> Table:
    headers = [f"{text}: {QUANTILES[0]}" if not at else QUANTILES[at] for text in LATENCIES.values() for at in range(3)]
    rows = []
    for name, runs in servers.items():
        found = means(runs)
        rows.append((name, *(_number(found[f"{key}_{level}_seconds"]) for key in LATENCIES for level in QUANTILES)))
    return Table("Of answers, from the planned send", ("", *headers), rows)


def _classes(servers: Servers) -> Table:
    names = sorted({name for runs in servers.values() for name in class_attainment(runs)})
    rows = []
    for server, runs in servers.items():
        shares = class_attainment(runs)
        rows.append((server, *(f"{shares[name]:.0%}" if name in shares else "-" for name in names)))
    return Table("In time, of those submitted", ("", *names), rows)


def _paired(servers: Servers) -> Table:
    (first, ours), *others = servers.items()
    rows = []
    for name, runs in others:
        found = paired(ours, runs)
        rows.append((name, *(_pair(found[key]) if key in found else "-" for key in COMPARED)))
    title = f"{first} against the others: ratio of the means, 95 % interval of the mean paired difference"
    return Table(title, ("", *(COLUMNS[key] for key in COMPARED)), rows)


def _pair(one: Paired) -> str:
    ratio = f"{one.ratio:.2f} x" if math.isfinite(one.ratio) else "-"
    return f"{ratio} ({one.low:+.3f} to {one.high:+.3f})" if math.isfinite(one.low) else ratio


def _processors(servers: Servers) -> Table:
    shares = {server: processor(runs) for server, runs in servers.items()}
    names = list(dict.fromkeys(name for used in shares.values() for name in used))
    rows = []
    for server, runs in servers.items():
        cores = (_number(shares[server].get(name, math.nan)) for name in names)
        rows.append((server, *cores, *(_number(1000 * one) for one in lag(runs))))
    lags = ("sent late, ms: p50", "p99", "most")
    return Table("Cores used, and how late the client sent", ("", *names, *lags), rows)


def _tuning(tuning: Tuning) -> Table:
    rows = [
        (str(one.rows), _number(1000 * one.queue_delay_seconds), _number(speed), "yes" if one == tuning.chosen else "")
        for one, speed in tuning.tokens_per_second
    ]
    title = f"morphling's tuning: {tuning.seconds:.0f} s and {tuning.queries} queries, in no figure above"
    return Table(title, ("rows", "queue delay, ms", "tok/s", "chosen"), rows)


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "-"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
