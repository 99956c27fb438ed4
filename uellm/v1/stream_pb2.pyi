import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from uellm.v1 import query_pb2 as _query_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class EngineKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ENGINE_KIND_UNSPECIFIED: _ClassVar[EngineKind]
    ENGINE_KIND_STATIC: _ClassVar[EngineKind]
    ENGINE_KIND_CONTINUOUS: _ClassVar[EngineKind]

class DeploymentState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DEPLOYMENT_STATE_UNSPECIFIED: _ClassVar[DeploymentState]
    DEPLOYMENT_STATE_CREATING: _ClassVar[DeploymentState]
    DEPLOYMENT_STATE_READY: _ClassVar[DeploymentState]
    DEPLOYMENT_STATE_DRAINING: _ClassVar[DeploymentState]
    DEPLOYMENT_STATE_DELETING: _ClassVar[DeploymentState]
    DEPLOYMENT_STATE_FAILED: _ClassVar[DeploymentState]
ENGINE_KIND_UNSPECIFIED: EngineKind
ENGINE_KIND_STATIC: EngineKind
ENGINE_KIND_CONTINUOUS: EngineKind
DEPLOYMENT_STATE_UNSPECIFIED: DeploymentState
DEPLOYMENT_STATE_CREATING: DeploymentState
DEPLOYMENT_STATE_READY: DeploymentState
DEPLOYMENT_STATE_DRAINING: DeploymentState
DEPLOYMENT_STATE_DELETING: DeploymentState
DEPLOYMENT_STATE_FAILED: DeploymentState

class ProfiledQuery(_message.Message):
    __slots__ = ("schema_version", "trace_parent", "name", "profile", "slo", "priority", "adapter", "prefix_hash")
    SCHEMA_VERSION_FIELD_NUMBER: _ClassVar[int]
    TRACE_PARENT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    SLO_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    PREFIX_HASH_FIELD_NUMBER: _ClassVar[int]
    schema_version: int
    trace_parent: str
    name: str
    profile: _query_pb2.ResourceProfile
    slo: _query_pb2.Slo
    priority: int
    adapter: str
    prefix_hash: str
    def __init__(self, schema_version: _Optional[int] = ..., trace_parent: _Optional[str] = ..., name: _Optional[str] = ..., profile: _Optional[_Union[_query_pb2.ResourceProfile, _Mapping]] = ..., slo: _Optional[_Union[_query_pb2.Slo, _Mapping]] = ..., priority: _Optional[int] = ..., adapter: _Optional[str] = ..., prefix_hash: _Optional[str] = ...) -> None: ...

class QueryRecord(_message.Message):
    __slots__ = ("schema_version", "query", "prompt_token_ids")
    SCHEMA_VERSION_FIELD_NUMBER: _ClassVar[int]
    QUERY_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    schema_version: int
    query: _query_pb2.Query
    prompt_token_ids: _query_pb2.TokenIds
    def __init__(self, schema_version: _Optional[int] = ..., query: _Optional[_Union[_query_pb2.Query, _Mapping]] = ..., prompt_token_ids: _Optional[_Union[_query_pb2.TokenIds, _Mapping]] = ...) -> None: ...

class QueryEvent(_message.Message):
    __slots__ = ("schema_version", "time", "admitted", "batched", "token_delta", "restarted", "preempted", "outcome")
    SCHEMA_VERSION_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    ADMITTED_FIELD_NUMBER: _ClassVar[int]
    BATCHED_FIELD_NUMBER: _ClassVar[int]
    TOKEN_DELTA_FIELD_NUMBER: _ClassVar[int]
    RESTARTED_FIELD_NUMBER: _ClassVar[int]
    PREEMPTED_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    schema_version: int
    time: _timestamp_pb2.Timestamp
    admitted: Admitted
    batched: Batched
    token_delta: TokenDelta
    restarted: Restarted
    preempted: Preempted
    outcome: _query_pb2.Outcome
    def __init__(self, schema_version: _Optional[int] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., admitted: _Optional[_Union[Admitted, _Mapping]] = ..., batched: _Optional[_Union[Batched, _Mapping]] = ..., token_delta: _Optional[_Union[TokenDelta, _Mapping]] = ..., restarted: _Optional[_Union[Restarted, _Mapping]] = ..., preempted: _Optional[_Union[Preempted, _Mapping]] = ..., outcome: _Optional[_Union[_query_pb2.Outcome, _Mapping]] = ...) -> None: ...

