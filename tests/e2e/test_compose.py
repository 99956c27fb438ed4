"""docker-compose.yml for real: images built, all five containers up, one query from submission to outcome.

Skipped without a Docker engine, and, so that no test run downloads gigabytes unasked, where the base images or a torch
wheel in docker/wheels are missing; UELLM_TEST_DOCKER=1 runs it all the same. Everything but the images is removed.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.support.tiny_model import make_tiny_model
from uellm.v1 import deployer_pb2, profiler_pb2, scheduler_pb2
from uellm.v1.deployer_pb2_grpc import DeployerServiceStub
from uellm.v1.profiler_pb2_grpc import ProfilerServiceStub
from uellm.v1.query_pb2 import FINISH_REASON_LENGTH, QUERY_STATE_COMPLETED, Outcome, Query
from uellm.v1.scheduler_pb2_grpc import SchedulerServiceStub
from uellm.v1.stream_pb2 import DEPLOYMENT_STATE_READY, QueryEvent

pytestmark = [pytest.mark.docker, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
TRITON = "nvcr.io/nvidia/tritonserver"
STAND_IN_TAG = "24.10-py3"
PORTS = {"profiler": 50051, "scheduler": 50052, "deployer": 50053}
CONTAINERS = ("redis", "triton", *PORTS)
WEIGHTS = "/var/lib/uellm/weights/tiny"
MODEL = "tiny"
OUTPUT_TOKENS = 24

CONTROL = """
import grpc, json, os
from tritonclient.grpc import service_pb2, service_pb2_grpc
stub = service_pb2_grpc.GRPCInferenceServiceStub(grpc.insecure_channel(os.environ["UELLM_TRITON_ENDPOINT"]))
key = "triton-grpc-protocol-" + os.environ["UELLM_TRITON_CONTROL_KEY"]
calls = {
    "index": (stub.RepositoryIndex, service_pb2.RepositoryIndexRequest()),
    "unload": (stub.RepositoryModelUnload, service_pb2.RepositoryModelUnloadRequest(model_name="nothing--0")),
    "memory": (stub.SystemSharedMemoryStatus, service_pb2.SystemSharedMemoryStatusRequest()),
    "logging": (stub.LogSettings, service_pb2.LogSettingsRequest()),
    "trace": (stub.TraceSetting, service_pb2.TraceSettingRequest()),
}
secrets = {"none": (), "wrong": ((key, "wrong"),), "right": ((key, os.environ["UELLM_TRITON_CONTROL_SECRET"]),)}
answers, states = {}, {}
for which, metadata in secrets.items():
    for name, (method, request) in calls.items():
        try:
            answer, said = method(request, metadata=metadata, timeout=10), "allowed"
        except grpc.RpcError as error:
            answer, said = None, error.details()
        answers[which + " " + name] = said
        if name == "index" and answer is not None:
            states = {model.name: model.state for model in answer.models}
