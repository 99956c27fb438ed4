"""Every error of the hierarchy as a status, and back."""

from __future__ import annotations

import grpc
import pytest
import redis.exceptions
from google.protobuf.duration_pb2 import Duration
from google.rpc import code_pb2, error_details_pb2, status_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from uellm.rpc import errors
from uellm.rpc.errors import REFUSAL_CODES, FieldViolation, RefusedError, UellmError
from uellm.rpc.status import DOMAIN, from_rpc_error, from_status, to_status
from uellm.v1 import query_pb2
from uellm.v1.query_pb2 import Refusal, RefusalReason

RETRY = Duration(seconds=2, nanos=500_000_000)
REFUSALS = [
    Refusal(
        reason=query_pb2.REFUSAL_REASON_DEADLINE_INFEASIBLE,
        message="3 s are wanted, 5 s are expected",
        deadline_infeasible=query_pb2.DeadlineInfeasible(
            predicted_finish_p50=Duration(seconds=4), deadline=Duration(seconds=3), retry_after=RETRY
        ),
    ),
    Refusal(
        reason=query_pb2.REFUSAL_REASON_QUEUE_FULL,
        message="full",
        queue_full=query_pb2.QueueFull(depth=7, limit=7, retry_after=RETRY),
    ),
    Refusal(
        reason=query_pb2.REFUSAL_REASON_PROMPT_TOO_LONG,
        message="9 tokens, at most 8",
        prompt_too_long=query_pb2.PromptTooLong(tokens=9, limit=8),
    ),
    Refusal(reason=query_pb2.REFUSAL_REASON_MODEL_NOT_DEPLOYED, message="model 'm' is not deployed"),
    Refusal(
        reason=query_pb2.REFUSAL_REASON_QUOTA_EXCEEDED,
        message="quota",
        quota_exceeded=query_pb2.QuotaExceeded(used_tokens=5, limit_tokens=4, retry_after=RETRY),
    ),
    Refusal(reason=query_pb2.REFUSAL_REASON_PREDICTOR_OVERLOADED, message="overloaded"),
]
EXAMPLES: list[UellmError] = [
    UellmError("odd", reason="ODD", metadata={"key": "value"}),
    errors.InvalidArgumentError([FieldViolation("a", "b"), FieldViolation("c.d[1]", "e")]),
    errors.NotFoundError("query", "tenants/a/models/b/queries/c", reason="GONE"),
    errors.AlreadyExistsError("deployment", "deployments/d"),
    errors.FailedPreconditionError("deployments/d", "is draining", reason="DRAINING"),
    errors.AbortedError("somebody was faster", metadata={"etag": "7"}),
    errors.UnavailableError("Triton does not answer", retry_after_seconds=0.25),
    errors.ResourceExhaustedError("gpu0", "1 byte short", reason="NO_GPU_MEMORY"),
    errors.UnauthenticatedError("who are you?"),
    errors.PermissionDeniedError("no"),
    errors.OutOfRangeError("not kept any more", reason="CURSOR_TOO_OLD"),
    errors.DeadlineExceededError("late"),
    errors.UnimplementedError("later"),
    *map(RefusedError, REFUSALS),
]


def details(status: status_pb2.Status) -> dict[str, object]:
    """The details by the short name of their type, each at most once."""
    found: dict[str, object] = {}
    for packed in status.details:
        name = packed.TypeName().rpartition(".")[2]
        message = Refusal() if name == "Refusal" else getattr(error_details_pb2, name)()
        assert packed.Unpack(message)
        assert name not in found
        found[name] = message
    return found


def test_examples_cover_the_hierarchy() -> None:
    assert {type(error) for error in EXAMPLES} == {UellmError, *UellmError.__subclasses__()}
    assert {refusal.reason for refusal in REFUSALS} == set(RefusalReason.values()) - {0} == set(REFUSAL_CODES)


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: error.reason)
def test_there_and_back(error: UellmError) -> None:
    status = to_status(error)
    assert code_pb2.Code.Name(status.code) == error.code
    info = details(status)["ErrorInfo"]
    assert isinstance(info, error_details_pb2.ErrorInfo)
    assert (info.reason, info.domain, dict(info.metadata)) == (error.reason, DOMAIN, error.metadata)
    restored = from_status(status_pb2.Status.FromString(status.SerializeToString()))
    assert type(restored) is type(error)
    assert str(restored) == str(error)
    assert {**vars(restored), "code": restored.code} == {**vars(error), "code": error.code}


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (EXAMPLES[0], None),
        (EXAMPLES[1], "BadRequest"),
        (EXAMPLES[2], "ResourceInfo"),
        (EXAMPLES[3], "ResourceInfo"),
        (EXAMPLES[4], "PreconditionFailure"),
        (EXAMPLES[6], "RetryInfo"),
        (EXAMPLES[7], "QuotaFailure"),
    ],
)
def test_standard_details(error: UellmError, kind: str | None) -> None:
    assert set(details(to_status(error))) == {"ErrorInfo", kind} - {None}


