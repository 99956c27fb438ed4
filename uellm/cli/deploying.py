"""What is placed where: the commands and their options. What they do is imported when one is called."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from uellm.cli.options import GpuModel, Json, Model, PeerFile, State, TopologyFile
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

deploying = typer.Typer()


@deploying.command("topology")
def show_topology(
    file: TopologyFile = None,
    gpu_model: GpuModel = "",
    p2p: PeerFile = None,
    svg: Annotated[Path | None, typer.Option("--svg", dir_okay=False, help="Draw it there, too.")] = None,
    state: State = default_folder(),
    as_json: Json = False,
) -> None:
    """Show devices, how they are linked, and what is placed on them; of this machine, or of one in a file."""
    from uellm.cli.topology import Wanted, topology

    if file is None and (gpu_model or p2p):
        raise typer.BadParameter("--gpu-model and --p2p go with --file")
    topology(Wanted(state, file, gpu_model, p2p, svg, as_json))


@deploying.command("plan")
def show_plan(
    weights: Weights,
    file: TopologyFile = None,
    gpu_model: GpuModel = "",
    p2p: PeerFile = None,
    model: ModelName = "",
    backend: Engine = DEFAULT_BACKEND,
    objective: Objective = "HELR",
    rows: Rows = 8,
    context: Context = 0,
    dtype: Dtype = "",
    devices: Devices = None,
    first_token_slo: FirstTokenSlo = None,
    output_token_slo: OutputTokenSlo = None,
    svg: Annotated[Path | None, typer.Option("--svg", dir_okay=False, help="Draw it there, too.")] = None,
    state: State = default_folder(),
    as_json: Json = False,
) -> None:
    """Show where a model would be placed, how fast it would be, what lost and why. Nothing changes.

    Weights need not be there: config.json is enough, in a folder or named itself.
    """
    from uellm.cli import plan
    from uellm.cli.errors import naming

    if file is None and (gpu_model or p2p):
        raise typer.BadParameter("--gpu-model and --p2p go with --file")
    if file is not None and not weights.exists():
        raise typer.BadParameter(f"there is no {weights}", param_hint="WEIGHTS")
    asked = plan.Asked(
        weights, model, backend.value, objective, rows, context, dtype, devices or (), first_token_slo, output_token_slo
    )
    with naming(ARGUMENTS):
        plan.plan(asked, plan.Shown(state, file, gpu_model, p2p, svg, as_json))


@deploying.command("watch")
def watch_deployment(
    name: Annotated[str, typer.Argument(metavar="DEPLOYMENT", help="Its name.")],
    state: State = default_folder(),
    as_json: Json = False,
) -> None:
    """Show where a deployment stands and what would be better now, after every change, until it is gone or Ctrl-C."""
    from uellm.cli.watching import watch

    watch(state, name, as_json=as_json)


@deploying.command("fleet")
def show_fleet(
    members: Annotated[
        Path, typer.Argument(exists=True, dir_okay=False, metavar="FILE.yaml", help="As examples/fleet.yaml.")
    ],
    file: TopologyFile = None,
    gpu_model: GpuModel = "",
    p2p: PeerFile = None,
    svg: Annotated[Path | None, typer.Option("--svg", dir_okay=False, help="Draw it there, too.")] = None,
    state: State = default_folder(),
    as_json: Json = False,
) -> None:
    """Show where several models would be placed together, and what bounds them. Nothing changes."""
    from uellm.cli import plan
    from uellm.cli.fleet import fleet

    if file is None and (gpu_model or p2p):
        raise typer.BadParameter("--gpu-model and --p2p go with --file")
    fleet(members, plan.Shown(state, file, gpu_model, p2p, svg, as_json))


@deploying.command("traffic")
def set_traffic(
    shares: Annotated[
        list[str], typer.Argument(metavar="DEPLOYMENT=SHARE...", help="Of each that serves the model; sums to 1.")
    ],
    model: Model = "",
    state: State = default_folder(),
) -> None:
    """Divide a model's traffic between its deployments: `uellm traffic main=0.9 canary=0.1`."""
    from uellm.cli.traffic import read_shares, traffic

    try:
        wanted = read_shares(shares)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    traffic(state, wanted, model)
