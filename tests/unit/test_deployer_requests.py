"""Requests into values, values into messages, and the settings."""

from __future__ import annotations

import ast
import subprocess
import sys
import uuid
from dataclasses import replace
from pathlib import Path

import pytest
from google.longrunning.operations_pb2 import Operation as OperationMessage
from google.protobuf.duration_pb2 import Duration
from uellm_deployer import decoding, encoding
from uellm_deployer.app.creation import Strategy
from uellm_deployer.domain.deployment import Deployment, Failure, Operation, OperationKind, Stage, State
from uellm_deployer.domain.placement import HelrPlanner
from uellm_deployer.domain.plan import Generation, Objective
from uellm_deployer.domain.topology import DeviceKind, Link, Topology
from uellm_deployer.server import DeployerServicer

from tests.support.deployer import CPU, SHAPE, a_spec, gpu, machine
from uellm.cost.kv_cache import KvCacheLayout
from uellm.rpc.errors import InvalidArgumentError
from uellm.v1 import deployer_pb2 as pb
from uellm.v1 import query_pb2, stream_pb2

SPEC = pb.DeploymentSpec(model="smol", weights_path="/models/smol")
PLAN = HelrPlanner().place(a_spec(default_generation=Generation(temperature=0.7)), SHAPE, machine()).plan
READY = Deployment("deployments/one", State.READY, PLAN, 1_700_000_000.0, 2, "", 46_000, 0.09)


def fields(call, *arguments) -> list[str]:
    with pytest.raises(InvalidArgumentError) as caught:
        call(*arguments)
    return [violation.field for violation in caught.value.violations]


def test_a_spec_with_defaults():
    spec = decoding.spec(SPEC)
    assert (spec.backend, spec.objective, spec.max_batch_rows, spec.dtype) == ("hf", Objective.HELR, 8, "")


def test_a_whole_spec():
    message = pb.DeploymentSpec(
        model="smol-2.1",
        weights_path="/w",
        backend="hf",
        objective=pb.PLACEMENT_OBJECTIVE_HE,
        max_batch_rows=4,
        context_tokens=100,
        max_output_tokens=50,
        default_generation=query_pb2.GenerationParameters(temperature=0, seed=7, stop=["x"]),
        dtype="bfloat16",
        device_ids=["cpu0"],
        first_token_slo=Duration(nanos=500_000_000),
    )
    spec = decoding.spec(message)
    assert spec.default_generation == Generation(temperature=0.0, seed=7, stop=("x",))
    assert (spec.objective, spec.device_ids, spec.first_token_slo_seconds) == (Objective.HE, ("cpu0",), 0.5)


def test_every_violation_is_named():
    message = pb.DeploymentSpec(
        model="a--b",
        weights_path="models",
        backend="onnx",
        objective=9,
        max_batch_rows=9999,
        dtype="int4",
        default_generation=query_pb2.GenerationParameters(temperature=9),
        output_token_slo=Duration(seconds=-1),
    )
    assert fields(decoding.spec, message) == [
        "spec.model",
        "spec.weights_path",
        "spec.backend",
        "spec.objective",
        "spec.max_batch_rows",
        "spec.dtype",
        "spec.default_generation.temperature",
        "spec.output_token_slo",
    ]


def test_creations_and_request_ids():
    message = pb.CreateDeploymentRequest(
        deployment_id="one", spec=SPEC, strategy=pb.DEPLOYMENT_STRATEGY_RECREATE, request_id=str(uuid.uuid4())
    )
    assert decoding.creation(message).strategy is Strategy.RECREATE
    same = decoding.request(message, message.request_id)
    assert same == decoding.request(message, message.request_id)
    message.deployment_id = "two"
    assert same.digest != decoding.request(message, message.request_id).digest
    assert fields(decoding.creation, pb.CreateDeploymentRequest(deployment_id="../x", spec=SPEC, strategy=7)) == [
        "deployment_id",
        "strategy",
    ]
    for wrong in ("x", str(uuid.uuid1())):
        assert fields(decoding.request, message, wrong) == ["request_id"]


def test_drain_timeouts():
    assert decoding.drain_timeout(pb.DeleteDeploymentRequest()) is None
    assert decoding.drain_timeout(pb.DeleteDeploymentRequest(drain_timeout=Duration())) == 0
    assert decoding.drain_timeout(pb.DeleteDeploymentRequest(drain_timeout=Duration(seconds=3))) == 3
    assert fields(decoding.drain_timeout, pb.DeleteDeploymentRequest(drain_timeout=Duration(seconds=-3))) == [
        "drain_timeout"
    ]