@pytest.mark.parametrize(
    ("refusal", "code", "kinds"),
    [
        (REFUSALS[0], "FAILED_PRECONDITION", {"RetryInfo"}),
        (REFUSALS[1], "RESOURCE_EXHAUSTED", {"RetryInfo"}),
        (REFUSALS[2], "INVALID_ARGUMENT", {"BadRequest"}),
        (REFUSALS[3], "NOT_FOUND", set()),
        (REFUSALS[4], "RESOURCE_EXHAUSTED", {"RetryInfo"}),
        (REFUSALS[5], "RESOURCE_EXHAUSTED", set()),
    ],
)
def test_refusals(refusal: Refusal, code: str, kinds: set[str]) -> None:
    status = to_status(RefusedError(refusal))
    found = details(status)
    assert code_pb2.Code.Name(status.code) == code
    assert set(found) == {"ErrorInfo", "Refusal", *kinds}
    assert found["Refusal"] == refusal
    if "RetryInfo" in kinds:
        assert found["RetryInfo"] == error_details_pb2.RetryInfo(retry_delay=RETRY)
    if "BadRequest" in kinds:
        violation = {"field": "query.prompt", "description": refusal.message}
        assert found["BadRequest"] == error_details_pb2.BadRequest(field_violations=[violation])


def test_refusal_without_retry_after_has_no_retry_info() -> None:
    refusal = Refusal(reason=query_pb2.REFUSAL_REASON_QUEUE_FULL, queue_full=query_pb2.QueueFull(depth=1))
    assert set(details(to_status(RefusedError(refusal)))) == {"ErrorInfo", "Refusal"}


def test_refusal_of_a_newer_server_is_restored() -> None:
    status = to_status(RefusedError(Refusal(reason=99, message="new")))  # type: ignore[arg-type]
    restored = from_status(status)
    assert isinstance(restored, RefusedError)
    assert (restored.refusal.reason, restored.message) == (99, "new")


@pytest.mark.parametrize("error", [ValueError("secret"), KeyError(), RuntimeError("secret " * 9_999)])
def test_unknown_exception_is_internal_and_leaks_nothing(error: Exception) -> None:
    status = to_status(error)
    assert status.code == code_pb2.INTERNAL
    assert b"secret" not in status.SerializeToString()
    assert from_status(status).metadata["error_id"] in status.message


@pytest.mark.parametrize(
    "kind",
    [redis.exceptions.ConnectionError, redis.exceptions.TimeoutError, redis.exceptions.BusyLoadingError],
)
def test_redis_that_does_not_answer_is_unavailable(kind: type[Exception]) -> None:
    status = to_status(kind("host 10.0.0.7"))
    assert status.code == code_pb2.UNAVAILABLE
    assert b"10.0.0.7" not in status.SerializeToString()
    assert "RetryInfo" in details(status)


@settings(max_examples=40, deadline=None)
@given(text=st.text(), times=st.sampled_from([1, 100, 1_000]), count=st.sampled_from([0, 1, 20, 100]))
def test_any_text_fits_into_the_metadata(text: str, times: int, count: int) -> None:
    long = text * times
    for error in (
        errors.InvalidArgumentError([FieldViolation(f"{long}{index}", long) for index in range(count)]),
        errors.NotFoundError("query", long, long),
        errors.FailedPreconditionError(long, long),
        errors.ResourceExhaustedError(long, long),
        UellmError(long, metadata={f"{long}{index}": long for index in range(count)}),
        RefusedError(Refusal(reason=query_pb2.REFUSAL_REASON_PROMPT_TOO_LONG, message=long)),
    ):
        status = to_status(error)
        # On the wire: details in base64, the message percent-encoded, up to three bytes for one.
        assert status.ByteSize() * 4 / 3 + len(status.message.encode()) * 3 < 8_192
        assert from_status(status).code == error.code


def test_violations_that_do_not_fit_are_counted() -> None:
    violations = [FieldViolation(f"f{index}", "x" * 100) for index in range(500)]
    restored = from_status(to_status(errors.InvalidArgumentError(violations)))
    assert isinstance(restored, errors.InvalidArgumentError)
    *shown, rest = restored.violations
    assert shown == violations[: len(shown)]
    assert len(shown) > 10
    assert rest.description == f"and {500 - len(shown)} more violations"


@pytest.mark.parametrize("code", [code for code in code_pb2.Code.values() if code != 0])
def test_status_of_another_server_without_details(code: int) -> None:
    restored = from_status(status_pb2.Status(code=code, message="text"))
    assert restored.code == code_pb2.Code.Name(code)
    assert restored.message == str(restored) == "text"


def test_status_that_cannot_be_read() -> None:
    status = status_pb2.Status(code=code_pb2.UNAVAILABLE, message="text")
    status.details.add(type_url="type.googleapis.com/google.rpc.RetryInfo", value=b"\xff")
    status.details.add(type_url="type.googleapis.com/somebody.Elses", value=b"\xff")
    assert isinstance(from_status(status), errors.UnavailableError)
    assert from_status(status_pb2.Status(code=4711)).code == "UNKNOWN"


def test_rpc_error_with_unreadable_details_keeps_code_and_text() -> None:
    metadata = grpc.aio.Metadata(("grpc-status-details-bin", b"\xff"))
    error = grpc.aio.AioRpcError(grpc.StatusCode.NOT_FOUND, grpc.aio.Metadata(), metadata, "no such thing")
    restored = from_rpc_error(error)
    assert isinstance(restored, errors.NotFoundError)
    assert restored.message == "no such thing"
