"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from uellm.cli.values import parse_duration

MAX_TOKENS = 2**31 - 1


def _duration(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def duration_option(name: str, description: str) -> Any:
    """An option whose value is a duration, in seconds."""
    return typer.Option(name, parser=_duration, metavar="DURATION", help=description)


State = Annotated[
    Path, typer.Option("--state", help="Folder of the stack: data, repository, logs.", envvar="UELLM_STATE")
]
Model = Annotated[str, typer.Option("--model", help="Logical model; default: the stack's.")]
Tenant = Annotated[str, typer.Option("--tenant", help="Tenant; default: local.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")]
TopologyFile = Annotated[
    Path | None,
    typer.Option(
        "--file",
        "--topology",
        help="Output of `nvidia-smi topo -m`, or YAML (docs/topology.md); -: stdin. Default: ask the deployer.",
    ),
]
GpuModel = Annotated[
    str, typer.Option("--gpu-model", help="What the GPUs of --file are, where it does not say: H100, L40S, ...")
]
PeerFile = Annotated[
    Path | None,
    typer.Option("--p2p", exists=True, dir_okay=False, help="Output of `nvidia-smi topo -p2p r`, besides --file."),
]