class Admitted(_message.Message):
    __slots__ = ("profile",)
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    profile: _query_pb2.ResourceProfile
    def __init__(self, profile: _Optional[_Union[_query_pb2.ResourceProfile, _Mapping]] = ...) -> None: ...

class Batched(_message.Message):
    __slots__ = ("batch_id", "batch_rows", "deployment", "attempt", "decision_id")
    BATCH_ID_FIELD_NUMBER: _ClassVar[int]
    BATCH_ROWS_FIELD_NUMBER: _ClassVar[int]
    DEPLOYMENT_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    DECISION_ID_FIELD_NUMBER: _ClassVar[int]
    batch_id: str
    batch_rows: int
    deployment: str
    attempt: int
    decision_id: str
    def __init__(self, batch_id: _Optional[str] = ..., batch_rows: _Optional[int] = ..., deployment: _Optional[str] = ..., attempt: _Optional[int] = ..., decision_id: _Optional[str] = ...) -> None: ...

class TokenDelta(_message.Message):
    __slots__ = ("attempt", "first_token_index", "token_ids", "text")
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    FIRST_TOKEN_INDEX_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    attempt: int
    first_token_index: int
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    text: str
    def __init__(self, attempt: _Optional[int] = ..., first_token_index: _Optional[int] = ..., token_ids: _Optional[_Iterable[int]] = ..., text: _Optional[str] = ...) -> None: ...

class Restarted(_message.Message):
    __slots__ = ("attempt", "resume_index")
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    RESUME_INDEX_FIELD_NUMBER: _ClassVar[int]
    attempt: int
    resume_index: int
    def __init__(self, attempt: _Optional[int] = ..., resume_index: _Optional[int] = ...) -> None: ...

class Preempted(_message.Message):
    __slots__ = ("output_tokens",)
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    output_tokens: int
    def __init__(self, output_tokens: _Optional[int] = ...) -> None: ...

class Observation(_message.Message):
    __slots__ = ("schema_version", "name", "deployment", "profile", "temperature", "output_tokens", "censored", "queue_time", "service_time", "step_aggregates")
    SCHEMA_VERSION_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    DEPLOYMENT_FIELD_NUMBER: _ClassVar[int]
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CENSORED_FIELD_NUMBER: _ClassVar[int]
    QUEUE_TIME_FIELD_NUMBER: _ClassVar[int]
    SERVICE_TIME_FIELD_NUMBER: _ClassVar[int]
    STEP_AGGREGATES_FIELD_NUMBER: _ClassVar[int]
    schema_version: int
    name: str
    deployment: str
    profile: _query_pb2.ResourceProfile
    temperature: float
    output_tokens: int
    censored: bool
    queue_time: _duration_pb2.Duration
    service_time: _duration_pb2.Duration
    step_aggregates: StepAggregates
    def __init__(self, schema_version: _Optional[int] = ..., name: _Optional[str] = ..., deployment: _Optional[str] = ..., profile: _Optional[_Union[_query_pb2.ResourceProfile, _Mapping]] = ..., temperature: _Optional[float] = ..., output_tokens: _Optional[int] = ..., censored: _Optional[bool] = ..., queue_time: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., service_time: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., step_aggregates: _Optional[_Union[StepAggregates, _Mapping]] = ...) -> None: ...

class CalibrationState(_message.Message):
    __slots__ = ("schema_version", "last_entry_id", "predictors", "gaps", "unreadable")
    SCHEMA_VERSION_FIELD_NUMBER: _ClassVar[int]
    LAST_ENTRY_ID_FIELD_NUMBER: _ClassVar[int]
    PREDICTORS_FIELD_NUMBER: _ClassVar[int]
    GAPS_FIELD_NUMBER: _ClassVar[int]
    UNREADABLE_FIELD_NUMBER: _ClassVar[int]
    schema_version: int
    last_entry_id: str
    predictors: _containers.RepeatedCompositeFieldContainer[PredictorCalibration]
    gaps: int
    unreadable: int
    def __init__(self, schema_version: _Optional[int] = ..., last_entry_id: _Optional[str] = ..., predictors: _Optional[_Iterable[_Union[PredictorCalibration, _Mapping]]] = ..., gaps: _Optional[int] = ..., unreadable: _Optional[int] = ...) -> None: ...

