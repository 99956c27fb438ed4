"""`uellm simulate` and `uellm capacity`."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import typer
from rich.progress import Progress
from rich.table import Table
from uellm_simulator.arrivals import Gamma, Gaps, Generated, LogNormal, OnOff
from uellm_simulator.clients import Drawn, read_clients
from uellm_simulator.errors import ErrorTable, ErrorTableError
from uellm_simulator.runs import Paired, Source, Summary, capacity, run, run_all
from uellm_simulator.scenario import ENGINES, Scenario
from uellm_simulator.simulate import PLAYED
from uellm_simulator.simulate import simulate as play
from uellm_simulator.timeline import write_timeline
from uellm_simulator.traces import TraceError, read_trace
from uellm_simulator.workload import MEASURED, Predictions, Rules

from uellm.cli.output import print_line, stderr, stdout
from uellm.cli.recording import write_recording
from uellm.cli.values import show_seconds
from uellm.v1.stream_pb2 import DecisionRecord

PROMPTS = LogNormal(median=900.0, spread=1.1, most=4_096)
ANSWERS = LogNormal(median=130.0, spread=0.95, most=1_500)
"""Roughly the conversations of Azure's trace of 2023."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be played."""

    trace: Path | None
    engine: str
    gpus: int
    rows: int
    load: float
    count: int
    arrivals: str
    predictions: str
    noise: float
    tightness: float
    seed: int
    jobs: int

    @property
    def source(self) -> Source:
        """Where arrivals come from; raises typer.BadParameter."""
        if self.trace is None:
            return _drawn(self.arrivals)
        try:
            return Source(trace=tuple(read_trace(self.trace)))
        except (TraceError, UnicodeDecodeError) as error:
            raise typer.BadParameter(str(error), param_hint="TRACE") from None

    @property
    def scenario(self) -> Scenario:
        """Under the default policy; raises typer.BadParameter."""
        engine = ENGINES[self.engine]
        rules = Rules(predictions=_predictions(self.predictions, self.noise), tightness=self.tightness)
        return Scenario(
            engine=replace(engine, rows=self.rows or engine.rows),
            deployments=self.gpus,
            rules=rules,
            load=self.load,
            seed=self.seed,
            count=self.count,
        )

    def shortened(self, source: Source) -> Asked:
        """With no more requests than the trace has; raises typer.BadParameter if that is only one."""
        have = len(source.trace) if source.generated is None else self.count
        if min(have, self.count) < 2:
            raise typer.BadParameter("at least two requests are needed, for a rate", param_hint="TRACE")
        return replace(self, count=min(have, self.count))


@dataclass(frozen=True, slots=True)
class Alternative:
    """A scenario beside others, in words; its runs by seed."""

    label: str
    scenario: Scenario
    runs: tuple[Summary, ...] = ()


def simulate(
    asked: Asked,
    policies: Sequence[str],
    what_if: Sequence[str],
    seeds: int,
    trace_out: Path | None,
    decisions: Path | None,
    *,
    as_json: bool,
) -> None:
    """Play every alternative with every seed, and print them side by side."""
    source = asked.source
    asked = asked.shortened(source)
    base = replace(asked.scenario, policy=_known(policies[0]))
    alternatives = [Alternative(base.policy, base)]
    alternatives += [Alternative(name, replace(base, policy=_known(name))) for name in policies[1:]]
    alternatives += [Alternative(change, _changed(base, change)) for change in what_if]
    try:
        # Arrivals are the same for all: what is tried is another machine before the same world.
        full = capacity(source, base) if base.load else 0.0
        played = _play(source, alternatives, full, seeds, asked.jobs)
        if trace_out is not None or decisions is not None:
            _write_first(source, base, full, trace_out, decisions)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if as_json:
        _print_json({"capacity": full, "alternatives": [_plain(one, played[0]) for one in played]})
        return
    stdout.print(_table(played))
    told = f"arrivals {played[0].runs[0].rate:.3g}/s"
    told += f", full engines serve {full:.3g}/s" if full else ""
    print_line(stdout, f"[dim]{told}; {asked.count} requests, {seeds} seed{'s'[: seeds > 1]}[/]")
    if trace_out is not None:
        print_line(stdout, f"the first run is in {trace_out}: open it in ui.perfetto.dev")
    if decisions is not None:
        print_line(stdout, f"its decisions are in {decisions}: uellm replay --file {decisions} --policy edf")


