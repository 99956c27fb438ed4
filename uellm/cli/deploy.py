"""`uellm deploy`, `uellm undeploy`, `uellm rollback` and `uellm operation`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.json_format import MessageToDict, ParseDict, ParseError
from rich.markup import escape

from uellm.cli.connect import find
from uellm.cli.deployments import device_names, in_words, resource_name, serving, short
from uellm.cli.following import Wait, carry_out, print_json
from uellm.cli.output import print_line, stderr, stdout
from uellm.cli.plan import Asked
from uellm.client import Client, Deployment
from uellm.client.deploying import Strategy
from uellm.rpc.errors import UellmError
from uellm.v1.query_pb2 import GenerationParameters
from uellm.v1.stream_pb2 import DEPLOYMENT_STATE_READY

CANARY_SHARE = 0.1
"""What is proposed for one that was put beside others."""


@dataclass(frozen=True, slots=True)
class How:
    """How a deployment is made."""

    identifier: str
    strategy: Strategy
    validate_only: bool


def read_generation(texts: Iterable[str]) -> GenerationParameters | None:
    """Parameters from `name=value`, values in JSON; None if there are none. Raises ValueError."""
    known = GenerationParameters.DESCRIPTOR.fields_by_name
    values = {}
    for text in texts:
        name, _, value = text.partition("=")
        if name not in known:
            raise ValueError(f"must be NAME=VALUE with one of {', '.join(known)}; got {text!r}")
        try:
            values[name] = json.loads(value)
            ParseDict({name: values[name]}, GenerationParameters())
        except (ValueError, ParseError):
            raise ValueError(f"{value!r} is no value of {name}") from None
    return ParseDict(values, GenerationParameters()) if values else None


def deploy(state: Path, asked: Asked, how: How, wait: Wait) -> int:
    """Create a deployment; returns the exit status. Raises UellmError where it is not begun."""
    endpoints, model = find(state)
    spec = asked.spec()
    with Client(endpoints, model=model) as client:
        before = serving(client.deployments(), spec.model)

        def show(made: Deployment) -> None:
            if not how.validate_only:
                _wait_until_served(client, spec.model)
            if wait.as_json:
                print_json(MessageToDict(made, preserving_proto_field_name=True))
            elif how.validate_only:
                print_line(stdout, f"{_named(made)} would serve {escape(spec.model)}: {_words(client, made)}")
                print_line(stderr, "[dim]nothing has changed; without --validate-only it is deployed[/]")
            else:
                _show_serving(client, made, before, model)

        return carry_out(
            client,
            lambda: client.create_deployment(
                spec, deployment_id=how.identifier, strategy=how.strategy, validate_only=how.validate_only
            ),
            wait,
            show,
        )


def undeploy(state: Path, name: str, drain_timeout: float | None, wait: Wait) -> int:
    """Remove a deployment; returns the exit status. Raises UellmError where it is not begun."""
    endpoints, model = find(state)
    with Client(endpoints, model=model) as client:
        leaving = client.get_deployment(resource_name(name))

        def show(_nothing: None) -> None:
            print_line(stdout, f"{_named(leaving)} is removed")
            if leaving.state == DEPLOYMENT_STATE_READY:
                _advise_after_removal(client, leaving)

        return carry_out(
            client,
            lambda: client.delete_deployment(leaving.name, drain_timeout_seconds=drain_timeout),
            wait,
            show,
        )


def rollback(state: Path, model: str, wait: Wait) -> int:
    """Return a model to what was replaced last; returns the exit status. Raises UellmError where it is not begun."""
    endpoints, default = find(state)
    with Client(endpoints, model=model or default) as client:
        before = serving(client.deployments(), model or default)

        def show(made: Deployment) -> None:
            _wait_until_served(client, model or default)
            if wait.as_json:
                print_json(MessageToDict(made, preserving_proto_field_name=True))
            else:
                _show_serving(client, made, before, default)

        return carry_out(client, client.rollback_deployment, wait, show)


def operation(state: Path, name: str, wait: Wait) -> int:
    """Show an operation, or follow it; returns the exit status. Raises NotFoundError."""
    endpoints, model = find(state)
    full = f"operations/{name.removeprefix('operations/')}"
    with Client(endpoints, model=model) as client:
        found = client.get_operation(full)

        def show(made: Deployment | None) -> None:
            if wait.as_json:
                fields = MessageToDict(made, preserving_proto_field_name=True) if made else None
                print_json({"operation": found.name, "done": True, "deployment": fields})
            else:
                print_line(stdout, f"{found.name} has ended: {escape(found.progress.message)}")

        return carry_out(client, lambda: found, wait, show)


def _wait_until_served(client: Client, model: str) -> None:
    """So that what a script asks next is answered. The deployment is there in any case."""
    try:
        with stderr.status(f"telling profiler and scheduler of {escape(model)}"):
            client.wait_until_served(model)
    except UellmError as error:
        print_line(stderr, f"[yellow]it is deployed, but queries for it are not taken yet:[/] {escape(error.message)}")


def _show_serving(client: Client, made: Deployment, before: Sequence[Deployment], default_model: str) -> None:
    spec, now = made.plan.spec, client.deployments()
    print_line(stdout, f"{_named(made)} serves {escape(spec.model)}: {_words(client, made)}")
    together = serving(now, spec.model)
    if made.record.traffic_share == 0 and len(together) > 1:
        print_line(stderr, f"[dim]it gets no traffic yet; for a tenth:[/] {_traffic(made, together, default_model)}")
        return
    gone = {one.name for one in before} - {one.name for one in now}
    if gone:
        names = ", ".join(short(name) for name in sorted(gone))
        print_line(stderr, f"[dim]it took over from {names}; back again:[/] uellm rollback {escape(spec.model)}")
    option = "" if spec.model == default_model else f" --model {escape(spec.model)}"
    print_line(stderr, f"[dim]ask it:[/] uellm generate{option} 'Why is the sky blue?'")


def _traffic(made: Deployment, together: Sequence[Deployment], default_model: str) -> str:
    """The command that gives a new deployment its part, taken from all others of its queue."""
    spec = made.plan.spec
    shares = {one.name: one.record.traffic_share for one in together if one.name != made.name}
    old = [one.name for one in together if one.name in shares and one.plan.spec.queue_shard == spec.queue_shard]
    for name in old:
        shares[name] = round((1 - CANARY_SHARE) * shares[name], 4)
    shares[made.name] = round(1 - sum(shares[name] for name in old), 4)
    option = "" if spec.model == default_model else f" --model {escape(spec.model)}"
    words = " ".join(f"{short(name)}={share:g}" for name, share in shares.items())
    return f"uellm traffic{option} {words}"


def _advise_after_removal(client: Client, left: Deployment) -> None:
    spec = left.plan.spec
    others = serving(client.deployments(), spec.model)
    if not any(one.plan.spec.queue_shard == spec.queue_shard for one in others):
        print_line(
            stderr,
            f"[dim]nothing serves {escape(spec.model)} any more: what waits ends as withdrawn after 60 s, unless "
            "another deployment comes[/]",
        )


def _words(client: Client, made: Deployment) -> str:
    return escape(in_words(made, device_names(client)))


def _named(deployment: Deployment) -> str:
    return f"[bold]{short(deployment.name)}[/]"