class PredictorCalibration(_message.Message):
    __slots__ = ("predictor_version", "version", "observations", "events", "exposure", "rows", "feedback_levels", "feedback_cut_log_odds", "drift_sums", "learning_until", "trusted_from", "drifts", "within", "pinball_tokens", "scored_rows", "cuts", "predicted_cuts")
    PREDICTOR_VERSION_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    OBSERVATIONS_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    EXPOSURE_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    FEEDBACK_LEVELS_FIELD_NUMBER: _ClassVar[int]
    FEEDBACK_CUT_LOG_ODDS_FIELD_NUMBER: _ClassVar[int]
    DRIFT_SUMS_FIELD_NUMBER: _ClassVar[int]
    LEARNING_UNTIL_FIELD_NUMBER: _ClassVar[int]
    TRUSTED_FROM_FIELD_NUMBER: _ClassVar[int]
    DRIFTS_FIELD_NUMBER: _ClassVar[int]
    WITHIN_FIELD_NUMBER: _ClassVar[int]
    PINBALL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SCORED_ROWS_FIELD_NUMBER: _ClassVar[int]
    CUTS_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_CUTS_FIELD_NUMBER: _ClassVar[int]
    predictor_version: str
    version: str
    observations: int
    events: _containers.RepeatedScalarFieldContainer[float]
    exposure: _containers.RepeatedScalarFieldContainer[float]
    rows: float
    feedback_levels: _containers.RepeatedScalarFieldContainer[float]
    feedback_cut_log_odds: float
    drift_sums: _containers.RepeatedScalarFieldContainer[float]
    learning_until: int
    trusted_from: str
    drifts: int
    within: bytes
    pinball_tokens: _containers.RepeatedScalarFieldContainer[float]
    scored_rows: float
    cuts: float
    predicted_cuts: float
    def __init__(self, predictor_version: _Optional[str] = ..., version: _Optional[str] = ..., observations: _Optional[int] = ..., events: _Optional[_Iterable[float]] = ..., exposure: _Optional[_Iterable[float]] = ..., rows: _Optional[float] = ..., feedback_levels: _Optional[_Iterable[float]] = ..., feedback_cut_log_odds: _Optional[float] = ..., drift_sums: _Optional[_Iterable[float]] = ..., learning_until: _Optional[int] = ..., trusted_from: _Optional[str] = ..., drifts: _Optional[int] = ..., within: _Optional[bytes] = ..., pinball_tokens: _Optional[_Iterable[float]] = ..., scored_rows: _Optional[float] = ..., cuts: _Optional[float] = ..., predicted_cuts: _Optional[float] = ...) -> None: ...

class StepAggregates(_message.Message):
    __slots__ = ("prefill", "decode", "total_seconds")
    PREFILL_FIELD_NUMBER: _ClassVar[int]
    DECODE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    prefill: _containers.RepeatedCompositeFieldContainer[PrefillAggregate]
    decode: _containers.RepeatedCompositeFieldContainer[DecodeAggregate]
    total_seconds: float
    def __init__(self, prefill: _Optional[_Iterable[_Union[PrefillAggregate, _Mapping]]] = ..., decode: _Optional[_Iterable[_Union[DecodeAggregate, _Mapping]]] = ..., total_seconds: _Optional[float] = ...) -> None: ...

class PrefillAggregate(_message.Message):
    __slots__ = ("rows", "tokens", "padded_tokens", "seconds")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    PADDED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    rows: int
    tokens: int
    padded_tokens: int
    seconds: float
    def __init__(self, rows: _Optional[int] = ..., tokens: _Optional[int] = ..., padded_tokens: _Optional[int] = ..., seconds: _Optional[float] = ...) -> None: ...

class DecodeAggregate(_message.Message):
    __slots__ = ("rows", "first_context", "steps", "context_tokens", "seconds")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    FIRST_CONTEXT_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    rows: int
    first_context: int
    steps: int
    context_tokens: int
    seconds: float
    def __init__(self, rows: _Optional[int] = ..., first_context: _Optional[int] = ..., steps: _Optional[int] = ..., context_tokens: _Optional[int] = ..., seconds: _Optional[float] = ...) -> None: ...

