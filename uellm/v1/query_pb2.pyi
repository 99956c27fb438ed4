import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class OnMiss(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ON_MISS_UNSPECIFIED: _ClassVar[OnMiss]
    ON_MISS_FINISH_LATE: _ClassVar[OnMiss]
    ON_MISS_CANCEL: _ClassVar[OnMiss]

class QueryState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    QUERY_STATE_UNSPECIFIED: _ClassVar[QueryState]
    QUERY_STATE_QUEUED: _ClassVar[QueryState]
    QUERY_STATE_RUNNING: _ClassVar[QueryState]
    QUERY_STATE_COMPLETED: _ClassVar[QueryState]
    QUERY_STATE_REJECTED: _ClassVar[QueryState]
    QUERY_STATE_CANCELLED: _ClassVar[QueryState]
    QUERY_STATE_FAILED: _ClassVar[QueryState]
    QUERY_STATE_WITHDRAWN: _ClassVar[QueryState]

class FinishReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FINISH_REASON_UNSPECIFIED: _ClassVar[FinishReason]
    FINISH_REASON_STOP: _ClassVar[FinishReason]
    FINISH_REASON_LENGTH: _ClassVar[FinishReason]

class RefusalReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REFUSAL_REASON_UNSPECIFIED: _ClassVar[RefusalReason]
    REFUSAL_REASON_DEADLINE_INFEASIBLE: _ClassVar[RefusalReason]
    REFUSAL_REASON_QUEUE_FULL: _ClassVar[RefusalReason]
    REFUSAL_REASON_PROMPT_TOO_LONG: _ClassVar[RefusalReason]
    REFUSAL_REASON_MODEL_NOT_DEPLOYED: _ClassVar[RefusalReason]
    REFUSAL_REASON_QUOTA_EXCEEDED: _ClassVar[RefusalReason]
    REFUSAL_REASON_PREDICTOR_OVERLOADED: _ClassVar[RefusalReason]
ON_MISS_UNSPECIFIED: OnMiss
ON_MISS_FINISH_LATE: OnMiss
ON_MISS_CANCEL: OnMiss
QUERY_STATE_UNSPECIFIED: QueryState
QUERY_STATE_QUEUED: QueryState
QUERY_STATE_RUNNING: QueryState
QUERY_STATE_COMPLETED: QueryState
QUERY_STATE_REJECTED: QueryState
QUERY_STATE_CANCELLED: QueryState
QUERY_STATE_FAILED: QueryState
QUERY_STATE_WITHDRAWN: QueryState
FINISH_REASON_UNSPECIFIED: FinishReason
FINISH_REASON_STOP: FinishReason
FINISH_REASON_LENGTH: FinishReason
REFUSAL_REASON_UNSPECIFIED: RefusalReason
REFUSAL_REASON_DEADLINE_INFEASIBLE: RefusalReason
REFUSAL_REASON_QUEUE_FULL: RefusalReason
REFUSAL_REASON_PROMPT_TOO_LONG: RefusalReason
REFUSAL_REASON_MODEL_NOT_DEPLOYED: RefusalReason
REFUSAL_REASON_QUOTA_EXCEEDED: RefusalReason
REFUSAL_REASON_PREDICTOR_OVERLOADED: RefusalReason

class Query(_message.Message):
    __slots__ = ("name", "prompt", "chat", "prompt_token_ids", "generation", "engine_parameters", "adapter", "slo", "priority", "labels", "prefix_hash", "raw_prompt")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    CHAT_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    ENGINE_PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    SLO_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    PREFIX_HASH_FIELD_NUMBER: _ClassVar[int]
    RAW_PROMPT_FIELD_NUMBER: _ClassVar[int]
    name: str
    prompt: str
    chat: ChatMessages
    prompt_token_ids: TokenIds
    generation: GenerationParameters
    engine_parameters: _struct_pb2.Struct
    adapter: str
    slo: Slo
    priority: int
    labels: _containers.ScalarMap[str, str]
    prefix_hash: str
    raw_prompt: bool
    def __init__(self, name: _Optional[str] = ..., prompt: _Optional[str] = ..., chat: _Optional[_Union[ChatMessages, _Mapping]] = ..., prompt_token_ids: _Optional[_Union[TokenIds, _Mapping]] = ..., generation: _Optional[_Union[GenerationParameters, _Mapping]] = ..., engine_parameters: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., adapter: _Optional[str] = ..., slo: _Optional[_Union[Slo, _Mapping]] = ..., priority: _Optional[int] = ..., labels: _Optional[_Mapping[str, str]] = ..., prefix_hash: _Optional[str] = ..., raw_prompt: _Optional[bool] = ...) -> None: ...

class ChatMessages(_message.Message):
    __slots__ = ("messages",)
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    messages: _containers.RepeatedCompositeFieldContainer[ChatMessage]
    def __init__(self, messages: _Optional[_Iterable[_Union[ChatMessage, _Mapping]]] = ...) -> None: ...

class ChatMessage(_message.Message):
    __slots__ = ("role", "content")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    role: str
    content: str
    def __init__(self, role: _Optional[str] = ..., content: _Optional[str] = ...) -> None: ...

class TokenIds(_message.Message):
    __slots__ = ("ids",)
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, ids: _Optional[_Iterable[int]] = ...) -> None: ...

