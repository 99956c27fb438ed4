"""What `uellm watch` says of a deployment."""

from __future__ import annotations

from rich.text import Text

from uellm.cli.watching import lines_of
from uellm.v1.deployer_pb2 import (
    DEPLOYMENT_STAGE_LOAD,
    Alternative,
    Deployment,
    DeploymentProgress,
    WatchDeploymentResponse,
)
from uellm.v1.stream_pb2 import DEPLOYMENT_STATE_CREATING, DEPLOYMENT_STATE_FAILED, DEPLOYMENT_STATE_READY


def said(update: WatchDeploymentResponse) -> list[str]:
    return [Text.from_markup(line).plain for line in lines_of(update)]


def test_progress_then_a_recommendation():
    progress = DeploymentProgress(stage=DEPLOYMENT_STAGE_LOAD, percent=20, message="loading tiny--[0]")
    creating = Deployment(name="deployments/a", state=DEPLOYMENT_STATE_CREATING)
    assert said(WatchDeploymentResponse(deployment=creating, progress=progress)) == [
        "deployments/a: creating",
        "  20 % load: loading tiny--[0]",
    ]
    ready = Deployment(name="deployments/a", state=DEPLOYMENT_STATE_READY)
    ready.record.traffic_share = 0.25
    better = Alternative(reason="3 times the [0.1 s]")
    assert said(WatchDeploymentResponse(deployment=ready, recommendation=better)) == [
        "deployments/a: ready, 0.25 of the traffic",
        "  better now: 3 times the [0.1 s]",
    ]


def test_a_failure_has_its_reason():
    failed = Deployment(name="deployments/a", state=DEPLOYMENT_STATE_FAILED, failure="LOAD: no [room]")
    assert said(WatchDeploymentResponse(deployment=failed)) == ["deployments/a: failed: LOAD: no [room]"]