print(json.dumps([answers, states]))
"""


def run(command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def succeeds(*command: str) -> bool:
    try:
        return run(command, timeout=20).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def compose_command() -> list[str]:
    """Compose v2 or 1.29; empty if there is neither."""
    candidates = (["docker", "compose"], ["docker-compose"])
    return next((found for found in candidates if shutil.which(found[0]) and succeeds(*found, "version")), [])


def has_image(name: str) -> bool:
    return succeeds("docker", "image", "inspect", name)


def reason_to_skip(triton_image: str) -> str:
    """Empty: the stack can be tested."""
    if not compose_command():
        return "there is no docker compose"
    if not succeeds("docker", "info"):
        return "no Docker engine answers"
    missing = [name for name in ("python:3.11-slim", "redis:7", triton_image) if not has_image(name)]
    if not list((ROOT / "docker" / "wheels").glob("torch-*.whl")):
        missing.append("a torch wheel in docker/wheels")
    if missing and not os.environ.get("UELLM_TEST_DOCKER"):
        return f"would download gigabytes: {', '.join(missing)} missing; UELLM_TEST_DOCKER=1 runs it all the same"
    return ""


def wait_until(what: str, condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
        time.sleep(0.2)


class Stack:
    """A compose project of its own, on free ports."""

    def __init__(self, weights: Path, triton_tag: str) -> None:
        self._command = [*compose_command(), "-p", f"uellm-test-{uuid.uuid4().hex[:8]}"]
        self._containers: dict[str, str] = {}
        buildkit = "1" if succeeds("docker", "buildx", "version") else "0"
        self._environment = {
            "DOCKER_BUILDKIT": buildkit,
            **os.environ,
            "TRITON_TAG": triton_tag,
            "UELLM_TAG": "test",
            "UELLM_TRITON_SECRET": secrets.token_hex(16),
            "UELLM_WEIGHTS": str(weights),
            **{f"UELLM_{service.upper()}_PORT": "0" for service in PORTS},
        }

    def compose(self, *arguments: str, seconds: float = 120) -> str:
        """Run a compose command; returns what it printed."""
        result = run([*self._command, *arguments], cwd=ROOT, env=self._environment, timeout=seconds)
        assert result.returncode == 0, f"{arguments}: {result.stdout[-3000:]}{result.stderr[-3000:]}"
        return result.stdout

    def container(self, service: str) -> str:
        """Id of the container."""
        if service not in self._containers:
            self._containers[service] = self.compose("ps", "-q", service).strip()
        return self._containers[service]

    def inspect(self, service: str) -> dict[str, Any]:
        described: dict[str, Any] = json.loads(run(["docker", "inspect", self.container(service)]).stdout)[0]
        return described

    def execute(self, service: str, *command: str, source: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command in a container, with `source` as its input."""
        return run(["docker", "exec", "-i", self.container(service), *command], input=source, timeout=60)

    def wait_healthy(self) -> None:
        for service in CONTAINERS:
            wait_until(f"{service} is healthy", partial(self._is_healthy, service), 180)

    def channel(self, service: str) -> grpc.Channel:
        return grpc.insecure_channel(self.compose("port", service, str(PORTS[service])).strip())

    def control(self) -> tuple[dict[str, str], dict[str, str]]:
        """What Triton says to control calls with no, a wrong and the right secret; the states of its models."""
        answers, states = json.loads(self.execute("deployer", "python", source=CONTROL).stdout)
        return answers, states

    def _is_healthy(self, service: str) -> bool:
        return bool(self.inspect(service)["State"]["Health"]["Status"] == "healthy")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """All five containers, healthy, with the tiny model as weights."""
    fallback = STAND_IN_TAG if has_image(f"{TRITON}:{STAND_IN_TAG}") else "26.07-py3"
    tag = os.environ.get("TRITON_TAG") or fallback
    if reason := reason_to_skip(f"{TRITON}:{tag}"):
        pytest.skip(reason)
    weights = tmp_path_factory.mktemp("weights")
    make_tiny_model(weights / MODEL)
    for path in (weights, *weights.rglob("*")):  # the containers run as another user
        path.chmod(0o755 if path.is_dir() else 0o644)
    started = Stack(weights, tag)
    try:
        started.compose("build", seconds=840)
        started.compose("up", "-d")
        started.wait_healthy()
        yield started
    finally:
        started.compose("down", "--volumes", "--remove-orphans", "-t", "5")


@pytest.fixture(scope="module")
def deployment(stack: Stack) -> deployer_pb2.Deployment:
    """The tiny model, deployed through the deployer."""
    stub = DeployerServiceStub(stack.channel("deployer"))
    spec = deployer_pb2.DeploymentSpec(model=MODEL, weights_path=WEIGHTS)
    request = deployer_pb2.CreateDeploymentRequest(deployment_id=MODEL, spec=spec, request_id=str(uuid.uuid4()))
    name = stub.CreateDeployment(request, timeout=30).name

    def operation() -> Any:
        return stub.GetOperation(deployer_pb2.GetOperationRequest(name=name), timeout=30)

    wait_until("the model is deployed", lambda: operation().done, 240)
    assert operation().WhichOneof("result") == "response", operation().error.message
    created = deployer_pb2.Deployment()
    operation().response.Unpack(created)
    return created


def submit(stack: Stack, text: str) -> str:
    """Submit a query of `OUTPUT_TOKENS` tokens; returns its name."""
    stub = ProfilerServiceStub(stack.channel("profiler"))
    query = Query(prompt=text)
    query.generation.max_output_tokens = OUTPUT_TOKENS
    query.engine_parameters.update({"ignore_eos": True})
    request = profiler_pb2.SubmitRequest(
        parent=f"tenants/t/models/{MODEL}", query_id=f"q-{uuid.uuid4().hex}", query=query
    )
    accepted: list[str] = []

    def is_accepted() -> bool:
        try:
            accepted.append(stub.Submit(request, timeout=30).name)
        except grpc.RpcError as error:  # the profiler follows the published deployments a moment behind
            assert error.code() is grpc.StatusCode.NOT_FOUND, error.details()  # noqa: PT017
        return bool(accepted)

    wait_until("the query is accepted", is_accepted, 30)
    return accepted[0]


