"""Our placements beside those of others, all under one cost model.

    UELLM_SHARED=../shared python -m benchmarks.placement.compare --json rows.jsonl --markdown

Every machine, model and number format of `cases.py`. Prints what is found and ends with 1 if any other placement is
better than ours by the goal that ours was made for, or fits where ours was refused.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path

from uellm_deployer.domain.helr.coarse import allowed
from uellm_deployer.domain.helr.cost import Pricing, Span
from uellm_deployer.domain.helr.errors import DoesNotFitError
from uellm_deployer.domain.helr.problem import Goal, Part, Problem
from uellm_deployer.domain.helr.result import Placement, Plan, describe
from uellm_deployer.domain.helr.solve import SLACK, solve

from benchmarks.placement.baselines import BASELINES, Baseline
from benchmarks.placement.cases import MODELS, Case, cases
from benchmarks.placement.tables import markdown


def _same(problem: Problem) -> Problem:
    return problem


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule of others, and the problem as it sees it."""

    name: str
    place: Baseline
    view: Callable[[Problem], Problem] = _same
    no_plan: str = "no plan"
    """What it means if there is none."""

    def plan(self, problem: Problem) -> tuple[Plan | None, str]:
        """Its plan if it fits; else why there is none."""
        pricing = Pricing(self.view(problem))
        copy = self.place(pricing)
        if copy is None:
            return None, self.no_plan
        return (None, "does not fit") if pricing.missing_bytes(copy) else (describe(pricing, [copy]), "")

    def replicated(self, problem: Problem) -> Plan | None:
        """Copies on equal runs of devices, so many that the bottleneck is the least; None: none fits."""
        pricing, count = Pricing(self.view(problem)), len(problem.devices)
        plans = (self._copies(problem, size) for size in range(1, count + 1))
        found = [describe(pricing, copies) for copies in plans if copies]
        return min(found, key=lambda plan: (plan.bottleneck_seconds, plan.latency_seconds), default=None)

    def _copies(self, problem: Problem, size: int) -> list[list[Span]]:
        made = []
        for start in range(0, len(problem.devices) - size + 1, size):
            ids = frozenset(device.id for device in problem.devices[start : start + size])
            part = Pricing(
                self.view(allowed(replace(problem, constraints=replace(problem.constraints, device_ids=ids))))
            )
            if not _has_room(part.problem) or (copy := self.place(part)) is None or part.missing_bytes(copy):
                return []
            made.append([Span(tuple(start + d for d in span.devices), span.first, span.last) for span in copy])
        return made


def _has_room(problem: Problem) -> bool:
    model = problem.model
    needed = sum(part.weight_bytes + part.kv_bytes for part in (*model.layers, model.embedding, model.head))
    return needed <= sum(max(0, device.room_bytes - model.activation_bytes) for device in problem.devices)


@dataclass(frozen=True, slots=True)
class Ours:
    """The best plans of one case. Throughput: with micro-batches in flight."""

    latency: Placement
    """LR."""
    fewest: Placement
    """HE."""
    stream: Placement
    """The one copy with the least bottleneck: HELR without slack."""
    copies: Placement
    """HELR as it is asked for, in any number of copies."""

    @classmethod
    def of(cls, case: Case) -> Ours | None:
        """None: it does not fit."""
        any_copies = replace(case.stream, constraints=replace(case.stream.constraints, max_copies=None))
        try:
            return cls(
                latency=solve(case.batch, Goal.LR, with_alternatives=False),
                fewest=solve(case.batch, Goal.HE, with_alternatives=False),
                stream=solve(case.stream, Goal.HELR, slack=0.0, with_alternatives=False),
                copies=solve(any_copies, Goal.HELR, with_alternatives=False),
            )
        except DoesNotFitError:
            return None


@dataclass(frozen=True, slots=True)
class Row:
    """A rule's plan as ratios to ours: above 1 is worse than ours. None: it has no plan."""

    machine: str
    model: str
    numbers: str
    rule: str
    why: str
    """Why there is no plan."""
    latency: float | None = None
    devices: float | None = None
    bottleneck: float | None = None
    """Of one copy."""
    copies: float | None = None
    """Bottleneck of as many copies as the rule is best with, to that of HELR."""


def compare(case: Case, rules: Sequence[Rule]) -> tuple[list[Row], list[str]]:
    """Rows of a case in which ours has a plan, and where ours is worse."""
    ours, rows, worse = Ours.of(case), list[Row](), list[str]()
    for rule in rules:
        plan, why = rule.plan(case.batch)
        if ours is None:
            worse += [f"{case.name}: {rule.name} fits, ours was refused"] * (plan is not None)
            continue
        stream, copies = rule.plan(case.stream)[0], rule.replicated(case.stream)
        rows.append(_row(case, rule, why, ours, plan, stream, copies))
        found = [*_worse_batch(case, ours, plan), *_worse_stream(ours, stream), *_worse_copies(ours, copies)]
        worse += [f"{case.name}: {rule.name}: {text}" for text in found]
    if ours is not None and not all(one.exact for one in (ours.latency, ours.fewest, ours.stream, ours.copies)):
        worse.append(f"{case.name}: the search was not exact")
    return rows, worse


