"""Requests of the contract, checked and turned into values of the domain."""

from __future__ import annotations

import hashlib
import uuid

from google.protobuf.message import Message

from uellm.cost.memory import ELEMENT_BYTES
from uellm.rpc.errors import FieldViolation, InvalidArgumentError
from uellm.rpc.validation import Violations, validate_query
from uellm.v1 import deployer_pb2, query_pb2
from uellm_deployer.app.creation import Creation
from uellm_deployer.app.operations import Request
from uellm_deployer.domain.deployment import Strategy
from uellm_deployer.domain.engines import ENGINES
from uellm_deployer.domain.fleet.fleet import Wanted
from uellm_deployer.domain.plan import DeploymentSpec, Generation, Objective
from uellm_deployer.domain.topology import Device, DeviceKind, Link, Topology

DEFAULT_BACKEND = "hf"
MAX_QUEUE_SHARD = 63
MAX_FLEET = 64
SHARE_TOLERANCE = 1e-6
MAX_BATCH_ROWS = 1024
MAX_SECONDS = 86_400.0
MAX_PATH_BYTES = 4_096
MAX_RATE = 1e18
DEFAULT_BATCH_ROWS = 8

_OBJECTIVES = {
    deployer_pb2.PLACEMENT_OBJECTIVE_UNSPECIFIED: Objective.HELR,
    deployer_pb2.PLACEMENT_OBJECTIVE_HELR: Objective.HELR,
    deployer_pb2.PLACEMENT_OBJECTIVE_LR: Objective.LR,
    deployer_pb2.PLACEMENT_OBJECTIVE_HE: Objective.HE,
}
_STRATEGIES = {
    deployer_pb2.DEPLOYMENT_STRATEGY_UNSPECIFIED: Strategy.BLUE_GREEN,
    deployer_pb2.DEPLOYMENT_STRATEGY_BLUE_GREEN: Strategy.BLUE_GREEN,
    deployer_pb2.DEPLOYMENT_STRATEGY_RECREATE: Strategy.RECREATE,
    deployer_pb2.DEPLOYMENT_STRATEGY_BESIDE: Strategy.BESIDE,
}


def creation(message: deployer_pb2.CreateDeploymentRequest) -> Creation:
    """What is to be created; InvalidArgumentError with every violation."""
    violations = Violations()
    if message.deployment_id:
        violations.identifier("deployment_id", message.deployment_id)
    if message.strategy not in _STRATEGIES:
        violations.add("strategy", f"must be a known strategy; got {message.strategy:d}")
    spec = _spec(violations, message.spec)
    violations.raise_if_any()
    return Creation(message.deployment_id, spec, _STRATEGIES[message.strategy])


def spec(message: deployer_pb2.DeploymentSpec) -> DeploymentSpec:
    """What is wanted; InvalidArgumentError with every violation."""
    violations = Violations()
    decoded = _spec(violations, message)
    violations.raise_if_any()
    return decoded


def fleet(message: deployer_pb2.PlanFleetRequest) -> list[Wanted]:
    """The members of a fleet; InvalidArgumentError with every violation."""
    violations, wanted = Violations(), list[Wanted]()
    for number, member in enumerate(message.members):
        one = Violations()
        decoded = _spec(one, member.spec)
        one.finite("traffic_share", member.traffic_share, 0, 1)
        violations.extend(one.under(f"members[{number}]"))
        wanted.append(Wanted(decoded, member.traffic_share, member.copies or 1))
    if not 1 <= sum(one.copies for one in wanted) <= MAX_FLEET:
        violations.add("members", f"must be 1 to {MAX_FLEET} copies in all; got {sum(one.copies for one in wanted):,}")
    total = sum(one.share for one in wanted)
    if total and abs(total - 1) > SHARE_TOLERANCE:
        violations.add("members", f"must have traffic shares that sum to 1, or are all 0; they sum to {total:g}")
    violations.raise_if_any()
    return wanted


def traffic(message: deployer_pb2.SetTrafficRequest) -> tuple[str, dict[str, float]]:
    """The model, and the share of each deployment; InvalidArgumentError with every violation."""
    violations = Violations()
    violations.model_identifier("model", message.model)
    for name, share in sorted(message.shares.items()):
        violations.finite(f"shares[{name}]", share, 0, 1)
    violations.raise_if_any()
    return message.model, dict(message.shares)


def model(name: str) -> str:
    """The name of a model; InvalidArgumentError if it is none."""
    violations = Violations()
    violations.model_identifier("model", name)
    violations.raise_if_any()
    return name


def request(message: Message, request_id: str) -> Request:
    """The identity of a request that may come twice; InvalidArgumentError if its id is no UUID4."""
    violations = Violations()
    if request_id and not _is_uuid4(request_id):
        violations.add("request_id", "must be a UUID of version 4, or empty")
    violations.raise_if_any()
    return Request(request_id, hashlib.sha256(message.SerializeToString(deterministic=True)).hexdigest())


def drain_timeout(message: deployer_pb2.DeleteDeploymentRequest) -> float | None:
    """Seconds, or None if it is left open; 0 is a wish too. InvalidArgumentError."""
    if not message.HasField("drain_timeout"):
        return None
    if message.drain_timeout.ToNanoseconds() == 0:
        return 0.0
    violations = Violations()
    seconds = violations.duration_seconds("drain_timeout", message.drain_timeout, MAX_SECONDS)
    violations.raise_if_any()
    return seconds


