import datetime

from google.longrunning import operations_pb2 as _operations_pb2
from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from uellm.v1 import query_pb2 as _query_pb2
from uellm.v1 import stream_pb2 as _stream_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PlacementObjective(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PLACEMENT_OBJECTIVE_UNSPECIFIED: _ClassVar[PlacementObjective]
    PLACEMENT_OBJECTIVE_HELR: _ClassVar[PlacementObjective]
    PLACEMENT_OBJECTIVE_LR: _ClassVar[PlacementObjective]
    PLACEMENT_OBJECTIVE_HE: _ClassVar[PlacementObjective]

class DeploymentStrategy(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DEPLOYMENT_STRATEGY_UNSPECIFIED: _ClassVar[DeploymentStrategy]
    DEPLOYMENT_STRATEGY_BLUE_GREEN: _ClassVar[DeploymentStrategy]
    DEPLOYMENT_STRATEGY_RECREATE: _ClassVar[DeploymentStrategy]
    DEPLOYMENT_STRATEGY_BESIDE: _ClassVar[DeploymentStrategy]

class DeploymentStage(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DEPLOYMENT_STAGE_UNSPECIFIED: _ClassVar[DeploymentStage]
    DEPLOYMENT_STAGE_PLAN: _ClassVar[DeploymentStage]
    DEPLOYMENT_STAGE_STAGE: _ClassVar[DeploymentStage]
    DEPLOYMENT_STAGE_PREFLIGHT: _ClassVar[DeploymentStage]
    DEPLOYMENT_STAGE_LOAD: _ClassVar[DeploymentStage]
    DEPLOYMENT_STAGE_VERIFY: _ClassVar[DeploymentStage]
    DEPLOYMENT_STAGE_SWITCH: _ClassVar[DeploymentStage]
    DEPLOYMENT_STAGE_DRAIN: _ClassVar[DeploymentStage]
    DEPLOYMENT_STAGE_UNLOAD: _ClassVar[DeploymentStage]
    DEPLOYMENT_STAGE_DONE: _ClassVar[DeploymentStage]
    DEPLOYMENT_STAGE_ROLL_BACK: _ClassVar[DeploymentStage]
PLACEMENT_OBJECTIVE_UNSPECIFIED: PlacementObjective
PLACEMENT_OBJECTIVE_HELR: PlacementObjective
PLACEMENT_OBJECTIVE_LR: PlacementObjective
PLACEMENT_OBJECTIVE_HE: PlacementObjective
DEPLOYMENT_STRATEGY_UNSPECIFIED: DeploymentStrategy
DEPLOYMENT_STRATEGY_BLUE_GREEN: DeploymentStrategy
DEPLOYMENT_STRATEGY_RECREATE: DeploymentStrategy
DEPLOYMENT_STRATEGY_BESIDE: DeploymentStrategy
DEPLOYMENT_STAGE_UNSPECIFIED: DeploymentStage
DEPLOYMENT_STAGE_PLAN: DeploymentStage
DEPLOYMENT_STAGE_STAGE: DeploymentStage
DEPLOYMENT_STAGE_PREFLIGHT: DeploymentStage
DEPLOYMENT_STAGE_LOAD: DeploymentStage
DEPLOYMENT_STAGE_VERIFY: DeploymentStage
DEPLOYMENT_STAGE_SWITCH: DeploymentStage
DEPLOYMENT_STAGE_DRAIN: DeploymentStage
DEPLOYMENT_STAGE_UNLOAD: DeploymentStage
DEPLOYMENT_STAGE_DONE: DeploymentStage
DEPLOYMENT_STAGE_ROLL_BACK: DeploymentStage

class Device(_message.Message):
    __slots__ = ("id", "kind", "model", "memory_bytes", "free_memory_bytes", "memory_bandwidth_bytes_per_second", "flops_per_second", "numa_node", "pci_bus_id", "cpu_affinity", "parent_id")
    ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    FREE_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BANDWIDTH_BYTES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    FLOPS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    NUMA_NODE_FIELD_NUMBER: _ClassVar[int]
    PCI_BUS_ID_FIELD_NUMBER: _ClassVar[int]
    CPU_AFFINITY_FIELD_NUMBER: _ClassVar[int]
    PARENT_ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    kind: str
    model: str
    memory_bytes: int
    free_memory_bytes: int
    memory_bandwidth_bytes_per_second: float
    flops_per_second: float
    numa_node: int
    pci_bus_id: str
    cpu_affinity: str
    parent_id: str
    def __init__(self, id: _Optional[str] = ..., kind: _Optional[str] = ..., model: _Optional[str] = ..., memory_bytes: _Optional[int] = ..., free_memory_bytes: _Optional[int] = ..., memory_bandwidth_bytes_per_second: _Optional[float] = ..., flops_per_second: _Optional[float] = ..., numa_node: _Optional[int] = ..., pci_bus_id: _Optional[str] = ..., cpu_affinity: _Optional[str] = ..., parent_id: _Optional[str] = ...) -> None: ...

class Link(_message.Message):
    __slots__ = ("device_a", "device_b", "link_class", "bandwidth_bytes_per_second", "latency", "peer_access", "assumed")
    DEVICE_A_FIELD_NUMBER: _ClassVar[int]
    DEVICE_B_FIELD_NUMBER: _ClassVar[int]
    LINK_CLASS_FIELD_NUMBER: _ClassVar[int]
    BANDWIDTH_BYTES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    LATENCY_FIELD_NUMBER: _ClassVar[int]
    PEER_ACCESS_FIELD_NUMBER: _ClassVar[int]
    ASSUMED_FIELD_NUMBER: _ClassVar[int]
    device_a: str
    device_b: str
    link_class: str
    bandwidth_bytes_per_second: float
    latency: _duration_pb2.Duration
    peer_access: bool
    assumed: bool
    def __init__(self, device_a: _Optional[str] = ..., device_b: _Optional[str] = ..., link_class: _Optional[str] = ..., bandwidth_bytes_per_second: _Optional[float] = ..., latency: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., peer_access: _Optional[bool] = ..., assumed: _Optional[bool] = ...) -> None: ...

class Topology(_message.Message):
    __slots__ = ("devices", "links", "source", "warnings")
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    LINKS_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    devices: _containers.RepeatedCompositeFieldContainer[Device]
    links: _containers.RepeatedCompositeFieldContainer[Link]
    source: str
    warnings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, devices: _Optional[_Iterable[_Union[Device, _Mapping]]] = ..., links: _Optional[_Iterable[_Union[Link, _Mapping]]] = ..., source: _Optional[str] = ..., warnings: _Optional[_Iterable[str]] = ...) -> None: ...

class GetTopologyRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetTopologyResponse(_message.Message):
    __slots__ = ("topology",)
    TOPOLOGY_FIELD_NUMBER: _ClassVar[int]
    topology: Topology
    def __init__(self, topology: _Optional[_Union[Topology, _Mapping]] = ...) -> None: ...

class DeploymentSpec(_message.Message):
    __slots__ = ("model", "weights_path", "backend", "objective", "max_batch_rows", "context_tokens", "max_output_tokens", "default_generation", "dtype", "device_ids", "first_token_slo", "output_token_slo", "queue_shard", "stage_layers")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_PATH_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_ROWS_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_GENERATION_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_IDS_FIELD_NUMBER: _ClassVar[int]
    FIRST_TOKEN_SLO_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKEN_SLO_FIELD_NUMBER: _ClassVar[int]
    QUEUE_SHARD_FIELD_NUMBER: _ClassVar[int]
    STAGE_LAYERS_FIELD_NUMBER: _ClassVar[int]
    model: str
    weights_path: str
    backend: str
    objective: PlacementObjective
    max_batch_rows: int
    context_tokens: int
    max_output_tokens: int
    default_generation: _query_pb2.GenerationParameters
    dtype: str
    device_ids: _containers.RepeatedScalarFieldContainer[str]
    first_token_slo: _duration_pb2.Duration
    output_token_slo: _duration_pb2.Duration
    queue_shard: int
    stage_layers: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, model: _Optional[str] = ..., weights_path: _Optional[str] = ..., backend: _Optional[str] = ..., objective: _Optional[_Union[PlacementObjective, str]] = ..., max_batch_rows: _Optional[int] = ..., context_tokens: _Optional[int] = ..., max_output_tokens: _Optional[int] = ..., default_generation: _Optional[_Union[_query_pb2.GenerationParameters, _Mapping]] = ..., dtype: _Optional[str] = ..., device_ids: _Optional[_Iterable[str]] = ..., first_token_slo: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., output_token_slo: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., queue_shard: _Optional[int] = ..., stage_layers: _Optional[_Iterable[int]] = ...) -> None: ...

class Stage(_message.Message):
    __slots__ = ("device_ids", "first_layer", "layer_count", "embedding", "head", "weight_bytes", "kv_bytes", "reserve_bytes")
    DEVICE_IDS_FIELD_NUMBER: _ClassVar[int]
    FIRST_LAYER_FIELD_NUMBER: _ClassVar[int]
    LAYER_COUNT_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_BYTES_FIELD_NUMBER: _ClassVar[int]
    KV_BYTES_FIELD_NUMBER: _ClassVar[int]
    RESERVE_BYTES_FIELD_NUMBER: _ClassVar[int]
    device_ids: _containers.RepeatedScalarFieldContainer[str]
    first_layer: int
    layer_count: int
    embedding: bool
    head: bool
    weight_bytes: int
    kv_bytes: int
    reserve_bytes: int
    def __init__(self, device_ids: _Optional[_Iterable[str]] = ..., first_layer: _Optional[int] = ..., layer_count: _Optional[int] = ..., embedding: _Optional[bool] = ..., head: _Optional[bool] = ..., weight_bytes: _Optional[int] = ..., kv_bytes: _Optional[int] = ..., reserve_bytes: _Optional[int] = ...) -> None: ...

class DeploymentPlan(_message.Message):
    __slots__ = ("plan_hash", "spec", "stages", "facts", "step_time", "first_token_time", "output_token_time", "kv_budget_bytes", "lower_bound_seconds", "objective_seconds", "explanation")
    PLAN_HASH_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    FACTS_FIELD_NUMBER: _ClassVar[int]
    STEP_TIME_FIELD_NUMBER: _ClassVar[int]
    FIRST_TOKEN_TIME_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKEN_TIME_FIELD_NUMBER: _ClassVar[int]
    KV_BUDGET_BYTES_FIELD_NUMBER: _ClassVar[int]
    LOWER_BOUND_SECONDS_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    EXPLANATION_FIELD_NUMBER: _ClassVar[int]
    plan_hash: str
    spec: DeploymentSpec
    stages: _containers.RepeatedCompositeFieldContainer[Stage]
    facts: _stream_pb2.ModelFacts
    step_time: _stream_pb2.StepTimePrior
    first_token_time: _duration_pb2.Duration
    output_token_time: _duration_pb2.Duration
    kv_budget_bytes: int
    lower_bound_seconds: float
    objective_seconds: float
    explanation: str
    def __init__(self, plan_hash: _Optional[str] = ..., spec: _Optional[_Union[DeploymentSpec, _Mapping]] = ..., stages: _Optional[_Iterable[_Union[Stage, _Mapping]]] = ..., facts: _Optional[_Union[_stream_pb2.ModelFacts, _Mapping]] = ..., step_time: _Optional[_Union[_stream_pb2.StepTimePrior, _Mapping]] = ..., first_token_time: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., output_token_time: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., kv_budget_bytes: _Optional[int] = ..., lower_bound_seconds: _Optional[float] = ..., objective_seconds: _Optional[float] = ..., explanation: _Optional[str] = ...) -> None: ...

class Alternative(_message.Message):
    __slots__ = ("plan", "reason")
    PLAN_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    plan: DeploymentPlan
    reason: str
    def __init__(self, plan: _Optional[_Union[DeploymentPlan, _Mapping]] = ..., reason: _Optional[str] = ...) -> None: ...

class PlanDeploymentRequest(_message.Message):
    __slots__ = ("spec", "topology")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    TOPOLOGY_FIELD_NUMBER: _ClassVar[int]
    spec: DeploymentSpec
    topology: Topology
    def __init__(self, spec: _Optional[_Union[DeploymentSpec, _Mapping]] = ..., topology: _Optional[_Union[Topology, _Mapping]] = ...) -> None: ...

class PlanDeploymentResponse(_message.Message):
    __slots__ = ("plan", "alternatives", "what_if")
    PLAN_FIELD_NUMBER: _ClassVar[int]
    ALTERNATIVES_FIELD_NUMBER: _ClassVar[int]
    WHAT_IF_FIELD_NUMBER: _ClassVar[int]
    plan: DeploymentPlan
    alternatives: _containers.RepeatedCompositeFieldContainer[Alternative]
    what_if: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, plan: _Optional[_Union[DeploymentPlan, _Mapping]] = ..., alternatives: _Optional[_Iterable[_Union[Alternative, _Mapping]]] = ..., what_if: _Optional[_Iterable[str]] = ...) -> None: ...