class DeploymentRecord(_message.Message):
    __slots__ = ("schema_version", "name", "model", "triton_model", "triton_endpoint", "engine_kind", "state", "facts", "tokenizer_path", "limits", "step_time_prior", "traffic_share", "default_generation", "plan_hash", "publish_time", "queue_shard")
    SCHEMA_VERSION_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TRITON_MODEL_FIELD_NUMBER: _ClassVar[int]
    TRITON_ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    ENGINE_KIND_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    FACTS_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_PATH_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    STEP_TIME_PRIOR_FIELD_NUMBER: _ClassVar[int]
    TRAFFIC_SHARE_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_GENERATION_FIELD_NUMBER: _ClassVar[int]
    PLAN_HASH_FIELD_NUMBER: _ClassVar[int]
    PUBLISH_TIME_FIELD_NUMBER: _ClassVar[int]
    QUEUE_SHARD_FIELD_NUMBER: _ClassVar[int]
    schema_version: int
    name: str
    model: str
    triton_model: str
    triton_endpoint: str
    engine_kind: EngineKind
    state: DeploymentState
    facts: ModelFacts
    tokenizer_path: str
    limits: EngineLimits
    step_time_prior: StepTimePrior
    traffic_share: float
    default_generation: _query_pb2.GenerationParameters
    plan_hash: str
    publish_time: _timestamp_pb2.Timestamp
    queue_shard: int
    def __init__(self, schema_version: _Optional[int] = ..., name: _Optional[str] = ..., model: _Optional[str] = ..., triton_model: _Optional[str] = ..., triton_endpoint: _Optional[str] = ..., engine_kind: _Optional[_Union[EngineKind, str]] = ..., state: _Optional[_Union[DeploymentState, str]] = ..., facts: _Optional[_Union[ModelFacts, _Mapping]] = ..., tokenizer_path: _Optional[str] = ..., limits: _Optional[_Union[EngineLimits, _Mapping]] = ..., step_time_prior: _Optional[_Union[StepTimePrior, _Mapping]] = ..., traffic_share: _Optional[float] = ..., default_generation: _Optional[_Union[_query_pb2.GenerationParameters, _Mapping]] = ..., plan_hash: _Optional[str] = ..., publish_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., queue_shard: _Optional[int] = ...) -> None: ...

class ModelFacts(_message.Message):
    __slots__ = ("architecture", "layers", "hidden_size", "attention_heads", "kv_heads", "head_size", "vocabulary_size", "context_limit_tokens", "weight_bytes", "kv_bytes_per_token", "parameter_count", "kv_cache_layers")
    ARCHITECTURE_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_SIZE_FIELD_NUMBER: _ClassVar[int]
    ATTENTION_HEADS_FIELD_NUMBER: _ClassVar[int]
    KV_HEADS_FIELD_NUMBER: _ClassVar[int]
    HEAD_SIZE_FIELD_NUMBER: _ClassVar[int]
    VOCABULARY_SIZE_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_LIMIT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_BYTES_FIELD_NUMBER: _ClassVar[int]
    KV_BYTES_PER_TOKEN_FIELD_NUMBER: _ClassVar[int]
    PARAMETER_COUNT_FIELD_NUMBER: _ClassVar[int]
    KV_CACHE_LAYERS_FIELD_NUMBER: _ClassVar[int]
    architecture: str
    layers: int
    hidden_size: int
    attention_heads: int
    kv_heads: int
    head_size: int
    vocabulary_size: int
    context_limit_tokens: int
    weight_bytes: int
    kv_bytes_per_token: int
    parameter_count: int
    kv_cache_layers: _containers.RepeatedCompositeFieldContainer[KvCacheLayers]
    def __init__(self, architecture: _Optional[str] = ..., layers: _Optional[int] = ..., hidden_size: _Optional[int] = ..., attention_heads: _Optional[int] = ..., kv_heads: _Optional[int] = ..., head_size: _Optional[int] = ..., vocabulary_size: _Optional[int] = ..., context_limit_tokens: _Optional[int] = ..., weight_bytes: _Optional[int] = ..., kv_bytes_per_token: _Optional[int] = ..., parameter_count: _Optional[int] = ..., kv_cache_layers: _Optional[_Iterable[_Union[KvCacheLayers, _Mapping]]] = ...) -> None: ...

class KvCacheLayers(_message.Message):
    __slots__ = ("layers", "bytes_per_token", "window_tokens", "fixed_bytes")
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    BYTES_PER_TOKEN_FIELD_NUMBER: _ClassVar[int]
    WINDOW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    FIXED_BYTES_FIELD_NUMBER: _ClassVar[int]
    layers: int
    bytes_per_token: int
    window_tokens: int
    fixed_bytes: int
    def __init__(self, layers: _Optional[int] = ..., bytes_per_token: _Optional[int] = ..., window_tokens: _Optional[int] = ..., fixed_bytes: _Optional[int] = ...) -> None: ...