def topology(message: deployer_pb2.Topology) -> Topology:
    """A machine that a client describes; InvalidArgumentError with every violation."""
    violations = Violations()
    kinds = [kind.value for kind in DeviceKind]
    ids = [device.id for device in message.devices]
    if not all(ids) or len(set(ids)) != len(ids):
        violations.add("topology.devices", "must have ids that are not empty and differ")
    for index, device in enumerate(message.devices):
        if device.kind not in kinds:
            violations.add(f"topology.devices[{index}].kind", f"must be one of {', '.join(kinds)}")
        for rate in ("memory_bandwidth_bytes_per_second", "flops_per_second"):
            violations.finite(f"topology.devices[{index}].{rate}", getattr(device, rate), 0, MAX_RATE)
    pairs: set[frozenset[str]] = set()
    for index, link in enumerate(message.links):
        pair = frozenset((link.device_a, link.device_b))
        if not pair <= set(ids):
            violations.add(f"topology.links[{index}]", "must be between devices of the topology")
        elif len(pair) < 2 or pair in pairs:
            violations.add(f"topology.links[{index}]", "must be the only one between two devices that differ")
        pairs.add(pair)
        field = f"topology.links[{index}].bandwidth_bytes_per_second"
        violations.finite(field, link.bandwidth_bytes_per_second, 0, MAX_RATE)
    violations.raise_if_any()
    return Topology(
        devices=tuple(_device(device) for device in message.devices),
        links=tuple(_link(link) for link in message.links),
        source=message.source or "file",
        warnings=tuple(message.warnings),
    )


def _spec(violations: Violations, message: deployer_pb2.DeploymentSpec) -> DeploymentSpec:
    violations.model_identifier("spec.model", message.model)
    if not message.weights_path.startswith("/"):
        violations.add("spec.weights_path", "must be an absolute path")
    violations.size("spec.weights_path", message.weights_path, MAX_PATH_BYTES)
    if message.backend and message.backend not in ENGINES:
        violations.add("spec.backend", f"must be one of {', '.join(ENGINES)} in this version")
    if message.objective not in _OBJECTIVES:
        violations.add("spec.objective", f"must be a known objective; got {message.objective:d}")
    if message.max_batch_rows > MAX_BATCH_ROWS:
        violations.add("spec.max_batch_rows", f"must be at most {MAX_BATCH_ROWS:,}; got {message.max_batch_rows:,}")
    if message.dtype and message.dtype not in ELEMENT_BYTES:
        violations.add("spec.dtype", f"must be one of {', '.join(ELEMENT_BYTES)}, or empty")
    if message.queue_shard > MAX_QUEUE_SHARD:
        violations.add("spec.queue_shard", f"must be at most {MAX_QUEUE_SHARD}; got {message.queue_shard:,}")
    _check_stages(violations, message)
    _check_generation(violations, message.default_generation)
    return DeploymentSpec(
        model=message.model,
        weights_path=message.weights_path,
        backend=message.backend or DEFAULT_BACKEND,
        objective=_OBJECTIVES.get(message.objective, Objective.HELR),
        max_batch_rows=message.max_batch_rows or DEFAULT_BATCH_ROWS,
        context_tokens=message.context_tokens,
        max_output_tokens=message.max_output_tokens,
        default_generation=_generation(message.default_generation),
        dtype=message.dtype,
        device_ids=tuple(message.device_ids),
        first_token_slo_seconds=_seconds(violations, message, "first_token_slo"),
        output_token_slo_seconds=_seconds(violations, message, "output_token_slo"),
        queue_shard=message.queue_shard,
        stage_layers=tuple(message.stage_layers),
    )


def _check_stages(violations: Violations, message: deployer_pb2.DeploymentSpec) -> None:
    devices, stages = message.device_ids, len(message.stage_layers)
    if not stages:
        return
    if len(devices) < stages or len(devices) % stages or len(set(devices)) < len(devices):
        violations.add("spec.device_ids", f"must be equally many different devices for each of the {stages} stages")
    if 0 in message.stage_layers:
        violations.add("spec.stage_layers", "must be at least 1 each")


def _check_generation(violations: Violations, message: query_pb2.GenerationParameters) -> None:
    """The same rules as for a query's own parameters."""
    try:
        validate_query(query_pb2.Query(prompt="-", generation=message), "spec")
    except InvalidArgumentError as error:
        violations.extend(
            FieldViolation(v.field.replace("spec.generation", "spec.default_generation"), v.description)
            for v in error.violations
        )


def _generation(message: query_pb2.GenerationParameters) -> Generation:
    values = {
        name: getattr(message, name)
        for name in ("max_output_tokens", "temperature", "top_p", "repetition_penalty", "seed")
        if message.HasField(name)
    }
    return Generation(**values, stop=tuple(message.stop))


def _seconds(violations: Violations, message: deployer_pb2.DeploymentSpec, field: str) -> float:
    if not message.HasField(field):
        return 0.0
    return violations.duration_seconds(f"spec.{field}", getattr(message, field), MAX_SECONDS) or 0.0


def _is_uuid4(text: str) -> bool:
    try:
        return uuid.UUID(text).version == 4
    except ValueError:
        return False


def _device(message: deployer_pb2.Device) -> Device:
    return Device(
        id=message.id,
        kind=DeviceKind(message.kind),
        model=message.model,
        memory_bytes=message.memory_bytes,
        free_memory_bytes=message.free_memory_bytes,
        memory_bandwidth=message.memory_bandwidth_bytes_per_second,
        flops=message.flops_per_second,
        numa_node=message.numa_node,
        pci_bus_id=message.pci_bus_id,
        cpu_affinity=message.cpu_affinity,
        parent_id=message.parent_id,
    )


def _link(message: deployer_pb2.Link) -> Link:
    return Link(
        device_a=message.device_a,
        device_b=message.device_b,
        link_class=message.link_class,
        bandwidth=message.bandwidth_bytes_per_second,
        latency_seconds=message.latency.ToNanoseconds() / 1e9,
        peer_access=message.peer_access,
        assumed=message.assumed,
    )
