"""`uellm deployments`, and deployments in words."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from google.protobuf.json_format import MessageToDict
from rich.markup import escape
from rich.table import Table

from uellm.cli.connect import find
from uellm.cli.following import print_json
from uellm.cli.output import print_line, stdout
from uellm.cli.topology.machine import Machine
from uellm.cli.values import show_age, show_bytes
from uellm.client import Client, Deployment
from uellm.v1.deployer_pb2 import DeploymentPlan
from uellm.v1.stream_pb2 import DEPLOYMENT_STATE_READY, DeploymentState, StepTimePrior

PREFIX = "deployments/"


def show(state: Path, *, as_json: bool) -> None:
    """List the deployments, and why those that failed did."""
    endpoints, model = find(state)
    with Client(endpoints, model=model) as client:
        found = client.deployments()
        names = device_names(client) if found and not as_json else {}
    if as_json:
        print_json({"deployments": [MessageToDict(one, preserving_proto_field_name=True) for one in found]})
    elif not found:
        print_line(stdout, "nothing is deployed: `uellm deploy FOLDER` deploys a model")
    else:
        stdout.print(_table(found, names))
        for one in found:
            if one.failure:
                print_line(stdout, f"\n[red]{short(one.name)}[/]: {escape(one.failure)}")


def device_names(client: Client) -> Mapping[str, str]:
    """Short names of the deployer's devices, by id."""
    return Machine(client.topology()).names


def resource_name(name: str) -> str:
    """`deployments/{deployment}` of what was given with or without its beginning."""
    return PREFIX + name.removeprefix(PREFIX)


def short(name: str) -> str:
    """A deployment's name on the command line. Rich markup."""
    return escape(name.removeprefix(PREFIX))


def serving(found: Iterable[Deployment], model: str) -> list[Deployment]:
    """Those that serve a model."""
    return [one for one in found if one.state == DEPLOYMENT_STATE_READY and one.plan.spec.model == model]


def in_words(deployment: Deployment, names: Mapping[str, str]) -> str:
    """Where it lies, what it takes, how fast it is."""
    plan, predicted, measured = deployment.plan, _milliseconds(deployment.plan.step_time), _measured(deployment)
    step = f"{measured} ({predicted} predicted)" if measured else f"{predicted} (predicted)"
    return f"{placement(plan, names)}, {show_bytes(needed_bytes(plan))}; a step of one row takes {step}"


def placement(plan: DeploymentPlan, names: Mapping[str, str]) -> str:
    """`layers 0-15 on GPU0, layers 16-31 on GPU1`; devices that share layers are joined by +."""
    parts = []
    for stage in plan.stages:
        devices = "+".join(names.get(device, device) for device in stage.device_ids)
        last = stage.first_layer + stage.layer_count - 1
        layers = f"layers {stage.first_layer}-{last}" if stage.layer_count > 1 else f"layer {last}"
        parts.append(f"{layers} on {devices}")
    return ", ".join(parts)


def needed_bytes(plan: DeploymentPlan) -> int:
    """On all devices together."""
    return sum(
        (stage.weight_bytes + stage.kv_bytes + stage.reserve_bytes) * len(stage.device_ids) for stage in plan.stages
    )


def _measured(deployment: Deployment) -> str:
    """A step of one row, as measured when it was verified; empty: it was not."""
    published = deployment.record.step_time_prior
    is_measured = published.source and published.source != deployment.plan.step_time.source
    return _milliseconds(published) if is_measured else ""


def _milliseconds(step: StepTimePrior) -> str:
    return f"{1e3 * (step.base_seconds + step.per_row_seconds):,.3g} ms"


def _table(found: Iterable[Deployment], names: Mapping[str, str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold dim")
    for column in ("deployment", "model", "state", "share", "placement", "memory", "step", "measured", "age"):
        words = column in ("deployment", "model", "state", "placement")
        table.add_column(column, justify="left" if words else "right")
    for one in found:
        state: str = DeploymentState.Name(one.state)
        colour = {"DEPLOYMENT_STATE_READY": "green", "DEPLOYMENT_STATE_FAILED": "red"}.get(state, "yellow")
        spec = one.plan.spec
        shard = f" of shard {spec.queue_shard}" if spec.queue_shard else ""
        table.add_row(
            short(one.name),
            escape(spec.model),
            f"[{colour}]{state.removeprefix('DEPLOYMENT_STATE_').lower()}[/]",
            f"{100 * one.record.traffic_share:.3g} %{shard}" if one.HasField("record") else "",
            escape(placement(one.plan, names)),
            show_bytes(needed_bytes(one.plan)),
            _milliseconds(one.plan.step_time),
            _measured(one),
            show_age(time.time() - one.create_time.ToNanoseconds() / 1e9),
        )
    return table
