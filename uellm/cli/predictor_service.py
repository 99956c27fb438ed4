"""`uellm predictor show`, `install` and `rollback`: what they ask of the running profiler."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from google.protobuf.json_format import MessageToDict
from rich.markup import escape
from rich.table import Table

from uellm.cli.connect import find
from uellm.cli.output import stdout
from uellm.client import Client
from uellm.v1.profiler_pb2 import DescribePredictorResponse, ModelCalibration


def show(state: Path, *, as_json: bool) -> None:
    """Print what predicts."""
    with _client(state) as client:
        described = client.describe_predictor()
    if as_json:
        fields = MessageToDict(described, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
        sys.stdout.write(json.dumps(fields, indent=2) + "\n")
        return
    stdout.print(f"[bold]{described.kind}/{described.version}[/]  {escape(described.description)}")
    stdout.print(f"[dim]{escape(_origin(described))}[/]")
    if described.problem:
        stdout.print(f"[bold red]the installed predictor is not in force:[/] {escape(described.problem)}")
    if described.calibrations:
        stdout.print(_calibrations(described))


def install(state: Path, folder: Path, *, validate_only: bool) -> None:
    """Install an adapter, or only check it."""
    with _client(state) as client, stdout.status("loading and checking"):
        installed = client.install_predictor(str(folder), validate_only=validate_only)
    done = "can be installed" if validate_only else "is in force; `uellm predictor rollback` returns to the one before"
    stdout.print(f"[bold]{installed.kind}/{installed.version}[/] {done}")


def rollback(state: Path) -> None:
    """Roll the last installation back."""
    with _client(state) as client, stdout.status("loading"):
        restored = client.rollback_predictor()
    stdout.print(f"[bold]{restored.kind}/{restored.version}[/] is in force again")


def _client(state: Path) -> Client:
    endpoints, model = find(state)
    return Client(endpoints, model=model)


def _origin(described: DescribePredictorResponse) -> str:
    return f"installed from {described.path}" if described.path else "the one that the profiler was started with"


def _calibrations(described: DescribePredictorResponse) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold dim")
    for column in ("model", "calibration", "observations", "coverage of p90", "of p99", "pinball loss", "drift"):
        table.add_column(column)
    for one in described.calibrations:
        table.add_row(one.model, one.version or "none", f"{one.observations:,}", *_figures(one))
    return table


def _figures(one: ModelCalibration) -> tuple[str, ...]:
    if not one.observations:
        return ("-", "-", "-", "-")
    return (
        f"{one.coverage_p90:.1%}",
        f"{one.coverage_p99:.1%}",
        f"{one.pinball_loss_tokens:.1f} tokens",
        "[red]yes[/]" if one.drift_detected else "no",
    )