class GenerationParameters(_message.Message):
    __slots__ = ("max_output_tokens", "temperature", "top_p", "repetition_penalty", "seed", "stop")
    MAX_OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    max_output_tokens: int
    temperature: float
    top_p: float
    repetition_penalty: float
    seed: int
    stop: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, max_output_tokens: _Optional[int] = ..., temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., repetition_penalty: _Optional[float] = ..., seed: _Optional[int] = ..., stop: _Optional[_Iterable[str]] = ...) -> None: ...

class Slo(_message.Message):
    __slots__ = ("completion", "first_token", "confidence", "on_miss")
    COMPLETION_FIELD_NUMBER: _ClassVar[int]
    FIRST_TOKEN_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    ON_MISS_FIELD_NUMBER: _ClassVar[int]
    completion: _duration_pb2.Duration
    first_token: _duration_pb2.Duration
    confidence: float
    on_miss: OnMiss
    def __init__(self, completion: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., first_token: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., confidence: _Optional[float] = ..., on_miss: _Optional[_Union[OnMiss, str]] = ...) -> None: ...

class LengthDistribution(_message.Message):
    __slots__ = ("p50_tokens", "p90_tokens", "p99_tokens", "bucket_edges_tokens", "bucket_probabilities", "limit_probability", "limit_tokens")
    P50_TOKENS_FIELD_NUMBER: _ClassVar[int]
    P90_TOKENS_FIELD_NUMBER: _ClassVar[int]
    P99_TOKENS_FIELD_NUMBER: _ClassVar[int]
    BUCKET_EDGES_TOKENS_FIELD_NUMBER: _ClassVar[int]
    BUCKET_PROBABILITIES_FIELD_NUMBER: _ClassVar[int]
    LIMIT_PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    LIMIT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    p50_tokens: float
    p90_tokens: float
    p99_tokens: float
    bucket_edges_tokens: _containers.RepeatedScalarFieldContainer[int]
    bucket_probabilities: _containers.RepeatedScalarFieldContainer[float]
    limit_probability: float
    limit_tokens: int
    def __init__(self, p50_tokens: _Optional[float] = ..., p90_tokens: _Optional[float] = ..., p99_tokens: _Optional[float] = ..., bucket_edges_tokens: _Optional[_Iterable[int]] = ..., bucket_probabilities: _Optional[_Iterable[float]] = ..., limit_probability: _Optional[float] = ..., limit_tokens: _Optional[int] = ...) -> None: ...

