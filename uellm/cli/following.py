"""Operations of the deployer: begun, followed with their progress on stderr, and told to the end."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from google.protobuf.json_format import MessageToDict
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from uellm.cli.errors import say
from uellm.cli.interrupts import Interrupts
from uellm.cli.output import print_line, stderr, stdout
from uellm.client import Client, DeploymentProgress, Operation
from uellm.client.deploying import R
from uellm.rpc.errors import UellmError
from uellm.v1.deployer_pb2 import DeploymentStage
from uellm.v1.stream_pb2 import (
    DEPLOYMENT_STATE_CREATING,
    DEPLOYMENT_STATE_DELETING,
    DEPLOYMENT_STATE_DRAINING,
    DEPLOYMENT_STATE_FAILED,
)

INTERRUPTED = 130
_HALF_DONE = (DEPLOYMENT_STATE_CREATING, DEPLOYMENT_STATE_DRAINING, DEPLOYMENT_STATE_DELETING)


@dataclass(frozen=True, slots=True)
class Wait:
    """Whether an operation is waited for, at most so many seconds, and how it is told."""

    not_at_all: bool = False
    seconds: float | None = None
    as_json: bool = False


def carry_out(client: Client, begin: Callable[[], Operation[R]], wait: Wait, show: Callable[[R], None]) -> int:
    """Begin an operation, follow it, and show what it made; returns the exit status.

    Raises what `begin` raises. How the operation itself ends is told; neither Ctrl-C nor the time-out ends it.
    """
    operation: Operation[R] | None = None
    try:
        with Interrupts() as interrupts, _progress() as told:

            def look(progress: DeploymentProgress) -> None:
                interrupts.check()
                told(progress)

            operation = begin()
            if operation.done or not wait.not_at_all:
                made = operation.result(wait.seconds, look)
    except KeyboardInterrupt:
        goes_on = (
            f"{operation.name} goes on" if operation else "interrupted; it may have begun: see `uellm deployments`"
        )
        print_line(stderr, goes_on)
        if operation:
            _say_how_to_follow(operation)
        return INTERRUPTED
    except UellmError as error:
        if operation is None:
            raise
        say(error)
        if operation.done:
            _say_what_is_left(client, operation.progress.deployment)
        else:
            _say_how_to_follow(operation)
        return 1
    if operation.done:
        show(made)
    else:
        tell(operation, as_json=wait.as_json)
    return 0


def tell(operation: Operation[R], *, as_json: bool) -> None:
    """Print where an operation stands."""
    progress = operation.progress
    if as_json:
        fields = MessageToDict(progress, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
        print_json({"operation": operation.name, "done": operation.done, **fields})
        return
    print_line(stdout, f"{operation.name} on {escape(progress.deployment)}: {escape(_step(progress))}")
    _say_how_to_follow(operation)


def print_json(content: object) -> None:
    """Print one JSON document."""
    sys.stdout.write(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _step(progress: DeploymentProgress) -> str:
    stage: str = DeploymentStage.Name(progress.stage)
    name = stage.removeprefix("DEPLOYMENT_STAGE_").lower().replace("_", " ")
    return f"{progress.percent} % {name}: {progress.message}" if progress.message else "waiting for its turn"


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[DeploymentProgress], None]]:
    """What shows progress: a bar on a terminal, elsewhere a line a step."""
    if not stderr.is_terminal:
        said = [""]

        def print_step(progress: DeploymentProgress) -> None:
            if progress.message not in ("", said[0]):
                said[0] = progress.message
                print_line(stderr, f"[dim]{escape(_step(progress))}[/]")

        yield print_step
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=stderr, transient=True) as bar:
        task = bar.add_task("planning", total=100)

        def move(progress: DeploymentProgress) -> None:
            text = escape(_step(progress).partition("% ")[2] or _step(progress))
            bar.update(task, completed=progress.percent, description=text)

        yield move


def _say_how_to_follow(operation: Operation[R]) -> None:
    print_line(stderr, f"[dim]follow it:[/] uellm operation {operation.name} --wait")


def _say_what_is_left(client: Client, name: str) -> None:
    """After an operation that failed."""
    with contextlib.suppress(UellmError):
        state, short = client.get_deployment(name).state, escape(name.removeprefix("deployments/"))
        if state == DEPLOYMENT_STATE_FAILED:
            left = f"what was done is undone; `uellm undeploy {short}` takes it off the list"
        elif state in _HALF_DONE:
            left = "the deployer tries again by itself: see `uellm deployments`"
        else:
            return
        print_line(stderr, f"[dim]{left}[/]")