def capacity_of_trace(asked: Asked, policy: str, attainment: float, rate: float, most: int) -> list[Summary]:
    """Runs with more and more GPUs, by bisection, in order of GPUs; the last that was tried may keep too few."""
    source = asked.source
    base = replace(asked.shortened(source).scenario, policy=_known(policy))
    own = source.window(base.count or 0, base.seed)
    if rate:
        scale = rate / ((len(own) - 1) / own[-1].seconds)
        source = Source(trace=tuple(replace(one, seconds=one.seconds / scale) for one in own))
        base = replace(base, seed=0, count=len(own))
    tried: dict[int, Summary] = {}

    def kept(gpus: int) -> bool:
        tried[gpus] = run(source, replace(base, deployments=gpus), 0.0)
        return tried[gpus].metrics.attainment.in_time >= attainment

    low, high = 0, 1
    while not kept(high) and high < most:
        low, high = high, min(2 * high, most)
    while high - low > 1 and high in tried:
        middle = (low + high) // 2
        low, high = (low, middle) if kept(middle) else (middle, high)
    return [tried[gpus] for gpus in sorted(tried)]


def capacity_command(asked: Asked, policy: str, attainment: float, rate: float, most: int, *, as_json: bool) -> int:
    """Print the answer; returns the exit status: 1 if no number of GPUs suffices."""
    try:
        tried = capacity_of_trace(asked, policy, attainment, rate, most)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    enough = [one for one in tried if one.metrics.attainment.in_time >= attainment]
    if as_json:
        shown = [{"gpus": one.scenario.deployments, "in_time": one.metrics.attainment.in_time} for one in tried]
        _print_json({"gpus": enough[0].scenario.deployments if enough else None, "tried": shown})
        return 0 if enough else 1
    table = Table("GPUs", "in time", "late", "refused", "busy", box=None)
    for one in tried:
        share = one.metrics.attainment
        shares = (share.in_time, share.late, share.refused, one.metrics.utilisation)
        table.add_row(str(one.scenario.deployments), *(f"{value:.1%}" for value in shares))
    stdout.print(table)
    if not enough:
        print_line(stderr, f"{most} GPUs keep less than {attainment:.0%}: deadlines are too tight, or answers too long")
        return 1
    print_line(
        stdout, f"[bold]{enough[0].scenario.deployments}[/] for {attainment:.0%} at {tried[0].rate:.3g} requests/s"
    )
    return 0


def _play(source: Source, alternatives: Sequence[Alternative], full: float, seeds: int, jobs: int) -> list[Alternative]:
    wanted = [
        (replace(one.scenario, seed=one.scenario.seed + number), full)
        for one in alternatives
        for number in range(seeds)
    ]
    with Progress(console=stderr, transient=True) as progress:
        task = progress.add_task("playing", total=len(wanted))
        runs = run_all(source, wanted, jobs, lambda: progress.advance(task))
    return [
        replace(one, runs=tuple(runs[number * seeds : (number + 1) * seeds])) for number, one in enumerate(alternatives)
    ]


def _write_first(source: Source, base: Scenario, full: float, trace_out: Path | None, decisions: Path | None) -> None:
    told: list[tuple[str, DecisionRecord]] = []
    window = source.window(base.count or 0, base.seed)
    result = play(window, base, capacity=full, on_decision=lambda name, record: told.append((name, record)))
    if trace_out is not None:
        write_timeline(trace_out, result.fates)
    if decisions is not None:
        write_recording(decisions, told)


def _table(played: Sequence[Alternative]) -> Table:
    table = Table(box=None, header_style="bold")
    headers = ("", "in time/s", "in time", "late", "refused", "useful tokens/s", "p50", "p95", "longest wait", "busy")
    for header in headers:
        table.add_column(header, justify="left" if not header else "right", no_wrap=True)
    for one in played:
        figures = [run.metrics for run in one.runs]
        share = [metrics.attainment for metrics in figures]
        table.add_row(
            one.label,
            _goodput(one, played[0]),
            *(f"{_mean([getattr(each, name) for each in share]):.1%}" for name in ("in_time", "late", "refused")),
            f"{_mean([metrics.useful_tokens for metrics in figures]):.0f}",
            *(show_seconds(_mean([metrics.latency[at] for metrics in figures if metrics.latency])) for at in (0, 1)),
            show_seconds(max(metrics.longest_wait for metrics in figures)),
            f"{_mean([metrics.utilisation for metrics in figures]):.0%}",
        )
    return table


