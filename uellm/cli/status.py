"""`uellm status`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path

import psutil
from rich.markup import escape
from rich.table import Table

from uellm.cli.connect import endpoints_of
from uellm.cli.output import print_line, stdout
from uellm.cli.values import seconds_of, show_seconds
from uellm.cli.watching import recommendation_line, recommended
from uellm.client import Client
from uellm.local.state import StackInfo, StateFolder
from uellm.rpc.errors import UellmError
from uellm.v1.deployer_pb2 import Deployment
from uellm.v1.scheduler_pb2 import GetQueueResponse
from uellm.v1.stream_pb2 import DeploymentState


def status(state: Path) -> None:
    """Show parts, deployments and queues; what does not answer is said where it belongs."""
    info = StateFolder(state).read()
    stdout.print(f"[bold]stack[/] in {escape(str(state))} (pid {info.pid})\n")
    stdout.print(_parts(info))
    with Client(endpoints_of(info), model=info.model) as client:
        try:
            deployments = client.deployments()
        except UellmError as error:
            stdout.print(f"\n[red]the deployer does not answer[/]: {escape(error.message)}")
            deployments = []
        if deployments:
            stdout.print()
            stdout.print(_deployments(deployments))
            _print_recommendations(client, deployments)
        stdout.print()
        for model in sorted({one.plan.spec.model for one in deployments} or {info.model}):
            stdout.print(_queue(client, model))


def _parts(info: StackInfo) -> Table:
    table = _table("part", "endpoint", "pid", "restarts", "state")
    for name, part in info.parts.items():
        alive = part.pid and psutil.pid_exists(part.pid)
        table.add_row(
            name,
            part.endpoint,
            str(part.pid or "-"),
            str(part.restarts),
            "[green]running[/]" if alive else "[red]starting again[/]",
        )
    return table


def _deployments(deployments: Iterable[Deployment]) -> Table:
    table = _table("deployment", "model", "state", "rows", "context", "devices")
    for one in deployments:
        name: str = DeploymentState.Name(one.state)
        devices = dict.fromkeys(device for stage in one.plan.stages for device in stage.device_ids)
        table.add_row(
            one.name,
            one.plan.spec.model,
            name.removeprefix("DEPLOYMENT_STATE_").lower(),
            str(one.plan.spec.max_batch_rows),
            f"{one.plan.spec.context_tokens:,}",
            ", ".join(devices),
        )
    return table


def _print_recommendations(client: Client, deployments: Iterable[Deployment]) -> None:
    for one in deployments:
        with contextlib.suppress(UellmError):  # it may be gone since
            if found := recommended(client, one.name):
                print_line(stdout, f"{escape(one.name)}{recommendation_line(found)}")


def _queue(client: Client, model: str) -> str:
    try:
        queue = client.queue(model)
    except UellmError as error:
        return f"[bold]{model}[/]: [red]{escape(error.message)}[/]"
    return f"[bold]{model}[/]: {_queue_line(queue)}"


def _queue_line(queue: GetQueueResponse) -> str:
    oldest = f" (the oldest for {show_seconds(seconds_of(queue.oldest_wait))})" if queue.queued else ""
    batches = ", ".join(f"{len(batch.names)} of {batch.rows} rows left" for batch in queue.batches)
    running = f"{queue.running} running{f' ({batches})' if batches else ''}"
    owner = " and ".join(shard.owner or "[red]nobody[/]" for shard in queue.shards)
    return f"{queue.queued} waiting{oldest}, {running}, policy {queue.policy or '-'}, owned by {owner}"


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold dim")
    for column in columns:
        table.add_column(column)
    return table