class ResourceProfile(_message.Message):
    __slots__ = ("prompt_tokens", "output_length", "kv_cache_bytes_p90", "kv_cache_bytes_limit", "service_time_p50", "service_time_p90", "first_token_time", "predictor_version", "calibration_version", "cost_model_version", "hints", "batch_rows", "batch_service_time_p50", "batch_service_time_p90", "cost_model_error", "cost_model_interval", "uncalibrated_probabilities")
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    KV_CACHE_BYTES_P90_FIELD_NUMBER: _ClassVar[int]
    KV_CACHE_BYTES_LIMIT_FIELD_NUMBER: _ClassVar[int]
    SERVICE_TIME_P50_FIELD_NUMBER: _ClassVar[int]
    SERVICE_TIME_P90_FIELD_NUMBER: _ClassVar[int]
    FIRST_TOKEN_TIME_FIELD_NUMBER: _ClassVar[int]
    PREDICTOR_VERSION_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_VERSION_FIELD_NUMBER: _ClassVar[int]
    COST_MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    HINTS_FIELD_NUMBER: _ClassVar[int]
    BATCH_ROWS_FIELD_NUMBER: _ClassVar[int]
    BATCH_SERVICE_TIME_P50_FIELD_NUMBER: _ClassVar[int]
    BATCH_SERVICE_TIME_P90_FIELD_NUMBER: _ClassVar[int]
    COST_MODEL_ERROR_FIELD_NUMBER: _ClassVar[int]
    COST_MODEL_INTERVAL_FIELD_NUMBER: _ClassVar[int]
    UNCALIBRATED_PROBABILITIES_FIELD_NUMBER: _ClassVar[int]
    prompt_tokens: int
    output_length: LengthDistribution
    kv_cache_bytes_p90: int
    kv_cache_bytes_limit: int
    service_time_p50: _duration_pb2.Duration
    service_time_p90: _duration_pb2.Duration
    first_token_time: _duration_pb2.Duration
    predictor_version: str
    calibration_version: str
    cost_model_version: str
    hints: Hints
    batch_rows: int
    batch_service_time_p50: _duration_pb2.Duration
    batch_service_time_p90: _duration_pb2.Duration
    cost_model_error: float
    cost_model_interval: float
    uncalibrated_probabilities: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, prompt_tokens: _Optional[int] = ..., output_length: _Optional[_Union[LengthDistribution, _Mapping]] = ..., kv_cache_bytes_p90: _Optional[int] = ..., kv_cache_bytes_limit: _Optional[int] = ..., service_time_p50: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., service_time_p90: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., first_token_time: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., predictor_version: _Optional[str] = ..., calibration_version: _Optional[str] = ..., cost_model_version: _Optional[str] = ..., hints: _Optional[_Union[Hints, _Mapping]] = ..., batch_rows: _Optional[int] = ..., batch_service_time_p50: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., batch_service_time_p90: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., cost_model_error: _Optional[float] = ..., cost_model_interval: _Optional[float] = ..., uncalibrated_probabilities: _Optional[_Iterable[float]] = ...) -> None: ...

class Hints(_message.Message):
    __slots__ = ("osl", "vllm_priority")
    OSL_FIELD_NUMBER: _ClassVar[int]
    VLLM_PRIORITY_FIELD_NUMBER: _ClassVar[int]
    osl: int
    vllm_priority: int
    def __init__(self, osl: _Optional[int] = ..., vllm_priority: _Optional[int] = ...) -> None: ...

class Outcome(_message.Message):
    __slots__ = ("state", "finish_reason", "text", "prompt_tokens", "output_tokens", "refusal", "failure", "profile", "timing", "slo_met", "dispatch_count", "deployment", "batch_id", "batch_rows", "labels", "decision_id")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    STATE_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    SLO_MET_FIELD_NUMBER: _ClassVar[int]
    DISPATCH_COUNT_FIELD_NUMBER: _ClassVar[int]
    DEPLOYMENT_FIELD_NUMBER: _ClassVar[int]
    BATCH_ID_FIELD_NUMBER: _ClassVar[int]
    BATCH_ROWS_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    DECISION_ID_FIELD_NUMBER: _ClassVar[int]
    state: QueryState
    finish_reason: FinishReason
    text: str
    prompt_tokens: int
    output_tokens: int
    refusal: Refusal
    failure: Failure
    profile: ResourceProfile
    timing: Timing
    slo_met: bool
    dispatch_count: int
    deployment: str
    batch_id: str
    batch_rows: int
    labels: _containers.ScalarMap[str, str]
    decision_id: str
    def __init__(self, state: _Optional[_Union[QueryState, str]] = ..., finish_reason: _Optional[_Union[FinishReason, str]] = ..., text: _Optional[str] = ..., prompt_tokens: _Optional[int] = ..., output_tokens: _Optional[int] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ..., profile: _Optional[_Union[ResourceProfile, _Mapping]] = ..., timing: _Optional[_Union[Timing, _Mapping]] = ..., slo_met: _Optional[bool] = ..., dispatch_count: _Optional[int] = ..., deployment: _Optional[str] = ..., batch_id: _Optional[str] = ..., batch_rows: _Optional[int] = ..., labels: _Optional[_Mapping[str, str]] = ..., decision_id: _Optional[str] = ...) -> None: ...

