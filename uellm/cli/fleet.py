"""`uellm fleet`: where several models would go together, and why."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import yaml
from google.protobuf.json_format import MessageToJson
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from rich.markup import escape
from rich.table import Table

from uellm.cli.connect import find
from uellm.cli.errors import needing
from uellm.cli.output import print_line, stderr, stdout
from uellm.cli.plan import Asked, Shown, needed, placed_on
from uellm.cli.topology.drawing import draw
from uellm.cli.topology.machine import Machine, from_file
from uellm.cli.values import parse_duration, show_bytes
from uellm.client import Client
from uellm.rpc.errors import FieldViolation, InvalidArgumentError
from uellm.v1.deployer_pb2 import DeploymentPlan, FleetMember, PlanFleetRequest, PlanFleetResponse, Topology


def _duration(value: object) -> object:
    return parse_duration(value) if isinstance(value, str) else value


Seconds = Annotated[float | None, BeforeValidator(_duration)]


class _Member(BaseModel):
    """The options of `uellm plan`, share and copies."""

    model_config = ConfigDict(extra="forbid")

    weights: Path
    share: float = 0.0
    copies: int = Field(default=1, ge=1)
    model: str = ""
    backend: str = ""
    objective: str = "HELR"
    concurrency: int = Field(default=8, ge=1)
    context: int = Field(default=0, ge=0)
    dtype: str = ""
    devices: list[str] = []
    first_token_slo: Seconds = None
    output_token_slo: Seconds = None


class _Fleet(BaseModel):
    model_config = ConfigDict(extra="forbid")

    members: list[_Member]


def fleet(file: Path, shown: Shown) -> None:
    """Plan for the machine of the running deployer, or for one that a file describes; nothing changes."""
    members = list(_members(file))
    if shown.file is None:
        endpoints, model = find(shown.state)
        with Client(endpoints, model=model) as client:
            planned, topology = client.plan_fleet(members), client.topology()
    else:
        topology = from_file(shown.file, shown.gpu_model, shown.p2p).topology
        planned = _planned(members, topology)
    if shown.svg is not None:
        layers = tuple(one for plan in planned.plans for one in placed_on(plan))
        shown.svg.write_text(draw(Machine(topology, layers)), encoding="utf-8")
    if shown.as_json:
        sys.stdout.write(MessageToJson(planned, preserving_proto_field_name=True) + "\n")
        return
    stdout.print(_table(planned, Machine(topology)))
    stdout.print()
    print_line(stdout, escape(planned.explanation))
    if shown.svg is not None:
        print_line(stderr, f"[dim]drawn in[/] {escape(str(shown.svg))}")


def _members(file: Path) -> Iterator[FleetMember]:
    """As the deployer is asked. Paths are from the file's folder on. Raises InvalidArgumentError, OSError."""
    try:
        wanted = _Fleet.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
    except yaml.YAMLError as error:
        raise InvalidArgumentError([FieldViolation(str(file), f"is no YAML: {error}")]) from None
    except ValidationError as error:
        raise InvalidArgumentError(
            [FieldViolation(".".join(map(str, one["loc"])) or str(file), one["msg"]) for one in error.errors()]
        ) from None
    for one in wanted.members:
        asked = Asked(
            file.parent / one.weights,
            one.model,
            one.backend,
            one.objective,
            one.concurrency,
            one.context,
            one.dtype,
            one.devices,
            one.first_token_slo,
            one.output_token_slo,
        )
        yield FleetMember(spec=asked.spec(), traffic_share=one.share, copies=one.copies)


def _planned(members: list[FleetMember], topology: Topology) -> PlanFleetResponse:
    """As the deployer's servicer answers."""
    with needing("deployer"):
        from uellm_deployer import decoding, encoding
        from uellm_deployer.adapters.model_folder import read_shape
        from uellm_deployer.domain.fleet.fleet import Member, naming, plan_fleet
        from uellm_deployer.domain.placement import HelrPlanner
    asked = []
    for number, one in enumerate(decoding.fleet(PlanFleetRequest(members=members))):
        with naming(number, one.spec.model):
            asked.append(Member(one, read_shape(one.spec.weights_path)))
    with needing("deployer"), _others_on_stderr():  # the solver is imported when it is needed
        return encoding.fleet_message(plan_fleet(HelrPlanner(), asked, decoding.topology(topology)))


@contextlib.contextmanager
def _others_on_stderr() -> Iterator[None]:
    """HiGHS now and then prints a line of its own, past Python: it would end up in the JSON."""
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        ctypes.CDLL(None).fflush(None)
        os.dup2(kept, 1)
        os.close(kept)


def _table(planned: PlanFleetResponse, machine: Machine) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold dim")
    for column in ("model", "devices", "layers", "needed", "full batch", "token alone"):
        table.add_column(column, justify="left" if column in ("model", "devices", "layers") else "right")
    names = machine.names
    for plan in planned.plans:
        table.add_row(
            escape(plan.spec.model),
            escape(" then ".join(" ".join(names[one] for one in stage.device_ids) for stage in plan.stages)),
            " then ".join(str(stage.layer_count) for stage in plan.stages),
            _bytes(plan),
            f"{plan.objective_seconds * 1e3:,.3g} ms",
            f"{plan.output_token_time.ToNanoseconds() / 1e6:,.3g} ms",
        )
    return table


def _bytes(plan: DeploymentPlan) -> str:
    return " then ".join(show_bytes(needed(stage)) for stage in plan.stages)
