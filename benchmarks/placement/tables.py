"""Tables of the comparison, for docs/benchmarks.md."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

from benchmarks.placement.cases import GPU_MODELS

Rows = Sequence[dict[str, Any]]


def markdown(rows: Rows) -> str:
    """By rule and by machine."""
    return f"{by_rule(rows)}\n\n{by_machine(rows)}"


def by_rule(rows: Rows) -> str:
    """How often a rule has no plan where ours has one, and what its plans take."""
    lines = [
        "| rule | spills | does not fit | same LR | LR | devices | bottleneck, one copy | with copies |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for rule, own in _groups(rows, "rule").items():
        figures = [_spread(row[name] for row in own) for name in ("latency", "devices", "bottleneck", "copies")]
        spills, other = (sum(bool(row["why"]) and (row["why"] == "spills") == is_it for row in own) for is_it in (1, 0))
        same = sum(row["latency"] == 1 for row in own)
        lines.append(f"| {rule} | {spills} | {other} | {same} | {' | '.join(figures)} |")
    return "\n".join(lines)


def by_machine(rows: Rows) -> str:
    """What the plans of all rules take, and for throughput those of the best of them in each case."""
    lines = [
        "| machine | cases | no plan | LR | bottleneck, one copy | of the best rule | with copies, the best |",
        "|---|---|---|---|---|---|---|",
    ]
    for machine, own in _groups(rows, "machine", lambda name: name.removesuffix(", shared")).items():
        by_case = _groups(own, ("machine", "model", "numbers")).values()
        none = sum(bool(row["why"]) for row in own) / len(own)
        figures = [_spread(row[name] for row in own) for name in ("latency", "bottleneck")]
        figures += [_spread(_best(case, name) for case in by_case) for name in ("bottleneck", "copies")]
        name = f"{machine}, {GPU_MODELS.get(machine, 'A100, A10')}"
        lines.append(f"| {name} | {len(by_case)} | {none:.0%} | {' | '.join(figures)} |")
    return "\n".join(lines)


def _groups(rows: Rows, key: str | tuple[str, ...], name: Any = lambda found: found) -> dict[Any, list[dict[str, Any]]]:
    groups: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[name(row[key] if isinstance(key, str) else tuple(row[one] for one in key))].append(row)
    return groups


def _best(rows: Rows, name: str) -> float | None:
    return min((row[name] for row in rows if row[name] is not None), default=None)


def _spread(values: Iterable[float | None]) -> str:
    """Median and largest."""
    known = [value for value in values if value is not None]
    return f"{median(known):.3f}, {max(known):.2f}" if known else "-"
