"""`uellm deploy --copies`: a model several times, each on devices of its own choice, with equal shares."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from google.protobuf.json_format import MessageToDict
from rich.markup import escape

from uellm.cli.connect import find
from uellm.cli.deployments import device_names, in_words, serving, short
from uellm.cli.following import Wait, carry_out, print_json
from uellm.cli.output import print_line, stderr, stdout
from uellm.cli.plan import Asked
from uellm.client import Client, Deployment
from uellm.client.deploying import Strategy
from uellm.v1.deployer_pb2 import DeploymentSpec, FleetMember


def deploy_copies(state: Path, asked: Asked, identifier: str, strategy: Strategy, copies: int, wait: Wait) -> int:
    """Plan them together, create one after the other, and divide the traffic; returns the exit status.

    Copies that were made before one fails stay, and the message says so. Raises UellmError where none is begun.
    """
    endpoints, model = find(state)
    with Client(endpoints, model=model) as client:
        planned = client.plan_fleet([FleetMember(spec=asked.spec(), traffic_share=1.0, copies=copies)])
        names = device_names(client)
        made: list[Deployment] = []

        def show(one: Deployment) -> None:
            made.append(one)
            if not wait.as_json:
                print_line(stdout, f"[bold]{short(one.name)}[/]: {escape(in_words(one, names))}")

        for number, plan in enumerate(planned.plans, start=1):
            name = f"{identifier}-{number}" if identifier else ""
            status = _create(client, plan.spec, name, strategy if number == 1 else "beside", wait, show)
            if status:
                if made:
                    print_line(
                        stderr, f"{len(made)} of {copies} copies serve; the others can be deployed `beside` them"
                    )
                return status
        if strategy != "beside":
            client.set_traffic(_equal_shares(client, made), made[0].plan.spec.model)
        client.wait_until_served(made[0].plan.spec.model)
        _tell(client, made, strategy, wait)
    return 0


def _create(
    client: Client, spec: DeploymentSpec, name: str, strategy: Strategy, wait: Wait, show: Callable[[Deployment], None]
) -> int:
    return carry_out(client, lambda: client.create_deployment(spec, deployment_id=name, strategy=strategy), wait, show)


def _equal_shares(client: Client, made: list[Deployment]) -> dict[str, float]:
    """Of all that serve the model: other shards of its queue keep theirs."""
    shares = {one.name: one.record.traffic_share for one in serving(client.deployments(), made[0].plan.spec.model)}
    return shares | {one.name: 1 / len(made) for one in made}


def _tell(client: Client, made: list[Deployment], strategy: Strategy, wait: Wait) -> None:
    if wait.as_json:
        found = [client.get_deployment(one.name) for one in made]
        print_json({"deployments": [MessageToDict(one, preserving_proto_field_name=True) for one in found]})
    elif strategy == "beside":
        words = " ".join(f"{short(one.name)}=..." for one in made)
        print_line(
            stderr, f"[dim]they get no traffic yet:[/] uellm traffic {words} and those that are there; sums to 1"
        )
    else:
        print_line(stdout, f"each has 1/{len(made)} of the traffic of {escape(made[0].plan.spec.model)}")
