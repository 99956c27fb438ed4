"""`uellm plan`: where a model would go, and why."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.json_format import MessageToJson
from rich.markup import escape
from rich.table import Table

from uellm.cli.connect import find_deployer
from uellm.cli.errors import needing
from uellm.cli.output import print_line, stderr, stdout
from uellm.cli.topology.drawing import draw
from uellm.cli.topology.machine import Machine, Placed, from_file
from uellm.cli.values import seconds_of, show_bytes
from uellm.client import Client
from uellm.rpc.errors import FieldViolation, InvalidArgumentError
from uellm.v1.deployer_pb2 import (
    DeploymentPlan,
    DeploymentSpec,
    PlacementObjective,
    PlanDeploymentResponse,
    Stage,
    Topology,
)
from uellm.v1.query_pb2 import GenerationParameters

_OBJECTIVE = "PLACEMENT_OBJECTIVE_"


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be placed; times in seconds, None: no objective."""

    weights: Path
    model: str
    backend: str
    objective: str
    rows: int
    context: int
    dtype: str
    devices: Sequence[str]
    first_token_slo: float | None
    output_token_slo: float | None
    max_tokens: int = 0
    shard: int = 0
    defaults: GenerationParameters | None = None
    """Of queries that leave them open."""

    def spec(self) -> DeploymentSpec:
        """As the deployer is asked. Raises InvalidArgumentError for an objective that there is not."""
        names = {name.removeprefix(_OBJECTIVE): value for name, value in PlacementObjective.items()}
        chosen = names.get(self.objective.upper())
        if not chosen:
            known = ", ".join(name for name, value in names.items() if value)
            raise InvalidArgumentError(
                [FieldViolation("--objective", f"must be one of {known}; got {self.objective!r}")]
            )
        weights = self.weights.resolve()
        spec = DeploymentSpec(
            model=self.model or _model_name(weights),
            weights_path=str(weights),
            backend=self.backend,
            objective=_OBJECTIVE + self.objective.upper(),
            max_batch_rows=self.rows,
            context_tokens=self.context,
            dtype=self.dtype,
            device_ids=self.devices,
            max_output_tokens=self.max_tokens,
            queue_shard=self.shard,
            default_generation=self.defaults,
        )
        if self.first_token_slo:
            spec.first_token_slo.FromNanoseconds(round(1e9 * self.first_token_slo))
        if self.output_token_slo:
            spec.output_token_slo.FromNanoseconds(round(1e9 * self.output_token_slo))
        return spec


@dataclass(frozen=True, slots=True)
class Shown:
    """For which machine, and how it is shown."""

    state: Path
    file: Path | None
    gpu_model: str
    p2p: Path | None
    svg: Path | None
    as_json: bool


def plan(asked: Asked, shown: Shown) -> None:
    """Plan for the machine of the running deployer, or for one that a file describes; nothing changes."""
    if shown.file is None:
        endpoints, model = find_deployer(shown.state)
        with Client(endpoints, model=model) as client:
            planned, topology = client.plan(asked.spec()), client.topology()
    else:
        topology = from_file(shown.file, shown.gpu_model, shown.p2p).topology
        planned = _planned(asked.spec(), topology)
    if shown.svg is not None:
        shown.svg.write_text(draw(Machine(topology, tuple(placed_on(planned.plan)))), encoding="utf-8")
    if shown.as_json:
        sys.stdout.write(MessageToJson(planned, preserving_proto_field_name=True) + "\n")
    else:
        _show(planned, topology)
        if shown.svg is not None:
            print_line(stderr, f"[dim]drawn in[/] {escape(str(shown.svg))}")


def _model_name(folder: Path) -> str:
    """A logical name for the model in a folder."""
    name = (folder.parent if folder.suffix == ".json" else folder).name.lower()
    return re.sub(r"[^a-z0-9.-]+", "-", name).strip("-.")[:63] or "model"


def _planned(spec: DeploymentSpec, topology: Topology) -> PlanDeploymentResponse:
    """As the deployer's servicer answers."""
    with needing("deployer"):
        from uellm_deployer import decoding, encoding
        from uellm_deployer.adapters.model_folder import read_shape
        from uellm_deployer.domain.placement import HelrPlanner
    wanted, machine, planner = decoding.spec(spec), decoding.topology(topology), HelrPlanner()
    shape = read_shape(wanted.weights_path)
    placed = planner.place(wanted, shape, machine)
    return encoding.planned_message(placed, planner.what_if(placed))


def placed_on(planned: DeploymentPlan) -> list[Placed]:
    """What a plan puts on which device."""
    model = planned.spec.model
    return [
        Placed(model, model, device, stage.first_layer, stage.layer_count, needed(stage), len(stage.device_ids))
        for stage in planned.stages
        for device in stage.device_ids
    ]


def needed(stage: Stage) -> int:
    """Bytes of a stage on each of its devices."""
    return stage.weight_bytes + stage.kv_bytes + stage.reserve_bytes


def _show(planned: PlanDeploymentResponse, topology: Topology) -> None:
    best, spec, facts = planned.plan, planned.plan.spec, planned.plan.facts
    what = f"{escape(facts.architecture)}, {facts.parameter_count / 1e9:,.3g} B parameters in {facts.layers} layers"
    load = f"{spec.max_batch_rows} rows of {spec.context_tokens:,} tokens"
    print_line(stdout, f"[bold]{escape(spec.model)}[/]: {what}, {spec.dtype}, on {spec.backend}; {load}")
    stdout.print()
    stdout.print(_stages(best, Machine(topology)))
    stdout.print()
    gap = best.objective_seconds / best.lower_bound_seconds - 1 if best.lower_bound_seconds else 0.0
    sure = "no placement is better" if gap <= 1e-9 else f"at most {gap:.2%} above what any placement could be"
    for label, text in (
        ("step of a full batch", f"{_time(best.objective_seconds)}, {sure}"),
        ("output token alone", _time(seconds_of(best.output_token_time))),
        ("first token", f"{_time(seconds_of(best.first_token_time))} after a prompt of 128 tokens"),
        ("predicted by", f"{best.step_time.source}; measured once it is deployed"),
    ):
        print_line(stdout, f"{label:<22}{escape(text)}")
    _list("what lost", [one.reason for one in planned.alternatives])
    _list("what if", planned.what_if)


def _stages(best: DeploymentPlan, machine: Machine) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold dim")
    each = " on each" if any(len(stage.device_ids) > 1 for stage in best.stages) else ""
    for column in ("stage", "layers", "device", f"weights{each}", "cache", "activations, framework", "needed", "free"):
        table.add_column(column, justify="left" if column in ("stage", "layers", "device") else "right")
    names, free = machine.names, {device.id: device.free_memory_bytes for device in machine.topology.devices}
    for number, stage in enumerate(best.stages):
        ends = ["embedding"] * stage.embedding, ["head"] * stage.head
        layers = f"{stage.first_layer} to {stage.first_layer + stage.layer_count - 1}"
        table.add_row(
            str(number),
            " + ".join([*ends[0], layers, *ends[1]]),
            escape(" + ".join(names[device] for device in stage.device_ids)),
            *(show_bytes(size) for size in (stage.weight_bytes, stage.kv_bytes, stage.reserve_bytes, needed(stage))),
            show_bytes(min(free[device] for device in stage.device_ids)),
        )
    return table


def _list(title: str, lines: Sequence[str]) -> None:
    for number, line in enumerate(lines):
        print_line(stdout, f"{'' if number else title:<22}{escape(line)}")


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:,.3g} ms" if seconds < 1 else f"{seconds:,.3g} s"
