"""The results of the demo, as tables and as JSON."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from uellm.cli.ask import state_name
from uellm.cli.demo.serving import Request
from uellm.cli.demo.workload import SLO_SECONDS
from uellm.cli.output import print_line, stderr, stdout
from uellm.cli.values import seconds_between, show_seconds
from uellm.client import Outcome
from uellm.v1.query_pb2 import FINISH_REASON_LENGTH, QUERY_STATE_COMPLETED


@dataclass(frozen=True, slots=True)
class Row:
    """One request, ready to be shown. Times in seconds."""

    id: str
    service_class: str
    name: str
    state: str
    """As of the outcome; the reason of a refusal at `Submit` in upper case."""
    predictor: str
    predicted_p50_tokens: float
    predicted_p90_tokens: float
    limit_tokens: int
    output_tokens: int
    cut_off: bool
    waited_seconds: float
    service_seconds: float
    latency_seconds: float
    slo_seconds: float
    slo_met: bool
    batch_id: str
    batch_rows: int
    defects: tuple[str, ...]

    @property
    def completed(self) -> bool:
        """Whether the whole answer was delivered."""
        return self.state == state_name(QUERY_STATE_COMPLETED)


@dataclass(frozen=True, slots=True)
class Summary:
    """The whole run. Shares are of all requests submitted, if nothing else is said."""

    submitted: int
    completed: int
    refused_at_submit: int
    exactly_one_outcome: bool
    seconds: float
    """From the first acceptance to the last outcome, by the queue's clock."""
    output_tokens: int
    """Of completed answers."""
    tokens_per_second: float
    latency_p50_seconds: float
    latency_p95_seconds: float
    slo_attainment: float
    slo_attainment_by_class: dict[str, float]
    batches: int
    mean_batch_rows: float
    cut_off_share: float
    """Of completed answers, those that ended at their limit."""
    within_predicted_p90_share: float
    """Of completed answers, those that were not longer than predicted with 90 %."""
    predictors: list[str]
    """What predicted, e.g. `lora/1`."""


def show_report(requests: Sequence[Request]) -> None:
    """Print a row per request and the summary."""
    rows = [row_of(request) for request in requests]
    stdout.print(_table(rows))
    stdout.print()
    stdout.print(_summary_table(summarise(rows, requests)))
    for row in rows:
        for defect in row.defects:
            print_line(stderr, f"[bold red]{row.id}[/]: {defect}")


def write_json(file: Path, requests: Sequence[Request], **settings: Any) -> None:
    """Write the same as one JSON object."""
    rows = [row_of(request) for request in requests]
    document = {
        "settings": settings,
        "machine": {"architecture": platform.machine(), "cores": os.cpu_count()},
        "summary": asdict(summarise(rows, requests)),
        "requests": [asdict(row) for row in rows],
    }
    file.write_text(json.dumps(document, indent=2) + "\n")


def row_of(request: Request) -> Row:
    """A request as it ended."""
    outcome = request.outcome or Outcome()
    timing, length = outcome.timing, outcome.profile.output_length
    return Row(
        id=request.arrival.id,
        service_class=request.arrival.prompt.service_class,
        name=request.query.name if request.query else "",
        state=state_name(outcome.state) if request.outcome else request.refusal or "no outcome",
        predictor=outcome.profile.predictor_version,
        predicted_p50_tokens=length.p50_tokens,
        predicted_p90_tokens=length.p90_tokens,
        limit_tokens=request.arrival.prompt.max_output_tokens,
        output_tokens=outcome.output_tokens,
        cut_off=outcome.finish_reason == FINISH_REASON_LENGTH,
        waited_seconds=seconds_between(timing.accept_time, timing.dispatch_time),
        service_seconds=seconds_between(timing.dispatch_time, timing.finish_time),
        latency_seconds=seconds_between(timing.accept_time, timing.finish_time),
        slo_seconds=request.arrival.slo_seconds,
        slo_met=outcome.slo_met and outcome.state == QUERY_STATE_COMPLETED,
        batch_id=outcome.batch_id,
        batch_rows=outcome.batch_rows,
        defects=tuple(request.defects),
    )