class Timing(_message.Message):
    __slots__ = ("accept_time", "dispatch_time", "first_token_time", "finish_time")
    ACCEPT_TIME_FIELD_NUMBER: _ClassVar[int]
    DISPATCH_TIME_FIELD_NUMBER: _ClassVar[int]
    FIRST_TOKEN_TIME_FIELD_NUMBER: _ClassVar[int]
    FINISH_TIME_FIELD_NUMBER: _ClassVar[int]
    accept_time: _timestamp_pb2.Timestamp
    dispatch_time: _timestamp_pb2.Timestamp
    first_token_time: _timestamp_pb2.Timestamp
    finish_time: _timestamp_pb2.Timestamp
    def __init__(self, accept_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., dispatch_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., first_token_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., finish_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("reason", "message", "deadline_infeasible", "queue_full", "prompt_too_long", "quota_exceeded", "predictor_overloaded")
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_INFEASIBLE_FIELD_NUMBER: _ClassVar[int]
    QUEUE_FULL_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOO_LONG_FIELD_NUMBER: _ClassVar[int]
    QUOTA_EXCEEDED_FIELD_NUMBER: _ClassVar[int]
    PREDICTOR_OVERLOADED_FIELD_NUMBER: _ClassVar[int]
    reason: RefusalReason
    message: str
    deadline_infeasible: DeadlineInfeasible
    queue_full: QueueFull
    prompt_too_long: PromptTooLong
    quota_exceeded: QuotaExceeded
    predictor_overloaded: PredictorOverloaded
    def __init__(self, reason: _Optional[_Union[RefusalReason, str]] = ..., message: _Optional[str] = ..., deadline_infeasible: _Optional[_Union[DeadlineInfeasible, _Mapping]] = ..., queue_full: _Optional[_Union[QueueFull, _Mapping]] = ..., prompt_too_long: _Optional[_Union[PromptTooLong, _Mapping]] = ..., quota_exceeded: _Optional[_Union[QuotaExceeded, _Mapping]] = ..., predictor_overloaded: _Optional[_Union[PredictorOverloaded, _Mapping]] = ...) -> None: ...

class DeadlineInfeasible(_message.Message):
    __slots__ = ("predicted_finish_p50", "predicted_finish_p90", "deadline", "retry_after")
    PREDICTED_FINISH_P50_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_FINISH_P90_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_FIELD_NUMBER: _ClassVar[int]
    predicted_finish_p50: _duration_pb2.Duration
    predicted_finish_p90: _duration_pb2.Duration
    deadline: _duration_pb2.Duration
    retry_after: _duration_pb2.Duration
    def __init__(self, predicted_finish_p50: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., predicted_finish_p90: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., deadline: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., retry_after: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class QueueFull(_message.Message):
    __slots__ = ("depth", "limit", "retry_after")
    DEPTH_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_FIELD_NUMBER: _ClassVar[int]
    depth: int
    limit: int
    retry_after: _duration_pb2.Duration
    def __init__(self, depth: _Optional[int] = ..., limit: _Optional[int] = ..., retry_after: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class PromptTooLong(_message.Message):
    __slots__ = ("tokens", "limit")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    tokens: int
    limit: int
    def __init__(self, tokens: _Optional[int] = ..., limit: _Optional[int] = ...) -> None: ...

class QuotaExceeded(_message.Message):
    __slots__ = ("used_tokens", "limit_tokens", "retry_after")
    USED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    LIMIT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_FIELD_NUMBER: _ClassVar[int]
    used_tokens: int
    limit_tokens: int
    retry_after: _duration_pb2.Duration
    def __init__(self, used_tokens: _Optional[int] = ..., limit_tokens: _Optional[int] = ..., retry_after: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class PredictorOverloaded(_message.Message):
    __slots__ = ("waiting", "limit", "retry_after")
    WAITING_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_FIELD_NUMBER: _ClassVar[int]
    waiting: int
    limit: int
    retry_after: _duration_pb2.Duration
    def __init__(self, waiting: _Optional[int] = ..., limit: _Optional[int] = ..., retry_after: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class Failure(_message.Message):
    __slots__ = ("reason", "message")
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    reason: str
    message: str
    def __init__(self, reason: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...