class PlanFleetRequest(_message.Message):
    __slots__ = ("members", "topology")
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    TOPOLOGY_FIELD_NUMBER: _ClassVar[int]
    members: _containers.RepeatedCompositeFieldContainer[FleetMember]
    topology: Topology
    def __init__(self, members: _Optional[_Iterable[_Union[FleetMember, _Mapping]]] = ..., topology: _Optional[_Union[Topology, _Mapping]] = ...) -> None: ...

class FleetMember(_message.Message):
    __slots__ = ("spec", "traffic_share", "copies")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    TRAFFIC_SHARE_FIELD_NUMBER: _ClassVar[int]
    COPIES_FIELD_NUMBER: _ClassVar[int]
    spec: DeploymentSpec
    traffic_share: float
    copies: int
    def __init__(self, spec: _Optional[_Union[DeploymentSpec, _Mapping]] = ..., traffic_share: _Optional[float] = ..., copies: _Optional[int] = ...) -> None: ...

class PlanFleetResponse(_message.Message):
    __slots__ = ("plans", "explanation", "tokens_per_second", "tokens_per_second_bound")
    PLANS_FIELD_NUMBER: _ClassVar[int]
    EXPLANATION_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_SECOND_BOUND_FIELD_NUMBER: _ClassVar[int]
    plans: _containers.RepeatedCompositeFieldContainer[DeploymentPlan]
    explanation: str
    tokens_per_second: float
    tokens_per_second_bound: float
    def __init__(self, plans: _Optional[_Iterable[_Union[DeploymentPlan, _Mapping]]] = ..., explanation: _Optional[str] = ..., tokens_per_second: _Optional[float] = ..., tokens_per_second_bound: _Optional[float] = ...) -> None: ...