def test_a_topology_there_and_back():
    topology = Topology(
        (gpu("GPU-a"), gpu("GPU-b"), CPU), (Link("GPU-a", "GPU-b", "NV4", 1e11, 1e-5, peer_access=True),), "file"
    )
    assert decoding.topology(encoding.topology_message(topology)) == topology
    message = pb.Topology(devices=[pb.Device(id="a", kind="tpu"), pb.Device(id="a", kind="cpu")], links=[pb.Link()])
    assert fields(decoding.topology, message) == [
        "topology.devices",
        "topology.devices[0].kind",
        "topology.links[0]",
    ]
    assert DeviceKind("nic")


def test_what_is_published():
    record = encoding.record_message(READY, "triton:8001")
    assert record.state == stream_pb2.DEPLOYMENT_STATE_READY
    assert record.engine_kind == stream_pb2.ENGINE_KIND_STATIC
    assert (record.triton_model, record.triton_endpoint) == (PLAN.triton_model, "triton:8001")
    assert record.facts.kv_bytes_per_token == 46_000  # the engine's own figure
    assert not record.facts.kv_cache_layers  # it is another than that of the plan's layers
    confirmed = encoding.record_message(replace(READY, measured_kv_bytes_per_token=46_080), "triton:8001")
    assert KvCacheLayout.from_facts(confirmed.facts) == PLAN.facts.kv_cache
    assert (record.limits.max_concurrent_batches, record.limits.resumable, record.traffic_share) == (1, True, 1.0)
    assert (record.limits.context_tokens, record.limits.max_batch_rows) == (2048, 8)
    assert record.limits.kv_budget_bytes == 8 * 2048 * 46_080
    assert record.default_generation.temperature == 0.7
    assert not record.default_generation.HasField("seed")
    prior = record.step_time_prior
    assert prior.base_seconds + prior.per_row_seconds == pytest.approx(0.09)


def test_what_is_published_of_a_continuous_engine():
    plan = HelrPlanner().place(a_spec(backend="vllm", max_batch_rows=32), SHAPE, machine()).plan
    deployment = replace(READY, plan=plan, measured_kv_budget_bytes=1_000_000)
    record = encoding.record_message(deployment, "triton:8001")
    assert record.engine_kind == stream_pb2.ENGINE_KIND_CONTINUOUS
    assert (record.limits.max_batch_rows, record.limits.max_concurrent_batches) == (32, 32)
    assert (record.limits.kv_budget_bytes, record.limits.kv_page_tokens) == (1_000_000, 32)
    assert record.limits.resumable
    assert decoding.spec(encoding.plan_message(plan).spec).backend == "vllm"


def test_states_and_stages_have_the_names_of_the_contract():
    for state in State:
        message = encoding.deployment_message(replace(READY, state=state), "")
        assert stream_pb2.DeploymentState.Name(message.state) == f"DEPLOYMENT_STATE_{state}"
        assert message.HasField("record") == (state in (State.READY, State.DRAINING))
    for stage in Stage:
        message = encoding.progress_message(Operation("o", OperationKind.CREATE, "d", 0.0).at(stage, "words"))
        assert pb.DeploymentStage.Name(message.stage) == f"DEPLOYMENT_STAGE_{stage}"


def test_operations():
    begun = Operation("operations/1", OperationKind.CREATE, READY.name, 1.0).at(Stage.LOAD, "loading")
    message = encoding.operation_message(begun, READY, "t:1")
    progress, deployment = pb.DeploymentProgress(), pb.Deployment()
    assert message.metadata.Unpack(progress)
    assert (progress.percent, progress.message, message.done) == (20, "loading", False)
    done = encoding.operation_message(begun.ended("done", None), READY, "t:1")
    assert done.response.Unpack(deployment)
    assert deployment.plan.plan_hash == PLAN.plan_hash
    failed = encoding.operation_message(begun.ended("x", Failure("UNAVAILABLE", "AWAY", "why")), READY, "t:1")
    assert (failed.error.code, failed.error.message, failed.WhichOneof("result")) == (14, "why", "error")
    assert isinstance(failed, OperationMessage)


def test_the_deployer_imports_no_torch():
    code = (
        "import sys, uellm_deployer.__main__\n"
        "print(sorted({'torch', 'transformers', 'uellm_profiler', 'uellm_scheduler'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_dependencies_point_inwards():
    """The domain knows neither the use cases nor the outside; the use cases know no adapter."""
    package = Path(sys.modules[DeployerServicer.__module__].__file__ or "").parent
    forbidden = {
        "domain": ("uellm_deployer.app", "uellm_deployer.adapters", "grpc", "redis", "pynvml", "tritonclient"),
        "app": ("uellm_deployer.adapters", "uellm_deployer.server", "grpc", "redis", "pynvml", "tritonclient"),
    }
    for layer, names in forbidden.items():
        for file in (package / layer).glob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                module = node.module if isinstance(node, ast.ImportFrom) else None
                imported = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [module or ""]
                assert not any(name == bad or name.startswith(f"{bad}.") for name in imported for bad in names), file