def events_of(stack: Stack, name: str) -> list[QueryEvent]:
    """Watch a query to its end."""
    stub = SchedulerServiceStub(stack.channel("scheduler"))
    request = scheduler_pb2.WatchRequest(targets=[scheduler_pb2.WatchTarget(name=name)])
    return [response.event for response in stub.Watch(request, timeout=120)]


def outcome_of(events: Sequence[QueryEvent]) -> Outcome:
    outcomes = [event.outcome for event in events if event.WhichOneof("event") == "outcome"]
    assert len(outcomes) == 1
    return outcomes[0]


def test_compose_demands_the_secret_of_model_control() -> None:
    if not compose_command():
        pytest.skip("there is no docker compose")
    result = run([*compose_command(), "config"], cwd=ROOT, env={**os.environ, "UELLM_TRITON_SECRET": ""})
    assert result.returncode != 0
    assert "openssl rand -hex 32" in result.stderr


def test_a_query_goes_through_the_whole_stack(stack: Stack, deployment: deployer_pb2.Deployment) -> None:
    assert deployment.state == DEPLOYMENT_STATE_READY
    events = events_of(stack, submit(stack, "What is a container?"))
    outcome = outcome_of(events)
    assert outcome.state == QUERY_STATE_COMPLETED, outcome
    assert (outcome.finish_reason, outcome.output_tokens) == (FINISH_REASON_LENGTH, OUTPUT_TOKENS)
    deltas = [event.token_delta for event in events if event.WhichOneof("event") == "token_delta"]
    assert sum(len(delta.token_ids) for delta in deltas) == OUTPUT_TOKENS
    assert "".join(delta.text for delta in deltas) == outcome.text
    assert outcome.deployment == deployment.name
    # The adapter of the image, not the prior.
    assert outcome.profile.predictor_version.startswith("lora/")


def test_model_control_refuses_who_does_not_know_the_secret(stack: Stack) -> None:
    answers, _ = stack.control()
    allowed = {call for call, said in answers.items() if said == "allowed"}
    assert allowed == {call for call in answers if call.startswith("right ")}
    assert all("restricted" in said for call, said in answers.items() if call not in allowed)


def test_only_the_services_are_published_and_only_on_loopback(stack: Stack) -> None:
    for service in CONTAINERS:
        bindings = [b for found in stack.inspect(service)["NetworkSettings"]["Ports"].values() for b in found or []]
        assert {binding["HostIp"] for binding in bindings} == ({"127.0.0.1"} if service in PORTS else set()), service
        assert len(bindings) == (service in PORTS), service


def test_no_process_is_root(stack: Stack) -> None:
    for service in CONTAINERS:
        shown = stack.execute(service, "sh", "-c", "cat /proc/[0-9]*/status").stdout
        users = {line.split()[1] for line in shown.splitlines() if line.startswith("Uid:")}
        assert users, service
        assert "0" not in users, service


def test_triton_writes_nothing_and_reaches_no_redis(stack: Stack) -> None:
    written = stack.execute("triton", "touch", "/var/lib/uellm/repository/models/x")
    assert "Read-only" in written.stderr
    (network,) = stack.inspect("redis")["NetworkSettings"]["Networks"].values()
    connect = f"import socket; socket.create_connection(({network['IPAddress']!r}, 6379), 2)"
    assert "Error" in stack.execute("triton", "python3", source=connect).stderr
    assert stack.execute("scheduler", "python", source=connect).returncode == 0


def test_scheduler_and_deployer_have_no_torch(stack: Stack) -> None:
    for service in ("scheduler", "deployer"):
        imported = stack.execute(service, "python", source="import torch")
        assert "No module named 'torch'" in imported.stderr


def test_a_restarted_triton_gets_its_model_back(stack: Stack, deployment: deployer_pb2.Deployment) -> None:
    stack.compose("restart", "-t", "5", "triton")
    name = deployment.record.triton_model
    wait_until("the model is loaded again", lambda: stack.control()[1].get(name) == "READY", 180)
    assert outcome_of(events_of(stack, submit(stack, "Again"))).state == QUERY_STATE_COMPLETED
