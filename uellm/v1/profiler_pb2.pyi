import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from uellm.v1 import query_pb2 as _query_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ProfileRequest(_message.Message):
    __slots__ = ("parent", "query", "allow_prior")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    QUERY_FIELD_NUMBER: _ClassVar[int]
    ALLOW_PRIOR_FIELD_NUMBER: _ClassVar[int]
    parent: str
    query: _query_pb2.Query
    allow_prior: bool
    def __init__(self, parent: _Optional[str] = ..., query: _Optional[_Union[_query_pb2.Query, _Mapping]] = ..., allow_prior: _Optional[bool] = ...) -> None: ...

class ProfileResponse(_message.Message):
    __slots__ = ("profile",)
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    profile: _query_pb2.ResourceProfile
    def __init__(self, profile: _Optional[_Union[_query_pb2.ResourceProfile, _Mapping]] = ...) -> None: ...

class BatchProfileRequest(_message.Message):
    __slots__ = ("parent", "queries", "allow_prior")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    QUERIES_FIELD_NUMBER: _ClassVar[int]
    ALLOW_PRIOR_FIELD_NUMBER: _ClassVar[int]
    parent: str
    queries: _containers.RepeatedCompositeFieldContainer[_query_pb2.Query]
    allow_prior: bool
    def __init__(self, parent: _Optional[str] = ..., queries: _Optional[_Iterable[_Union[_query_pb2.Query, _Mapping]]] = ..., allow_prior: _Optional[bool] = ...) -> None: ...

class BatchProfileResponse(_message.Message):
    __slots__ = ("profiles",)
    PROFILES_FIELD_NUMBER: _ClassVar[int]
    profiles: _containers.RepeatedCompositeFieldContainer[_query_pb2.ResourceProfile]
    def __init__(self, profiles: _Optional[_Iterable[_Union[_query_pb2.ResourceProfile, _Mapping]]] = ...) -> None: ...

class SubmitRequest(_message.Message):
    __slots__ = ("parent", "query_id", "query", "allow_prior")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    QUERY_ID_FIELD_NUMBER: _ClassVar[int]
    QUERY_FIELD_NUMBER: _ClassVar[int]
    ALLOW_PRIOR_FIELD_NUMBER: _ClassVar[int]
    parent: str
    query_id: str
    query: _query_pb2.Query
    allow_prior: bool
    def __init__(self, parent: _Optional[str] = ..., query_id: _Optional[str] = ..., query: _Optional[_Union[_query_pb2.Query, _Mapping]] = ..., allow_prior: _Optional[bool] = ...) -> None: ...

class SubmitResponse(_message.Message):
    __slots__ = ("name", "profile", "accept_time", "queue_depth", "already_submitted")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    ACCEPT_TIME_FIELD_NUMBER: _ClassVar[int]
    QUEUE_DEPTH_FIELD_NUMBER: _ClassVar[int]
    ALREADY_SUBMITTED_FIELD_NUMBER: _ClassVar[int]
    name: str
    profile: _query_pb2.ResourceProfile
    accept_time: _timestamp_pb2.Timestamp
    queue_depth: int
    already_submitted: bool
    def __init__(self, name: _Optional[str] = ..., profile: _Optional[_Union[_query_pb2.ResourceProfile, _Mapping]] = ..., accept_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., queue_depth: _Optional[int] = ..., already_submitted: _Optional[bool] = ...) -> None: ...

class SubmitStreamRequest(_message.Message):
    __slots__ = ("correlation_id", "submit")
    CORRELATION_ID_FIELD_NUMBER: _ClassVar[int]
    SUBMIT_FIELD_NUMBER: _ClassVar[int]
    correlation_id: str
    submit: SubmitRequest
    def __init__(self, correlation_id: _Optional[str] = ..., submit: _Optional[_Union[SubmitRequest, _Mapping]] = ...) -> None: ...

class SubmitStreamResponse(_message.Message):
    __slots__ = ("correlation_id", "accepted", "refused")
    CORRELATION_ID_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    correlation_id: str
    accepted: SubmitResponse
    refused: Refused
    def __init__(self, correlation_id: _Optional[str] = ..., accepted: _Optional[_Union[SubmitResponse, _Mapping]] = ..., refused: _Optional[_Union[Refused, _Mapping]] = ...) -> None: ...