class EngineLimits(_message.Message):
    __slots__ = ("context_tokens", "max_output_tokens", "max_batch_rows", "max_concurrent_batches", "kv_budget_bytes", "resumable", "kv_page_tokens")
    CONTEXT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_ROWS_FIELD_NUMBER: _ClassVar[int]
    MAX_CONCURRENT_BATCHES_FIELD_NUMBER: _ClassVar[int]
    KV_BUDGET_BYTES_FIELD_NUMBER: _ClassVar[int]
    RESUMABLE_FIELD_NUMBER: _ClassVar[int]
    KV_PAGE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    context_tokens: int
    max_output_tokens: int
    max_batch_rows: int
    max_concurrent_batches: int
    kv_budget_bytes: int
    resumable: bool
    kv_page_tokens: int
    def __init__(self, context_tokens: _Optional[int] = ..., max_output_tokens: _Optional[int] = ..., max_batch_rows: _Optional[int] = ..., max_concurrent_batches: _Optional[int] = ..., kv_budget_bytes: _Optional[int] = ..., resumable: _Optional[bool] = ..., kv_page_tokens: _Optional[int] = ...) -> None: ...

class StepTimePrior(_message.Message):
    __slots__ = ("base_seconds", "per_row_seconds", "per_context_token_seconds", "prefill_per_token_seconds", "startup_seconds", "source")
    BASE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PER_ROW_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PER_CONTEXT_TOKEN_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PREFILL_PER_TOKEN_SECONDS_FIELD_NUMBER: _ClassVar[int]
    STARTUP_SECONDS_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    base_seconds: float
    per_row_seconds: float
    per_context_token_seconds: float
    prefill_per_token_seconds: float
    startup_seconds: float
    source: str
    def __init__(self, base_seconds: _Optional[float] = ..., per_row_seconds: _Optional[float] = ..., per_context_token_seconds: _Optional[float] = ..., prefill_per_token_seconds: _Optional[float] = ..., startup_seconds: _Optional[float] = ..., source: _Optional[str] = ...) -> None: ...