class CreateDeploymentRequest(_message.Message):
    __slots__ = ("deployment_id", "spec", "strategy", "validate_only", "request_id")
    DEPLOYMENT_ID_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    STRATEGY_FIELD_NUMBER: _ClassVar[int]
    VALIDATE_ONLY_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    deployment_id: str
    spec: DeploymentSpec
    strategy: DeploymentStrategy
    validate_only: bool
    request_id: str
    def __init__(self, deployment_id: _Optional[str] = ..., spec: _Optional[_Union[DeploymentSpec, _Mapping]] = ..., strategy: _Optional[_Union[DeploymentStrategy, str]] = ..., validate_only: _Optional[bool] = ..., request_id: _Optional[str] = ...) -> None: ...

class DeploymentProgress(_message.Message):
    __slots__ = ("deployment", "stage", "percent", "message", "start_time")
    DEPLOYMENT_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    PERCENT_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    deployment: str
    stage: DeploymentStage
    percent: int
    message: str
    start_time: _timestamp_pb2.Timestamp
    def __init__(self, deployment: _Optional[str] = ..., stage: _Optional[_Union[DeploymentStage, str]] = ..., percent: _Optional[int] = ..., message: _Optional[str] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class Deployment(_message.Message):
    __slots__ = ("name", "state", "plan", "record", "create_time", "etag", "failure", "measured_kv_bytes_per_token")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    RECORD_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    MEASURED_KV_BYTES_PER_TOKEN_FIELD_NUMBER: _ClassVar[int]
    name: str
    state: _stream_pb2.DeploymentState
    plan: DeploymentPlan
    record: _stream_pb2.DeploymentRecord
    create_time: _timestamp_pb2.Timestamp
    etag: str
    failure: str
    measured_kv_bytes_per_token: int
    def __init__(self, name: _Optional[str] = ..., state: _Optional[_Union[_stream_pb2.DeploymentState, str]] = ..., plan: _Optional[_Union[DeploymentPlan, _Mapping]] = ..., record: _Optional[_Union[_stream_pb2.DeploymentRecord, _Mapping]] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., etag: _Optional[str] = ..., failure: _Optional[str] = ..., measured_kv_bytes_per_token: _Optional[int] = ...) -> None: ...

class GetDeploymentRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetDeploymentResponse(_message.Message):
    __slots__ = ("deployment",)
    DEPLOYMENT_FIELD_NUMBER: _ClassVar[int]
    deployment: Deployment
    def __init__(self, deployment: _Optional[_Union[Deployment, _Mapping]] = ...) -> None: ...

class ListDeploymentsRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListDeploymentsResponse(_message.Message):
    __slots__ = ("deployments", "next_page_token")
    DEPLOYMENTS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    deployments: _containers.RepeatedCompositeFieldContainer[Deployment]
    next_page_token: str
    def __init__(self, deployments: _Optional[_Iterable[_Union[Deployment, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class WatchDeploymentRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class WatchDeploymentResponse(_message.Message):
    __slots__ = ("deployment", "progress", "recommendation")
    DEPLOYMENT_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    RECOMMENDATION_FIELD_NUMBER: _ClassVar[int]
    deployment: Deployment
    progress: DeploymentProgress
    recommendation: Alternative
    def __init__(self, deployment: _Optional[_Union[Deployment, _Mapping]] = ..., progress: _Optional[_Union[DeploymentProgress, _Mapping]] = ..., recommendation: _Optional[_Union[Alternative, _Mapping]] = ...) -> None: ...

class SetTrafficRequest(_message.Message):
    __slots__ = ("model", "shares")
    class SharesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SHARES_FIELD_NUMBER: _ClassVar[int]
    model: str
    shares: _containers.ScalarMap[str, float]
    def __init__(self, model: _Optional[str] = ..., shares: _Optional[_Mapping[str, float]] = ...) -> None: ...

class SetTrafficResponse(_message.Message):
    __slots__ = ("deployments",)
    DEPLOYMENTS_FIELD_NUMBER: _ClassVar[int]
    deployments: _containers.RepeatedCompositeFieldContainer[Deployment]
    def __init__(self, deployments: _Optional[_Iterable[_Union[Deployment, _Mapping]]] = ...) -> None: ...

class RollbackDeploymentRequest(_message.Message):
    __slots__ = ("model", "request_id")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    model: str
    request_id: str
    def __init__(self, model: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class DeleteDeploymentRequest(_message.Message):
    __slots__ = ("name", "etag", "request_id", "drain_timeout")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    DRAIN_TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    name: str
    etag: str
    request_id: str
    drain_timeout: _duration_pb2.Duration
    def __init__(self, name: _Optional[str] = ..., etag: _Optional[str] = ..., request_id: _Optional[str] = ..., drain_timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class ReconcileRequest(_message.Message):
    __slots__ = ("validate_only", "restart_triton")
    VALIDATE_ONLY_FIELD_NUMBER: _ClassVar[int]
    RESTART_TRITON_FIELD_NUMBER: _ClassVar[int]
    validate_only: bool
    restart_triton: bool
    def __init__(self, validate_only: _Optional[bool] = ..., restart_triton: _Optional[bool] = ...) -> None: ...

class ReconcileResponse(_message.Message):
    __slots__ = ("drifts",)
    DRIFTS_FIELD_NUMBER: _ClassVar[int]
    drifts: _containers.RepeatedCompositeFieldContainer[Drift]
    def __init__(self, drifts: _Optional[_Iterable[_Union[Drift, _Mapping]]] = ...) -> None: ...

class Drift(_message.Message):
    __slots__ = ("subject", "difference", "repair")
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    DIFFERENCE_FIELD_NUMBER: _ClassVar[int]
    REPAIR_FIELD_NUMBER: _ClassVar[int]
    subject: str
    difference: str
    repair: str
    def __init__(self, subject: _Optional[str] = ..., difference: _Optional[str] = ..., repair: _Optional[str] = ...) -> None: ...

class GetOperationRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...
