"""`uellm watch`, and what is recommended in `uellm status`."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.json_format import MessageToDict
from rich.markup import escape

from uellm.cli.connect import find
from uellm.cli.interrupts import Interrupts
from uellm.cli.output import print_line, stdout
from uellm.client import Client
from uellm.v1.deployer_pb2 import Alternative, DeploymentStage, WatchDeploymentResponse
from uellm.v1.stream_pb2 import DeploymentState

_PREFIX = "deployments/"


def watch(state: Path, name: str, *, as_json: bool) -> None:
    """Print changes as they come; with `as_json`, one object a line."""
    endpoints, model = find(state)
    with Client(endpoints, model=model) as client:
        try:
            with Interrupts() as interrupts:
                said: list[str] = []
                for update in client.watch_deployment(_PREFIX + name.removeprefix(_PREFIX)):
                    interrupts.check()
                    if as_json:
                        fields = MessageToDict(update, preserving_proto_field_name=True)
                        sys.stdout.write(json.dumps(fields, ensure_ascii=False) + "\n")
                        sys.stdout.flush()
                        continue
                    lines = list(lines_of(update))
                    for line in lines:
                        if line not in said:
                            print_line(stdout, line)
                    said = lines
        except KeyboardInterrupt:
            return


def lines_of(update: WatchDeploymentResponse) -> Iterator[str]:
    """An update in lines of markup."""
    deployment, progress = update.deployment, update.progress
    stands = DeploymentState.Name(deployment.state).removeprefix("DEPLOYMENT_STATE_").lower()
    failure = f": {escape(deployment.failure)}" if deployment.failure else ""
    share = f", {deployment.record.traffic_share:.4g} of the traffic" if deployment.HasField("record") else ""
    yield f"{escape(deployment.name)}: [bold]{stands}[/]{share}{failure}"
    if update.HasField("progress"):
        stage = DeploymentStage.Name(progress.stage).removeprefix("DEPLOYMENT_STAGE_").lower()
        yield f"  {progress.percent} % {stage}: {escape(progress.message)}"
    if update.HasField("recommendation"):
        yield recommendation_line(update.recommendation)


def recommendation_line(recommendation: Alternative) -> str:
    """What would be better, as markup."""
    return f"  [yellow]better now[/]: {escape(recommendation.reason)}"


def recommended(client: Client, name: str) -> Alternative | None:
    """What would be better than a deployment now, if anything. Raises NotFoundError."""
    with contextlib.closing(client.watch_deployment(name)) as updates:
        update = next(updates, None)
    return update.recommendation if update is not None and update.HasField("recommendation") else None