class CostModelState(_message.Message):
    __slots__ = ("schema_version", "deployment", "plan_hash", "version", "observations", "last_batch_id", "step_time", "decode", "start", "relative_error", "relative_errors", "within_interval", "interval_scale", "interval_ratio", "update_time")
    SCHEMA_VERSION_FIELD_NUMBER: _ClassVar[int]
    DEPLOYMENT_FIELD_NUMBER: _ClassVar[int]
    PLAN_HASH_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    OBSERVATIONS_FIELD_NUMBER: _ClassVar[int]
    LAST_BATCH_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_TIME_FIELD_NUMBER: _ClassVar[int]
    DECODE_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    RELATIVE_ERROR_FIELD_NUMBER: _ClassVar[int]
    RELATIVE_ERRORS_FIELD_NUMBER: _ClassVar[int]
    WITHIN_INTERVAL_FIELD_NUMBER: _ClassVar[int]
    INTERVAL_SCALE_FIELD_NUMBER: _ClassVar[int]
    INTERVAL_RATIO_FIELD_NUMBER: _ClassVar[int]
    UPDATE_TIME_FIELD_NUMBER: _ClassVar[int]
    schema_version: int
    deployment: str
    plan_hash: str
    version: str
    observations: int
    last_batch_id: str
    step_time: StepTimePrior
    decode: RegressionState
    start: RegressionState
    relative_error: float
    relative_errors: _containers.RepeatedScalarFieldContainer[float]
    within_interval: _containers.RepeatedScalarFieldContainer[bool]
    interval_scale: float
    interval_ratio: float
    update_time: _timestamp_pb2.Timestamp
    def __init__(self, schema_version: _Optional[int] = ..., deployment: _Optional[str] = ..., plan_hash: _Optional[str] = ..., version: _Optional[str] = ..., observations: _Optional[int] = ..., last_batch_id: _Optional[str] = ..., step_time: _Optional[_Union[StepTimePrior, _Mapping]] = ..., decode: _Optional[_Union[RegressionState, _Mapping]] = ..., start: _Optional[_Union[RegressionState, _Mapping]] = ..., relative_error: _Optional[float] = ..., relative_errors: _Optional[_Iterable[float]] = ..., within_interval: _Optional[_Iterable[bool]] = ..., interval_scale: _Optional[float] = ..., interval_ratio: _Optional[float] = ..., update_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class RegressionState(_message.Message):
    __slots__ = ("prior_mean", "prior_deviation", "information", "moment", "relative_variance", "step_variance", "noise_information", "noise_moment", "surprises")
    PRIOR_MEAN_FIELD_NUMBER: _ClassVar[int]
    PRIOR_DEVIATION_FIELD_NUMBER: _ClassVar[int]
    INFORMATION_FIELD_NUMBER: _ClassVar[int]
    MOMENT_FIELD_NUMBER: _ClassVar[int]
    RELATIVE_VARIANCE_FIELD_NUMBER: _ClassVar[int]
    STEP_VARIANCE_FIELD_NUMBER: _ClassVar[int]
    NOISE_INFORMATION_FIELD_NUMBER: _ClassVar[int]
    NOISE_MOMENT_FIELD_NUMBER: _ClassVar[int]
    SURPRISES_FIELD_NUMBER: _ClassVar[int]
    prior_mean: _containers.RepeatedScalarFieldContainer[float]
    prior_deviation: _containers.RepeatedScalarFieldContainer[float]
    information: _containers.RepeatedScalarFieldContainer[float]
    moment: _containers.RepeatedScalarFieldContainer[float]
    relative_variance: float
    step_variance: float
    noise_information: _containers.RepeatedScalarFieldContainer[float]
    noise_moment: _containers.RepeatedScalarFieldContainer[float]
    surprises: int
    def __init__(self, prior_mean: _Optional[_Iterable[float]] = ..., prior_deviation: _Optional[_Iterable[float]] = ..., information: _Optional[_Iterable[float]] = ..., moment: _Optional[_Iterable[float]] = ..., relative_variance: _Optional[float] = ..., step_variance: _Optional[float] = ..., noise_information: _Optional[_Iterable[float]] = ..., noise_moment: _Optional[_Iterable[float]] = ..., surprises: _Optional[int] = ...) -> None: ...

class Backlog(_message.Message):
    __slots__ = ("schema_version", "queued", "running", "work_p50", "work_p90", "publish_time", "policy", "oldest_accept_time", "deployments", "demand", "seconds_per_token")
    SCHEMA_VERSION_FIELD_NUMBER: _ClassVar[int]
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    WORK_P50_FIELD_NUMBER: _ClassVar[int]
    WORK_P90_FIELD_NUMBER: _ClassVar[int]
    PUBLISH_TIME_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    OLDEST_ACCEPT_TIME_FIELD_NUMBER: _ClassVar[int]
    DEPLOYMENTS_FIELD_NUMBER: _ClassVar[int]
    DEMAND_FIELD_NUMBER: _ClassVar[int]
    SECONDS_PER_TOKEN_FIELD_NUMBER: _ClassVar[int]
    schema_version: int
    queued: int
    running: int
    work_p50: _duration_pb2.Duration
    work_p90: _duration_pb2.Duration
    publish_time: _timestamp_pb2.Timestamp
    policy: str
    oldest_accept_time: _timestamp_pb2.Timestamp
    deployments: _containers.RepeatedCompositeFieldContainer[DeploymentBacklog]
    demand: _containers.RepeatedCompositeFieldContainer[DemandPoint]
    seconds_per_token: float
    def __init__(self, schema_version: _Optional[int] = ..., queued: _Optional[int] = ..., running: _Optional[int] = ..., work_p50: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., work_p90: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., publish_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., policy: _Optional[str] = ..., oldest_accept_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., deployments: _Optional[_Iterable[_Union[DeploymentBacklog, _Mapping]]] = ..., demand: _Optional[_Iterable[_Union[DemandPoint, _Mapping]]] = ..., seconds_per_token: _Optional[float] = ...) -> None: ...

class DemandPoint(_message.Message):
    __slots__ = ("due", "slack_seconds", "longest_seconds")
    DUE_FIELD_NUMBER: _ClassVar[int]
    SLACK_SECONDS_FIELD_NUMBER: _ClassVar[int]
    LONGEST_SECONDS_FIELD_NUMBER: _ClassVar[int]
    due: _duration_pb2.Duration
    slack_seconds: float
    longest_seconds: float
    def __init__(self, due: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., slack_seconds: _Optional[float] = ..., longest_seconds: _Optional[float] = ...) -> None: ...

class DeploymentBacklog(_message.Message):
    __slots__ = ("deployment", "soonest_free")
    DEPLOYMENT_FIELD_NUMBER: _ClassVar[int]
    SOONEST_FREE_FIELD_NUMBER: _ClassVar[int]
    deployment: str
    soonest_free: _duration_pb2.Duration
    def __init__(self, deployment: _Optional[str] = ..., soonest_free: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class DecisionRecord(_message.Message):
    __slots__ = ("schema_version", "time", "policy", "cost_model_version", "seed", "columns", "names", "batches", "refusals", "slots", "removed_slots", "keyframe", "engines", "tenants_served", "queued", "policy_version", "alone")
    class ColumnsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: bytes
        def __init__(self, key: _Optional[str] = ..., value: _Optional[bytes] = ...) -> None: ...
    SCHEMA_VERSION_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    COST_MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    BATCHES_FIELD_NUMBER: _ClassVar[int]
    REFUSALS_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    REMOVED_SLOTS_FIELD_NUMBER: _ClassVar[int]
    KEYFRAME_FIELD_NUMBER: _ClassVar[int]
    ENGINES_FIELD_NUMBER: _ClassVar[int]
    TENANTS_SERVED_FIELD_NUMBER: _ClassVar[int]
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    ALONE_FIELD_NUMBER: _ClassVar[int]
    schema_version: int
    time: _timestamp_pb2.Timestamp
    policy: str
    cost_model_version: str
    seed: int
    columns: _containers.ScalarMap[str, bytes]
    names: _containers.RepeatedScalarFieldContainer[str]
    batches: _containers.RepeatedCompositeFieldContainer[BatchDecision]
    refusals: _containers.RepeatedCompositeFieldContainer[RefusalDecision]
    slots: _containers.RepeatedScalarFieldContainer[int]
    removed_slots: _containers.RepeatedScalarFieldContainer[int]
    keyframe: bool
    engines: _containers.RepeatedCompositeFieldContainer[EngineSnapshot]
    tenants_served: bytes
    queued: int
    policy_version: int
    alone: bool
    def __init__(self, schema_version: _Optional[int] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., policy: _Optional[str] = ..., cost_model_version: _Optional[str] = ..., seed: _Optional[int] = ..., columns: _Optional[_Mapping[str, bytes]] = ..., names: _Optional[_Iterable[str]] = ..., batches: _Optional[_Iterable[_Union[BatchDecision, _Mapping]]] = ..., refusals: _Optional[_Iterable[_Union[RefusalDecision, _Mapping]]] = ..., slots: _Optional[_Iterable[int]] = ..., removed_slots: _Optional[_Iterable[int]] = ..., keyframe: _Optional[bool] = ..., engines: _Optional[_Iterable[_Union[EngineSnapshot, _Mapping]]] = ..., tenants_served: _Optional[bytes] = ..., queued: _Optional[int] = ..., policy_version: _Optional[int] = ..., alone: _Optional[bool] = ...) -> None: ...

class EngineSnapshot(_message.Message):
    __slots__ = ("deployment", "record", "cost_model", "free_batches", "running", "served_tokens")
    DEPLOYMENT_FIELD_NUMBER: _ClassVar[int]
    RECORD_FIELD_NUMBER: _ClassVar[int]
    COST_MODEL_FIELD_NUMBER: _ClassVar[int]
    FREE_BATCHES_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    SERVED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    deployment: str
    record: DeploymentRecord
    cost_model: CostModelState
    free_batches: int
    running: _containers.RepeatedCompositeFieldContainer[RunningBatchSnapshot]
    served_tokens: float
    def __init__(self, deployment: _Optional[str] = ..., record: _Optional[_Union[DeploymentRecord, _Mapping]] = ..., cost_model: _Optional[_Union[CostModelState, _Mapping]] = ..., free_batches: _Optional[int] = ..., running: _Optional[_Iterable[_Union[RunningBatchSnapshot, _Mapping]]] = ..., served_tokens: _Optional[float] = ...) -> None: ...

class RunningBatchSnapshot(_message.Message):
    __slots__ = ("prompt_tokens", "delivered_tokens", "limit_tokens", "length_points", "length_tail", "deadline_ms")
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DELIVERED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    LIMIT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    LENGTH_POINTS_FIELD_NUMBER: _ClassVar[int]
    LENGTH_TAIL_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_MS_FIELD_NUMBER: _ClassVar[int]
    prompt_tokens: _containers.RepeatedScalarFieldContainer[int]
    delivered_tokens: _containers.RepeatedScalarFieldContainer[int]
    limit_tokens: _containers.RepeatedScalarFieldContainer[int]
    length_points: _containers.RepeatedScalarFieldContainer[float]
    length_tail: _containers.RepeatedScalarFieldContainer[float]
    deadline_ms: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, prompt_tokens: _Optional[_Iterable[int]] = ..., delivered_tokens: _Optional[_Iterable[int]] = ..., limit_tokens: _Optional[_Iterable[int]] = ..., length_points: _Optional[_Iterable[float]] = ..., length_tail: _Optional[_Iterable[float]] = ..., deadline_ms: _Optional[_Iterable[int]] = ...) -> None: ...

class BatchDecision(_message.Message):
    __slots__ = ("batch_id", "deployment", "names")
    BATCH_ID_FIELD_NUMBER: _ClassVar[int]
    DEPLOYMENT_FIELD_NUMBER: _ClassVar[int]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    batch_id: str
    deployment: str
    names: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, batch_id: _Optional[str] = ..., deployment: _Optional[str] = ..., names: _Optional[_Iterable[str]] = ...) -> None: ...

