"""What is placed where: the commands and their options. What they do is imported when one is called."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from uellm.cli.options import MAX_TOKENS, GpuModel, Json, Model, PeerFile, State, TopologyFile, duration_option
from uellm.local.engine import DEFAULT_BACKEND, Backend
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
    weights: Annotated[
        Path, typer.Argument(exists=True, help="Folder of the model, or only its config.json; weights or not.")
    ],
    file: TopologyFile = None,
    gpu_model: GpuModel = "",
    p2p: PeerFile = None,
    model: Annotated[str, typer.Option("--model", help="Logical name; default: the folder's.")] = "",
    backend: Annotated[Backend, typer.Option(help="Engine that is to serve it.")] = DEFAULT_BACKEND,
    objective: Annotated[str, typer.Option(help="HELR, LR or HE (docs/placement.md).")] = "HELR",
    rows: Annotated[int, typer.Option("--concurrency", min=1, max=1024, help="Rows of one batch.")] = 8,
    context: Annotated[
        int,
        typer.Option("--context", min=0, max=MAX_TOKENS, help="Prompt and answer, in tokens; 0: the model's limit."),
    ] = 0,
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16; default: the engine's.")] = "",
    devices: Annotated[
        list[str] | None, typer.Option("--device", help="Keep to this device, by its id; may be repeated.")
    ] = None,
    first_token_slo: Annotated[
        float | None, duration_option("--first-token-slo", "Of a prompt of 128 tokens, e.g. 200ms.")
    ] = None,
    output_token_slo: Annotated[
        float | None, duration_option("--output-token-slo", "Of a token in a full batch, e.g. 30ms.")
    ] = None,
    svg: Annotated[Path | None, typer.Option("--svg", dir_okay=False, help="Draw it there, too.")] = None,
    state: State = default_folder(),
    as_json: Json = False,
) -> None:
    """Show where a model would be placed, how fast it would be, what lost and why. Nothing changes."""
    from uellm.cli import plan

    if file is None and (gpu_model or p2p):
        raise typer.BadParameter("--gpu-model and --p2p go with --file")
    asked = plan.Asked(
        weights, model, backend.value, objective, rows, context, dtype, devices or (), first_token_slo, output_token_slo
    )
    plan.plan(asked, plan.Shown(state, file, gpu_model, p2p, svg, as_json))


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
