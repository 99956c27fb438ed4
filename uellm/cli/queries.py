"""`uellm queries` and what `uellm dead-letters` does."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich.markup import escape
from rich.table import Table

from uellm.cli.ask import state_name, summary
from uellm.cli.connect import find
from uellm.cli.interrupts import Interrupts
from uellm.cli.output import print_line, stdout
from uellm.client import Client

MESSAGE_CHARACTERS = 100


def show(state: Path, model: str, tenant: str, *, as_json: bool) -> None:
    """List queries."""
    endpoints, running = find(state)
    with Client(endpoints, model=model or running) as client:
        statuses = client.queries(tenant=tenant)
        if as_json:
            _print_json({"queries": [_fields(status) for status in statuses]})
            return
        table = _table("query", "state", "accepted", "dispatches", "tokens")
        for status in statuses:
            tokens = str(status.outcome.output_tokens) if status.HasField("outcome") else ""
            table.add_row(
                status.name,
                state_name(status.state),
                _time(status.accept_time),
                str(status.dispatch_count),
                tokens,
            )
    stdout.print(table)


def watch_outcomes(state: Path, model: str, tenant: str, *, as_json: bool) -> None:
    """Print outcomes as they come; with `as_json`, one object a line."""
    endpoints, running = find(state)
    with Client(endpoints, model=model or running) as client:
        try:
            with Interrupts() as interrupts:
                for ended in client.outcomes(tenant=tenant):
                    interrupts.check()
                    if as_json:
                        fields = {"name": ended.name, "cursor": ended.cursor, "outcome": _fields(ended.outcome)}
                        sys.stdout.write(json.dumps(fields, ensure_ascii=False) + "\n")
                        sys.stdout.flush()
                    else:
                        print_line(stdout, f"{ended.name} {summary(ended.outcome, None)}")
        except KeyboardInterrupt:
            return


def show_letters(state: Path, model: str, *, as_json: bool) -> None:
    """List dead letters."""
    endpoints, running = find(state)
    with Client(endpoints, model=model or running) as client:
        found = client.dead_letters()
        if as_json:
            _print_json({"dead_letters": [_fields(letter) for letter in found]})
            return
        table = _table("query", "failed", "attempts", "why")
        for letter in found:
            why = f"{letter.failure.reason}: {letter.failure.message[:MESSAGE_CHARACTERS]}"
            table.add_row(letter.name, _time(letter.fail_time), str(len(letter.attempts)), escape(why))
    stdout.print(table)


def replay(state: Path, name: str) -> None:
    """Submit a query that failed again."""
    endpoints, model = find(state)
    with Client(endpoints, model=model) as client:
        stdout.print(f"submitted as [bold]{client.replay(name)}[/]")


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold dim")
    for column in columns:
        table.add_column(column)
    return table


def _time(stamp: Timestamp) -> str:
    return stamp.ToJsonString() if stamp.ToNanoseconds() else ""


def _fields(message: Message) -> dict[str, object]:
    fields: dict[str, object] = MessageToDict(message, preserving_proto_field_name=True)
    return fields


def _print_json(content: dict[str, Iterable[object]]) -> None:
    sys.stdout.write(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
