"""`uellm replay`: recorded decisions, taken again."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table
from uellm_scheduler.app.comparison import Comparison, Fates, Sooner, difference
from uellm_scheduler.app.replay import replay
from uellm_scheduler.domain.policy import Policy
from uellm_scheduler.policies import POLICIES

from uellm.cli.connect import find
from uellm.cli.output import print_line, stderr, stdout
from uellm.cli.recording import read_recording
from uellm.cli.values import show_seconds
from uellm.client import Client
from uellm.rpc.errors import FieldViolation, InvalidArgumentError, NotFoundError
from uellm.v1.query_pb2 import QUERY_STATE_COMPLETED
from uellm.v1.stream_pb2 import DecisionRecord

SHOWN = 20
"""Queries that are listed; JSON has all."""


Entries = Iterable[tuple[str, DecisionRecord]]


@dataclass(frozen=True, slots=True)
class Source:
    """Where a recording lies."""

    state: Path
    model: str
    shard: int
    file: Path | None = None
    """Instead of the flight recorder of the stack that runs."""

    @contextlib.contextmanager
    def opened(self) -> Iterator[tuple[Entries, Client | None]]:
        """The entries, and who knows how the queries ended; None: nobody."""
        if self.file is not None:
            yield read_recording(self.file), None
            return
        endpoints, running = find(self.state)
        with Client(endpoints, model=self.model or running) as client:
            yield client.decisions(shard=self.shard), client


def verify(source: Source, *, as_json: bool) -> int:
    """Ask each recorded policy again; returns the exit status: 1 if a decision differs."""
    decisions, asked, first = 0, 0, {"decision_id": "", "difference": ""}
    with source.opened() as (entries, _), stderr.status("replaying"):
        for one in replay(entries, POLICIES):
            decisions += 1
            if one.again is None:
                continue
            asked += 1
            if told := difference(one):
                first = {"decision_id": one.decision_id, "policy": one.record.policy, "difference": told}
                break
    alike = not first["difference"]
    if as_json:
        report = {"decisions": decisions, "asked_again": asked, "bit_for_bit": alike}
        _print_json(report if alike else {**report, "first": first})
    elif not alike:
        print_line(stderr, f"[bold red]differs:[/] decision {first['decision_id']}: {escape(first['difference'])}")
    else:
        print_line(stdout, _verified(decisions, asked))
    return 0 if alike else 1


def compare(source: Source, policy: str, *, as_json: bool) -> int:
    """Ask another policy about what the recorded ones saw; returns the exit status."""
    other = _policy(policy)
    with source.opened() as (entries, client), stderr.status("replaying"):
        comparison = Comparison.of(replay(entries, POLICIES, other))
        missed, unknown = _missed(client, comparison.sooner)
    if as_json:
        _print_json(_report(policy, comparison, missed, unknown))
    elif not comparison.decisions:
        print_line(stdout, _verified(0, 0))
    else:
        _show(policy, comparison, missed, unknown)
    return 0


def _policy(name: str) -> Policy:
    if name not in POLICIES:
        raise InvalidArgumentError([FieldViolation("--policy", f"must be one of {', '.join(sorted(POLICIES))}")])
    return POLICIES[name]


def _verified(decisions: int, asked: int) -> str:
    if not decisions:
        return "no decision is recorded that can be replayed"
    said = f"[green]{asked:,} decisions[/] replayed, every one as recorded, bit for bit"
    left = decisions - asked
    return f"{said}; {left:,} are of policies or versions that this version does not have" if left else said


def _missed(client: Client | None, sooner: Iterable[Sooner]) -> tuple[list[tuple[Sooner, str]], int]:
    """Those that were refused or late in truth, and which it was; of how many the end is not known any more."""
    missed, unknown = [], 0
    for one in sooner:
        if one.refused:
            missed.append((one, "refused"))
        elif one.has_deadline:
            if client is None:
                unknown += 1
                continue
            try:
                outcome = client.get(one.name).outcome
            except NotFoundError:
                unknown += 1
                continue
            if outcome.state == QUERY_STATE_COMPLETED and not outcome.slo_met:
                missed.append((one, "late"))
    return missed, unknown


def _show(policy: str, comparison: Comparison, missed: list[tuple[Sooner, str]], unknown: int) -> None:
    share = comparison.alike / comparison.decisions
    print_line(
        stdout,
        f"[bold]{policy}[/] asked about {comparison.decisions:,} recorded decisions "
        f"({comparison.first_id} to {comparison.last_id}): {comparison.alike:,} alike ({share:.0%})",
    )
    print_line(stdout, "[dim]Each is taken again from its recorded state on its own: no answer changes the next.[/]\n")
    table = Table(box=None, pad_edge=False, header_style="bold dim")
    table.add_column(f"{policy} would have")
    table.add_column("dispatched in truth", justify="right")
    table.add_column("refused in truth", justify="right")
    for what, field in (
        ("dispatched it at an earlier decision", "earlier"),
        ("dispatched it at the same decision", "same"),
        ("not dispatched it by then", "later"),
        ("refused it", "refused"),
    ):
        table.add_row(what, *(f"{getattr(fates, field):,}" for fates in (comparison.dispatched, comparison.refused)))
    stdout.print(table)
    if missed:
        print_line(stdout, f"\nMissed in truth, and dispatched at an earlier decision by {policy}: {len(missed):,}")
        stdout.print(_listed(missed[:SHOWN]))
        if len(missed) > SHOWN:
            print_line(stdout, f"[dim]and {len(missed) - SHOWN:,} more: --json has all[/]")
    else:
        print_line(stdout, f"\nNone of those that {policy} would have dispatched earlier is known to have been missed.")
    if unknown:
        print_line(stdout, f"[dim]How {unknown:,} of these ended is not known any more.[/]")


def _listed(missed: Iterable[tuple[Sooner, str]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold dim")
    for column in ("query", "in truth", "at decision", "would have been at", "earlier by"):
        table.add_column(column)
    for one, fate in missed:
        table.add_row(escape(one.name), fate, one.recorded_id, one.other_id, show_seconds(one.seconds))
    return table


def _report(policy: str, comparison: Comparison, missed: list[tuple[Sooner, str]], unknown: int) -> dict[str, Any]:
    def counts(fates: Fates) -> dict[str, int]:
        return {**asdict(fates), "total": fates.total}

    return {
        "policy": policy,
        "decisions": comparison.decisions,
        "first_decision_id": comparison.first_id,
        "last_decision_id": comparison.last_id,
        "alike": comparison.alike,
        "dispatched": counts(comparison.dispatched),
        "refused": counts(comparison.refused),
        "missed_but_dispatched_earlier": [{**asdict(one), "in_truth": fate} for one, fate in missed],
        "ends_not_known": unknown,
    }


def _print_json(report: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
