import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from uellm.v1 import query_pb2 as _query_pb2
from uellm.v1 import stream_pb2 as _stream_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class WatchRequest(_message.Message):
    __slots__ = ("targets", "parent", "cursor")
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    targets: _containers.RepeatedCompositeFieldContainer[WatchTarget]
    parent: str
    cursor: str
    def __init__(self, targets: _Optional[_Iterable[_Union[WatchTarget, _Mapping]]] = ..., parent: _Optional[str] = ..., cursor: _Optional[str] = ...) -> None: ...

class WatchTarget(_message.Message):
    __slots__ = ("name", "cursor")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    name: str
    cursor: str
    def __init__(self, name: _Optional[str] = ..., cursor: _Optional[str] = ...) -> None: ...

class WatchResponse(_message.Message):
    __slots__ = ("name", "cursor", "event")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    EVENT_FIELD_NUMBER: _ClassVar[int]
    name: str
    cursor: str
    event: _stream_pb2.QueryEvent
    def __init__(self, name: _Optional[str] = ..., cursor: _Optional[str] = ..., event: _Optional[_Union[_stream_pb2.QueryEvent, _Mapping]] = ...) -> None: ...

class GetQueryRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetQueryResponse(_message.Message):
    __slots__ = ("status",)
    STATUS_FIELD_NUMBER: _ClassVar[int]
    status: QueryStatus
    def __init__(self, status: _Optional[_Union[QueryStatus, _Mapping]] = ...) -> None: ...

class QueryStatus(_message.Message):
    __slots__ = ("name", "state", "dispatch_count", "accept_time", "outcome")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    DISPATCH_COUNT_FIELD_NUMBER: _ClassVar[int]
    ACCEPT_TIME_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    name: str
    state: _query_pb2.QueryState
    dispatch_count: int
    accept_time: _timestamp_pb2.Timestamp
    outcome: _query_pb2.Outcome
    def __init__(self, name: _Optional[str] = ..., state: _Optional[_Union[_query_pb2.QueryState, str]] = ..., dispatch_count: _Optional[int] = ..., accept_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., outcome: _Optional[_Union[_query_pb2.Outcome, _Mapping]] = ...) -> None: ...

