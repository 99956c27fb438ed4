"""`uellm policy`."""

from __future__ import annotations

from pathlib import Path

from rich.markup import escape
from rich.table import Table

from uellm.cli.connect import find
from uellm.cli.output import stdout
from uellm.client import Client


def show(state: Path, model: str) -> None:
    """List the policies; the one in force is marked."""
    endpoints, running = find(state)
    with Client(endpoints, model=model or running) as client:
        policies, in_force = client.policies(), client.queue().policy
    table = Table(box=None, pad_edge=False, header_style="bold dim")
    for column in ("", "policy", "what it does"):
        table.add_column(column)
    for policy in policies:
        mark = "[green]>[/]" if policy.name == in_force else ""
        table.add_row(mark, policy.name, escape(policy.description))
    stdout.print(table)
    stdout.print(f"\n[dim]{escape(model or running)} is served by[/] {in_force or 'nobody right now'}")


def change(state: Path, model: str, policy: str) -> None:
    """Have another one decide."""
    endpoints, running = find(state)
    with Client(endpoints, model=model or running) as client:
        before = client.set_policy(policy)
    stdout.print(f"{escape(model or running)} is served by [bold]{policy}[/] now, before by {before or 'nobody'}")