def _row(
    case: Case, rule: Rule, why: str, ours: Ours, plan: Plan | None, stream: Plan | None, copies: Plan | None
) -> Row:
    return Row(
        machine=case.machine,
        model=case.model,
        numbers=case.numbers,
        rule=rule.name,
        why=why,
        latency=_ratio("latency_seconds", plan, ours.latency),
        devices=_ratio("device_count", plan, ours.fewest),
        bottleneck=_ratio("bottleneck_seconds", stream, ours.stream),
        copies=_ratio("bottleneck_seconds", copies, ours.copies),
    )


def _ratio(figure: str, theirs: Plan | None, ours: Placement) -> float | None:
    return None if theirs is None else float(getattr(theirs, figure) / getattr(ours.plan, figure))


def _worse_batch(case: Case, ours: Ours, theirs: Plan | None) -> Iterator[str]:
    """By LR, and by HE: devices, then their free memory, then LR."""
    if theirs is None:
        return
    if theirs.latency_seconds < ours.latency.plan.latency_seconds:
        yield f"LR {theirs.latency_seconds} s, ours {ours.latency.plan.latency_seconds} s"
    free = {device.id: device.free_bytes for device in case.batch.devices}

    def rank(plan: Plan) -> tuple[float, ...]:
        used = [device for copy in plan.copies for stage in copy.stages for device in stage.device_ids]
        return plan.device_count, sum(free[device] for device in used), plan.latency_seconds

    if rank(theirs) < rank(ours.fewest.plan):
        yield f"HE {rank(theirs)}, ours {rank(ours.fewest.plan)}"


def _worse_stream(ours: Ours, theirs: Plan | None) -> Iterator[str]:
    """By the bottleneck of one copy, then LR."""
    if theirs is not None:
        rank, own = ((p.bottleneck_seconds, p.latency_seconds) for p in (theirs, ours.stream.plan))
        if rank < own:
            yield f"bottleneck, LR of one copy {rank}, ours {own}"


def _worse_copies(ours: Ours, theirs: Plan | None) -> Iterator[str]:
    """By HELR: no bottleneck below the least, and of those within the slack of it no lower LR."""
    least = ours.copies.bounds.bottleneck_seconds
    if theirs is None or least is None:
        return
    if theirs.bottleneck_seconds < least:
        yield f"bottleneck {theirs.bottleneck_seconds} s, the least was to be {least} s"
    elif theirs.bottleneck_seconds <= (1 + SLACK) * least:
        own = ours.copies.plan.latency_seconds
        if theirs.latency_seconds < own:
            yield f"LR within the slack {theirs.latency_seconds} s, ours {own} s"


def described_rules() -> tuple[Rule, ...]:
    """Those of `baselines.py`."""
    return tuple(Rule(name, place) for name, place in BASELINES.items())


def accelerate_rules() -> Callable[[Case], tuple[Rule, ...]]:
    """Accelerate's for a case; models are built once. Imports torch."""
    from benchmarks.placement.accelerate_maps import MODES, Skeleton, ends_apart

    @cache
    def skeleton(model: str, numbers: str, told: bool, layers: tuple[Part, ...]) -> Skeleton:
        return Skeleton(MODELS[model], layers, quantised=numbers != "fp16", with_cache=told)

    def rules(case: Case) -> tuple[Rule, ...]:
        built = [(skeleton(case.model, case.numbers, told, case.batch.model.layers), told) for told in (False, True)]
        return tuple(
            Rule(
                f"accelerate `{mode}`" + ", told of the cache" * told, partial(model.place, mode), ends_apart, "spills"
            )
            for model, told in built
            for mode in MODES
        )

    return rules


def main() -> None:
    """Compare all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write a line for each case and rule")
    parser.add_argument("--markdown", action="store_true", help="print the tables of docs/benchmarks.md")
    wanted = parser.parse_args()
    rules, rows, worse, refused = accelerate_rules(), list[Row](), list[str](), 0
    for case in cases():
        found, problems = compare(case, [*described_rules(), *rules(case)])
        rows, worse, refused = rows + found, worse + problems, refused + (not found)
        print("\n".join([f"{case.name}: {'compared' if found else 'fits nobody'}", *problems]), file=sys.stderr)
    lines = [asdict(row) for row in rows]
    if wanted.json:
        wanted.json.write_text("".join(json.dumps(line) + "\n" for line in lines))
    if wanted.markdown:
        print(markdown(lines))
    compared = len({(row.machine, row.model, row.numbers) for row in rows})
    print(f"{compared} cases compared, {refused} fit nobody; {len(worse)} times worse than another")
    sys.exit(bool(worse))


if __name__ == "__main__":
    main()