class ListQueriesRequest(_message.Message):
    __slots__ = ("parent", "page_size", "page_token")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    parent: str
    page_size: int
    page_token: str
    def __init__(self, parent: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListQueriesResponse(_message.Message):
    __slots__ = ("queries", "next_page_token")
    QUERIES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    queries: _containers.RepeatedCompositeFieldContainer[QueryStatus]
    next_page_token: str
    def __init__(self, queries: _Optional[_Iterable[_Union[QueryStatus, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class CancelQueryRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class CancelQueryResponse(_message.Message):
    __slots__ = ("state",)
    STATE_FIELD_NUMBER: _ClassVar[int]
    state: _query_pb2.QueryState
    def __init__(self, state: _Optional[_Union[_query_pb2.QueryState, str]] = ...) -> None: ...

class GetQueueRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class GetQueueResponse(_message.Message):
    __slots__ = ("queued", "running", "oldest_wait", "policy", "owner", "owner_epoch", "batches", "cost_models", "shards")
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    OLDEST_WAIT_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    OWNER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    BATCHES_FIELD_NUMBER: _ClassVar[int]
    COST_MODELS_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    queued: int
    running: int
    oldest_wait: _duration_pb2.Duration
    policy: str
    owner: str
    owner_epoch: int
    batches: _containers.RepeatedCompositeFieldContainer[RunningBatch]
    cost_models: _containers.RepeatedCompositeFieldContainer[CostModelStatus]
    shards: _containers.RepeatedCompositeFieldContainer[QueueShard]
    def __init__(self, queued: _Optional[int] = ..., running: _Optional[int] = ..., oldest_wait: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., policy: _Optional[str] = ..., owner: _Optional[str] = ..., owner_epoch: _Optional[int] = ..., batches: _Optional[_Iterable[_Union[RunningBatch, _Mapping]]] = ..., cost_models: _Optional[_Iterable[_Union[CostModelStatus, _Mapping]]] = ..., shards: _Optional[_Iterable[_Union[QueueShard, _Mapping]]] = ...) -> None: ...

class QueueShard(_message.Message):
    __slots__ = ("shard", "queued", "running", "owner", "owner_epoch")
    SHARD_FIELD_NUMBER: _ClassVar[int]
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    OWNER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    shard: int
    queued: int
    running: int
    owner: str
    owner_epoch: int
    def __init__(self, shard: _Optional[int] = ..., queued: _Optional[int] = ..., running: _Optional[int] = ..., owner: _Optional[str] = ..., owner_epoch: _Optional[int] = ...) -> None: ...

class CostModelStatus(_message.Message):
    __slots__ = ("deployment", "version", "observations", "step_time", "standard_deviation", "relative_error", "interval_coverage", "interval_ratio", "condition_number")
    DEPLOYMENT_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    OBSERVATIONS_FIELD_NUMBER: _ClassVar[int]
    STEP_TIME_FIELD_NUMBER: _ClassVar[int]
    STANDARD_DEVIATION_FIELD_NUMBER: _ClassVar[int]
    RELATIVE_ERROR_FIELD_NUMBER: _ClassVar[int]
    INTERVAL_COVERAGE_FIELD_NUMBER: _ClassVar[int]
    INTERVAL_RATIO_FIELD_NUMBER: _ClassVar[int]
    CONDITION_NUMBER_FIELD_NUMBER: _ClassVar[int]
    deployment: str
    version: str
    observations: int
    step_time: _stream_pb2.StepTimePrior
    standard_deviation: _stream_pb2.StepTimePrior
    relative_error: float
    interval_coverage: float
    interval_ratio: float
    condition_number: float
    def __init__(self, deployment: _Optional[str] = ..., version: _Optional[str] = ..., observations: _Optional[int] = ..., step_time: _Optional[_Union[_stream_pb2.StepTimePrior, _Mapping]] = ..., standard_deviation: _Optional[_Union[_stream_pb2.StepTimePrior, _Mapping]] = ..., relative_error: _Optional[float] = ..., interval_coverage: _Optional[float] = ..., interval_ratio: _Optional[float] = ..., condition_number: _Optional[float] = ...) -> None: ...

class RunningBatch(_message.Message):
    __slots__ = ("batch_id", "deployment", "names", "rows", "dispatch_time")
    BATCH_ID_FIELD_NUMBER: _ClassVar[int]
    DEPLOYMENT_FIELD_NUMBER: _ClassVar[int]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    DISPATCH_TIME_FIELD_NUMBER: _ClassVar[int]
    batch_id: str
    deployment: str
    names: _containers.RepeatedScalarFieldContainer[str]
    rows: int
    dispatch_time: _timestamp_pb2.Timestamp
    def __init__(self, batch_id: _Optional[str] = ..., deployment: _Optional[str] = ..., names: _Optional[_Iterable[str]] = ..., rows: _Optional[int] = ..., dispatch_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class ExplainQueryRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class ExplainQueryResponse(_message.Message):
    __slots__ = ("decisions", "explanation")
    DECISIONS_FIELD_NUMBER: _ClassVar[int]
    EXPLANATION_FIELD_NUMBER: _ClassVar[int]
    decisions: _containers.RepeatedCompositeFieldContainer[_stream_pb2.DecisionRecord]
    explanation: str
    def __init__(self, decisions: _Optional[_Iterable[_Union[_stream_pb2.DecisionRecord, _Mapping]]] = ..., explanation: _Optional[str] = ...) -> None: ...

class ReadDecisionsRequest(_message.Message):
    __slots__ = ("model", "after_decision_id", "shard")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    AFTER_DECISION_ID_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    model: str
    after_decision_id: str
    shard: int
    def __init__(self, model: _Optional[str] = ..., after_decision_id: _Optional[str] = ..., shard: _Optional[int] = ...) -> None: ...

class ReadDecisionsResponse(_message.Message):
    __slots__ = ("decision_id", "decision")
    DECISION_ID_FIELD_NUMBER: _ClassVar[int]
    DECISION_FIELD_NUMBER: _ClassVar[int]
    decision_id: str
    decision: _stream_pb2.DecisionRecord
    def __init__(self, decision_id: _Optional[str] = ..., decision: _Optional[_Union[_stream_pb2.DecisionRecord, _Mapping]] = ...) -> None: ...

class ListDeadLettersRequest(_message.Message):
    __slots__ = ("model", "page_size", "page_token")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    model: str
    page_size: int
    page_token: str
    def __init__(self, model: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListDeadLettersResponse(_message.Message):
    __slots__ = ("dead_letters", "next_page_token")
    DEAD_LETTERS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    dead_letters: _containers.RepeatedCompositeFieldContainer[_stream_pb2.DeadLetter]
    next_page_token: str
    def __init__(self, dead_letters: _Optional[_Iterable[_Union[_stream_pb2.DeadLetter, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class ReplayDeadLetterRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class ReplayDeadLetterResponse(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class ListPoliciesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListPoliciesResponse(_message.Message):
    __slots__ = ("policies",)
    POLICIES_FIELD_NUMBER: _ClassVar[int]
    policies: _containers.RepeatedCompositeFieldContainer[PolicyDescription]
    def __init__(self, policies: _Optional[_Iterable[_Union[PolicyDescription, _Mapping]]] = ...) -> None: ...

class PolicyDescription(_message.Message):
    __slots__ = ("name", "description")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    name: str
    description: str
    def __init__(self, name: _Optional[str] = ..., description: _Optional[str] = ...) -> None: ...

class SetPolicyRequest(_message.Message):
    __slots__ = ("model", "policy")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    model: str
    policy: str
    def __init__(self, model: _Optional[str] = ..., policy: _Optional[str] = ...) -> None: ...

class SetPolicyResponse(_message.Message):
    __slots__ = ("previous_policy",)
    PREVIOUS_POLICY_FIELD_NUMBER: _ClassVar[int]
    previous_policy: str
    def __init__(self, previous_policy: _Optional[str] = ...) -> None: ...
