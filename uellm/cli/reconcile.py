"""`uellm reconcile`."""

from __future__ import annotations

from pathlib import Path

from google.protobuf.json_format import MessageToDict
from rich.markup import escape
from rich.table import Table

from uellm.cli.connect import find
from uellm.cli.following import print_json
from uellm.cli.output import print_line, stderr, stdout
from uellm.client import Client


def reconcile(state: Path, *, dry_run: bool, restart_triton: bool, as_json: bool) -> int:
    """Repair, or only tell; returns 0 if nothing differed, else 1. Raises UnavailableError."""
    endpoints, model = find(state)
    with Client(endpoints, model=model) as client:
        drifts = client.reconcile(validate_only=dry_run, restart_triton=restart_triton)
    if as_json:
        print_json({"drifts": [MessageToDict(drift, preserving_proto_field_name=True) for drift in drifts]})
    elif not drifts:
        print_line(stdout, "journal, repository, Triton and Redis agree")
    else:
        table = Table(box=None, pad_edge=False, header_style="bold dim")
        for column in ("of", "what differs", "would be" if dry_run else "was"):
            table.add_column(column)
        for drift in drifts:
            table.add_row(escape(drift.subject), escape(drift.difference), escape(drift.repair or "left alone"))
        stdout.print(table)
        if dry_run and any(drift.repair for drift in drifts):
            print_line(stderr, "[dim]nothing has changed; `uellm reconcile` repairs it[/]")
    return 1 if drifts else 0