def summarise(rows: Sequence[Row], requests: Sequence[Request]) -> Summary:
    """The figures of the whole run."""
    done = [row for row in rows if row.completed]
    latencies = sorted(row.latency_seconds for row in done)
    tokens, seconds = sum(row.output_tokens for row in done), _seconds(requests)
    batches = {row.batch_id: row.batch_rows for row in rows if row.batch_id}
    return Summary(
        submitted=len(rows),
        completed=len(done),
        refused_at_submit=sum(not row.name for row in rows),
        exactly_one_outcome=not any(row.defects for row in rows),
        seconds=seconds,
        output_tokens=tokens,
        tokens_per_second=tokens / seconds if seconds else 0.0,
        latency_p50_seconds=_quantile(latencies, 0.5),
        latency_p95_seconds=_quantile(latencies, 0.95),
        slo_attainment=_share([row.slo_met for row in rows]),
        slo_attainment_by_class={
            name: _share([row.slo_met for row in rows if row.service_class == name]) for name in SLO_SECONDS
        },
        batches=len(batches),
        mean_batch_rows=statistics.fmean(batches.values()) if batches else 0.0,
        cut_off_share=_share([row.cut_off for row in done]),
        within_predicted_p90_share=_share([row.output_tokens <= row.predicted_p90_tokens for row in done]),
        predictors=sorted({row.predictor for row in done}),
    )


def _seconds(requests: Sequence[Request]) -> float:
    timings = [request.outcome.timing for request in requests if request.outcome]
    if not timings:
        return 0.0
    first = min(timing.accept_time.ToNanoseconds() for timing in timings)
    return float(max(timing.finish_time.ToNanoseconds() for timing in timings) - first) / 1e9


def _share(values: Sequence[bool]) -> float:
    return sum(values) / len(values) if values else 0.0


def _quantile(ascending: Sequence[float], q: float) -> float:
    """The smallest value that a share `q` of the values does not exceed."""
    return ascending[max(math.ceil(q * len(ascending)) - 1, 0)] if ascending else 0.0


def _table(rows: Sequence[Row]) -> Table:
    table = Table(header_style="bold dim", box=None, padding=(0, 1, 0, 0))
    for column in ("query", "class"):
        table.add_column(column, no_wrap=True)
    for column in ("p50", "p90", "tokens", "waited", "served", "slo"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("outcome", no_wrap=True)
    for row in rows:
        table.add_row(
            row.id,
            row.service_class,
            f"{row.predicted_p50_tokens:.0f}",
            f"{row.predicted_p90_tokens:.0f}",
            f"{row.output_tokens}{'+' if row.cut_off else ''}",
            show_seconds(row.waited_seconds),
            show_seconds(row.service_seconds),
            show_seconds(row.slo_seconds),
            _ending(row),
        )
    return table


def _ending(row: Row) -> str:
    if not row.completed:
        return f"[red]{row.state}[/]"
    if row.slo_met:
        return f"[green]kept[/] in {show_seconds(row.latency_seconds)}"
    return f"[red]late[/] by {show_seconds(row.latency_seconds - row.slo_seconds)}"


def _summary_table(summary: Summary) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    by_class = ", ".join(f"{name} {share:.0%}" for name, share in summary.slo_attainment_by_class.items())
    outcomes = "each with exactly one outcome" if summary.exactly_one_outcome else "[red]NOT each with one outcome[/]"
    refused = f", {summary.refused_at_submit} refused at once" if summary.refused_at_submit else ""
    lines = {
        "queries": f"{summary.submitted} submitted, {summary.completed} completed{refused}, {outcomes}",
        "deadlines kept": f"{summary.slo_attainment:.0%} of all submitted ({by_class})",
        "latency": f"{show_seconds(summary.latency_p50_seconds)} (median), "
        f"{show_seconds(summary.latency_p95_seconds)} (p95)",
        "throughput": f"{summary.tokens_per_second:.1f} tokens/s "
        f"({summary.output_tokens:,} tokens in {show_seconds(summary.seconds)})",
        "batches": f"{summary.batches}, {summary.mean_batch_rows:.1f} rows on average",
        "prediction": f"{summary.within_predicted_p90_share:.0%} of the answers within their predicted p90 "
        f"({', '.join(summary.predictors) or 'nothing predicted'})",
        "cut off": f"{summary.cut_off_share:.0%} of the answers ended at their limit",
    }
    for name, value in lines.items():
        table.add_row(name, value)
    return table
