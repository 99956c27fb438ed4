"""What is deployed, and how it is changed: the commands and their options. What they do is imported when called."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, cast

import typer

from uellm.cli.options import MAX_TOKENS, Json, State, duration_option
from uellm.cli.spec_options import (
    ARGUMENTS,
    Context,
    Devices,
    Dtype,
    Engine,
    FirstTokenSlo,
    ModelName,
    Objective,
    OutputTokenSlo,
    Rows,
    Weights,
)
from uellm.local.engine import DEFAULT_BACKEND
from uellm.local.state import default_folder

if TYPE_CHECKING:
    from uellm.client.deploying import Strategy as ClientStrategy

changing = typer.Typer()

NoWait = Annotated[bool, typer.Option("--no-wait", help="Return as soon as it has begun.")]
Timeout = Annotated[
    float | None, duration_option("--timeout", "Wait for no longer than this; it goes on. Default: to its end.")
]
DeploymentName = Annotated[str, typer.Argument(metavar="NAME", help="Of the deployment: see `uellm deployments`.")]


class Strategy(StrEnum):
    """`--strategy`; the client's with hyphens."""

    BLUE_GREEN = "blue-green"
    RECREATE = "recreate"
    BESIDE = "beside"

    @property
    def in_client(self) -> ClientStrategy:
        """As the client has it."""
        return cast("ClientStrategy", self.value.replace("-", "_"))


@changing.command()
def deploy(
    weights: Weights,
    model: ModelName = "",
    identifier: Annotated[
        str, typer.Option("--id", help="Of the deployment; default: made of the model and the plan.")
    ] = "",
    backend: Engine = DEFAULT_BACKEND,
    objective: Objective = "HELR",
    rows: Rows = 8,
    context: Context = 0,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", min=0, max=MAX_TOKENS, help="Longest answer; 0: 1,024 or what fits.")
    ] = 0,
    defaults: Annotated[
        list[str] | None,
        typer.Option(
            "--default",
            metavar="NAME=VALUE",
            help="For queries that leave it open: temperature=0.7, repetition_penalty=1.15, ...; may be repeated.",
        ),
    ] = None,
    dtype: Dtype = "",
    devices: Devices = None,
    shard: Annotated[int, typer.Option(min=0, max=63, help="Of the model's queue, that it is to serve.")] = 0,
    strategy: Annotated[
        Strategy,
        typer.Option(
            help="blue-green: the old one goes once this one is verified. recreate: it goes first, which leaves a gap. "
            "beside: it stays, and this one waits for `uellm traffic`."
        ),
    ] = Strategy.BLUE_GREEN,
    first_token_slo: FirstTokenSlo = None,
    output_token_slo: OutputTokenSlo = None,
    copies: Annotated[
        int,
        typer.Option(min=1, max=64, help="So many deployments, planned together, with equal shares of the traffic."),
    ] = 1,
    validate_only: Annotated[bool, typer.Option("--validate-only", help="Plan and check; nothing changes.")] = False,
    no_wait: NoWait = False,
    timeout: Timeout = None,
    state: State = default_folder(),
    as_json: Json = False,
) -> None:
    """Deploy a model: place, load, verify it, and give it the traffic. `uellm plan` shows before where it would go."""
    from uellm.cli import deploy as command
    from uellm.cli.errors import naming
    from uellm.cli.following import Wait
    from uellm.cli.plan import Asked

    try:
        generation = command.read_generation(defaults or ())
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--default") from None
    asked = Asked(
        weights, model, backend.value, objective, rows, context, dtype, devices or (), first_token_slo,
        output_token_slo, max_tokens, shard, generation,
    )  # fmt: skip
    how = command.How(identifier, strategy.in_client, validate_only)
    if copies > 1 and (validate_only or no_wait or strategy is Strategy.RECREATE):
        raise typer.BadParameter("goes with neither --validate-only nor --no-wait nor recreate", param_hint="--copies")
    with naming(ARGUMENTS):
        if copies > 1:
            from uellm.cli.copies import deploy_copies

            wait = Wait(seconds=timeout, as_json=as_json)
            raise typer.Exit(deploy_copies(state, asked, identifier, strategy.in_client, copies, wait))
        raise typer.Exit(command.deploy(state, asked, how, Wait(no_wait, timeout, as_json)))


@changing.command("deployments")
def list_deployments(state: State = default_folder(), as_json: Json = False) -> None:
    """List what is deployed: where, with which share of its model's traffic, how fast."""
    from uellm.cli.deployments import show

    show(state, as_json=as_json)


@changing.command()
def undeploy(
    name: DeploymentName,
    drain_timeout: Annotated[
        float | None, duration_option("--drain-timeout", "What runs may take this long to end; default: 60s.")
    ] = None,
    no_wait: NoWait = False,
    timeout: Timeout = None,
    state: State = default_folder(),
) -> None:
    """Take a deployment out of service and remove it. It gets nothing new; what it has, it may finish."""
    from uellm.cli import deploy as command
    from uellm.cli.following import Wait

    raise typer.Exit(command.undeploy(state, name, drain_timeout, Wait(no_wait, timeout)))


@changing.command()
def rollback(
    model: Annotated[str, typer.Argument(help="Logical model; default: the stack's.")] = "",
    no_wait: NoWait = False,
    timeout: Timeout = None,
    state: State = default_folder(),
    as_json: Json = False,
) -> None:
    """Return a model to what was replaced last. What serves goes on until that is verified."""
    from uellm.cli import deploy as command
    from uellm.cli.following import Wait

    raise typer.Exit(command.rollback(state, model, Wait(no_wait, timeout, as_json)))


@changing.command()
def operation(
    name: Annotated[str, typer.Argument(help="As `uellm deploy` and the others name it.")],
    wait: Annotated[bool, typer.Option("--wait", help="Follow it to its end.")] = False,
    timeout: Timeout = None,
    state: State = default_folder(),
    as_json: Json = False,
) -> None:
    """Show how far a change is, or how it ended. Status 1: it failed."""
    from uellm.cli import deploy as command
    from uellm.cli.following import Wait

    raise typer.Exit(command.operation(state, name, Wait(not wait, timeout, as_json)))


@changing.command()
def reconcile(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell.")] = False,
    restart_triton: Annotated[
        bool, typer.Option("--restart-triton", help="Drain, start Triton again, and load what served.")
    ] = False,
    state: State = default_folder(),
    as_json: Json = False,
) -> None:
    """Repair what differs between journal, repository, Triton and Redis. Status 0: nothing; 1: what is listed."""
    from uellm.cli.reconcile import reconcile as command

    raise typer.Exit(command(state, dry_run=dry_run, restart_triton=restart_triton, as_json=as_json))