class RefusalDecision(_message.Message):
    __slots__ = ("name", "refusal")
    NAME_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    name: str
    refusal: _query_pb2.Refusal
    def __init__(self, name: _Optional[str] = ..., refusal: _Optional[_Union[_query_pb2.Refusal, _Mapping]] = ...) -> None: ...

class DeadLetter(_message.Message):
    __slots__ = ("schema_version", "name", "record", "failure", "attempts", "entry", "fail_time")
    SCHEMA_VERSION_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    RECORD_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    FAIL_TIME_FIELD_NUMBER: _ClassVar[int]
    schema_version: int
    name: str
    record: QueryRecord
    failure: _query_pb2.Failure
    attempts: _containers.RepeatedCompositeFieldContainer[Attempt]
    entry: ProfiledQuery
    fail_time: _timestamp_pb2.Timestamp
    def __init__(self, schema_version: _Optional[int] = ..., name: _Optional[str] = ..., record: _Optional[_Union[QueryRecord, _Mapping]] = ..., failure: _Optional[_Union[_query_pb2.Failure, _Mapping]] = ..., attempts: _Optional[_Iterable[_Union[Attempt, _Mapping]]] = ..., entry: _Optional[_Union[ProfiledQuery, _Mapping]] = ..., fail_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class Attempt(_message.Message):
    __slots__ = ("attempt", "batch_id", "deployment", "failure", "end_time")
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    BATCH_ID_FIELD_NUMBER: _ClassVar[int]
    DEPLOYMENT_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    attempt: int
    batch_id: str
    deployment: str
    failure: _query_pb2.Failure
    end_time: _timestamp_pb2.Timestamp
    def __init__(self, attempt: _Optional[int] = ..., batch_id: _Optional[str] = ..., deployment: _Optional[str] = ..., failure: _Optional[_Union[_query_pb2.Failure, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class ControlMessage(_message.Message):
    __slots__ = ("schema_version", "cancel_query", "set_policy")
    SCHEMA_VERSION_FIELD_NUMBER: _ClassVar[int]
    CANCEL_QUERY_FIELD_NUMBER: _ClassVar[int]
    SET_POLICY_FIELD_NUMBER: _ClassVar[int]
    schema_version: int
    cancel_query: str
    set_policy: str
    def __init__(self, schema_version: _Optional[int] = ..., cancel_query: _Optional[str] = ..., set_policy: _Optional[str] = ...) -> None: ...

class PredictorInstallation(_message.Message):
    __slots__ = ("schema_version", "generation", "stack")
    SCHEMA_VERSION_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    STACK_FIELD_NUMBER: _ClassVar[int]
    schema_version: int
    generation: int
    stack: _containers.RepeatedCompositeFieldContainer[InstalledPredictor]
    def __init__(self, schema_version: _Optional[int] = ..., generation: _Optional[int] = ..., stack: _Optional[_Iterable[_Union[InstalledPredictor, _Mapping]]] = ...) -> None: ...

class InstalledPredictor(_message.Message):
    __slots__ = ("path", "kind", "version")
    PATH_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    path: str
    kind: str
    version: str
    def __init__(self, path: _Optional[str] = ..., kind: _Optional[str] = ..., version: _Optional[str] = ...) -> None: ...