def _goodput(one: Alternative, base: Alternative) -> str:
    paired = _paired(one, base)
    if one is base:
        return f"{paired.mean:.3f}"
    sure = "" if not math.isfinite(paired.low) else f", {paired.low:+.3f} to {paired.high:+.3f}"
    return f"{paired.mean:.3f} ({paired.ratio:.2f} x{sure})"


def _paired(one: Alternative, base: Alternative) -> Paired:
    return Paired.of([run.metrics.goodput for run in one.runs], [run.metrics.goodput for run in base.runs])


def _plain(one: Alternative, base: Alternative) -> dict[str, Any]:
    paired = _paired(one, base)
    difference = {"ratio": paired.ratio, "low": paired.low, "high": paired.high}
    return {
        "alternative": one.label,
        "policy": one.scenario.policy,
        "gpus": one.scenario.deployments,
        "goodput_against_first": {key: value if math.isfinite(value) else None for key, value in difference.items()},
        "runs": [{"seed": run.scenario.seed, "rate": run.rate, **run.metrics.to_json()} for run in one.runs],
    }


def _known(policy: str) -> str:
    if policy not in PLAYED:
        raise typer.BadParameter(f"{policy!r} is no policy; choose {', '.join(sorted(PLAYED))}", param_hint="--policy")
    return policy


def _changed(base: Scenario, change: str) -> Scenario:
    key, equals, value = change.partition("=")
    if not equals:
        raise typer.BadParameter(f"{change!r} is not KEY=VALUE", param_hint="--what-if")
    try:
        changed = base.with_changes([(key, value)])
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--what-if") from None
    return replace(changed, policy=_known(changed.policy))


def _drawn(text: str) -> Source:
    kind, _, value = text.partition(":")
    if text.endswith(".json"):
        try:
            clients = read_clients(Path(text))
        except (TraceError, OSError) as error:
            raise typer.BadParameter(str(error), param_hint="--arrivals") from None
        return Source(generated=clients, rate=clients.rate)
    if kind == "clients":
        if not value.isdecimal() or not 1 <= int(value) <= 10_000:
            raise typer.BadParameter(f"{text!r}: say clients:COUNT, of up to 10,000", param_hint="--arrivals")
        return Source(generated=Drawn(int(value)))
    return Source(generated=Generated(gaps_of(text), PROMPTS, ANSWERS))


def gaps_of(text: str) -> Gaps:
    """Of `poisson`, `gamma:CV` or `onoff:SHARE`; raises typer.BadParameter."""
    kind, _, value = text.partition(":")
    try:
        if kind == "poisson" and not value:
            return Gamma()
        if kind == "gamma" and 0 < float(value) <= 20:
            return Gamma(float(value))
        if kind == "onoff" and 0 < float(value or 0.3) < 1:
            return OnOff(float(value or 0.3))
    except ValueError:
        pass
    raise typer.BadParameter(
        f"{text!r}: say poisson, gamma:CV with a CV of up to 20, onoff:SHARE below 1, clients:COUNT, or a file of "
        "clients (.json)",
        param_hint="--arrivals",
    )


def _predictions(text: str, noise: float) -> Predictions:
    if text == "measured":
        return replace(MEASURED, noise=noise)
    if text == "oracle":
        return Predictions(noise=noise)
    kind, _, value = text.partition(":")
    try:
        if text.endswith(".json"):
            return Predictions(noise=noise, table=ErrorTable.read(Path(text)))
        if kind == "normal" and 0 < float(value) <= 3:
            return Predictions(float(value), noise)
    except (ErrorTableError, OSError) as error:
        raise typer.BadParameter(str(error), param_hint="--predictions") from None
    except ValueError:
        pass
    raise typer.BadParameter(
        f"{text!r}: say measured, oracle, normal:SPREAD of ln(length) of up to 3, or a table of errors (.json)",
        param_hint="--predictions",
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _print_json(content: dict[str, Any]) -> None:
    print(json.dumps(content, indent=2))
