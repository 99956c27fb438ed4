"""`uellm topology`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from uellm.cli.topology.drawing import draw
from uellm.cli.topology.machine import Machine, from_deployer, from_file
from uellm.cli.topology.report import print_json, print_tables


@dataclass(frozen=True, slots=True)
class Wanted:
    """Options of the command."""

    state: Path
    file: Path | None
    gpu_model: str
    p2p: Path | None
    svg: Path | None
    as_json: bool


def topology(wanted: Wanted) -> None:
    """Show a machine: that of the running deployer, or one that a file describes."""
    machine: Machine
    if wanted.file is None:
        machine = from_deployer(wanted.state)
    else:
        machine = from_file(wanted.file, wanted.gpu_model, wanted.p2p)
    if wanted.svg is not None:
        wanted.svg.write_text(draw(machine), encoding="utf-8")
    if wanted.as_json:
        print_json(machine)
    else:
        print_tables(machine, wanted.svg)