class Refused(_message.Message):
    __slots__ = ("code", "message", "status")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    code: int
    message: str
    status: bytes
    def __init__(self, code: _Optional[int] = ..., message: _Optional[str] = ..., status: _Optional[bytes] = ...) -> None: ...

class DescribePredictorRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class DescribePredictorResponse(_message.Message):
    __slots__ = ("kind", "version", "description", "calibrations", "path", "problem")
    KIND_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    CALIBRATIONS_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    kind: str
    version: str
    description: str
    calibrations: _containers.RepeatedCompositeFieldContainer[ModelCalibration]
    path: str
    problem: str
    def __init__(self, kind: _Optional[str] = ..., version: _Optional[str] = ..., description: _Optional[str] = ..., calibrations: _Optional[_Iterable[_Union[ModelCalibration, _Mapping]]] = ..., path: _Optional[str] = ..., problem: _Optional[str] = ...) -> None: ...

class ModelCalibration(_message.Message):
    __slots__ = ("model", "version", "observations", "coverage_p90", "coverage_p99", "pinball_loss_tokens", "drift_detected", "scored_answers", "issued_coverage_p90", "issued_coverage_p99", "cut_share", "predicted_cut_share", "drift_statistic", "drifts", "lag")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    OBSERVATIONS_FIELD_NUMBER: _ClassVar[int]
    COVERAGE_P90_FIELD_NUMBER: _ClassVar[int]
    COVERAGE_P99_FIELD_NUMBER: _ClassVar[int]
    PINBALL_LOSS_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DRIFT_DETECTED_FIELD_NUMBER: _ClassVar[int]
    SCORED_ANSWERS_FIELD_NUMBER: _ClassVar[int]
    ISSUED_COVERAGE_P90_FIELD_NUMBER: _ClassVar[int]
    ISSUED_COVERAGE_P99_FIELD_NUMBER: _ClassVar[int]
    CUT_SHARE_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_CUT_SHARE_FIELD_NUMBER: _ClassVar[int]
    DRIFT_STATISTIC_FIELD_NUMBER: _ClassVar[int]
    DRIFTS_FIELD_NUMBER: _ClassVar[int]
    LAG_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    observations: int
    coverage_p90: float
    coverage_p99: float
    pinball_loss_tokens: float
    drift_detected: bool
    scored_answers: int
    issued_coverage_p90: float
    issued_coverage_p99: float
    cut_share: float
    predicted_cut_share: float
    drift_statistic: float
    drifts: int
    lag: _duration_pb2.Duration
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ..., observations: _Optional[int] = ..., coverage_p90: _Optional[float] = ..., coverage_p99: _Optional[float] = ..., pinball_loss_tokens: _Optional[float] = ..., drift_detected: _Optional[bool] = ..., scored_answers: _Optional[int] = ..., issued_coverage_p90: _Optional[float] = ..., issued_coverage_p99: _Optional[float] = ..., cut_share: _Optional[float] = ..., predicted_cut_share: _Optional[float] = ..., drift_statistic: _Optional[float] = ..., drifts: _Optional[int] = ..., lag: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class InstallPredictorRequest(_message.Message):
    __slots__ = ("path", "validate_only")
    PATH_FIELD_NUMBER: _ClassVar[int]
    VALIDATE_ONLY_FIELD_NUMBER: _ClassVar[int]
    path: str
    validate_only: bool
    def __init__(self, path: _Optional[str] = ..., validate_only: _Optional[bool] = ...) -> None: ...

class InstallPredictorResponse(_message.Message):
    __slots__ = ("version", "kind")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    version: str
    kind: str
    def __init__(self, version: _Optional[str] = ..., kind: _Optional[str] = ...) -> None: ...

class RollbackPredictorRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RollbackPredictorResponse(_message.Message):
    __slots__ = ("version", "kind")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    version: str
    kind: str
    def __init__(self, version: _Optional[str] = ..., kind: _Optional[str] = ...) -> None: ...
