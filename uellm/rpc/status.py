"""Errors as `google.rpc.Status` with standard details, and back.

Servers answer with `to_status`, clients restore with `from_rpc_error`. Everything is cut so that a status fits into
the 8 KiB of metadata that a gRPC client accepts by default; what does not fit would replace the error by another.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import TypeVar, cast

import grpc
import structlog
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError, Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from uellm.rpc import errors
from uellm.rpc.errors import FieldViolation, RefusedError, UellmError
from uellm.v1.query_pb2 import Refusal, RefusalReason

DOMAIN = "uellm"
"""Domain of every `google.rpc.ErrorInfo`."""

_DETAILS_KEY = "grpc-status-details-bin"
_MAX_TEXT_BYTES = 512
_MAX_VIOLATIONS_BYTES = 2_048
_MAX_METADATA_ENTRIES = 8
_DEFAULT_RETRY_SECONDS = 1.0

M = TypeVar("M", bound=Message)

_log = structlog.stdlib.get_logger(__name__)


def to_status(error: Exception) -> status_pb2.Status:
    """Turns any exception into a status.

    What is not of the hierarchy becomes INTERNAL with a generic text and an id under which the log has the exception;
    Redis not answering becomes UNAVAILABLE.
    """
    known = as_uellm_error(error)
    status = status_pb2.Status(code=code_pb2.Code.Value(known.code), message=_clip(known.message, _MAX_TEXT_BYTES))
    metadata = list(known.metadata.items())[:_MAX_METADATA_ENTRIES]
    info = error_details_pb2.ErrorInfo(
        reason=known.reason,
        domain=DOMAIN,
        metadata={_clip(key, 64): _clip(value, _MAX_TEXT_BYTES // 4) for key, value in metadata},
    )
    for detail in (info, *_details(known)):
        status.details.add().Pack(detail)
    return status


def as_uellm_error(error: Exception) -> UellmError:
    """Returns the error of the hierarchy that stands for any exception; logs those that are not of it."""
    if isinstance(error, UellmError):
        return error
    import redis.exceptions  # not at the top: clients import this module, too, and know no Redis

    if isinstance(error, (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError)):
        _log.warning("redis_unavailable", error=str(error))
        return errors.UnavailableError("the queue's Redis does not answer", reason="REDIS_UNAVAILABLE")
    error_id = uuid.uuid4().hex
    _log.error("internal_error", error_id=error_id, exc_info=error)
    return UellmError(f"internal error; the service's log has it under id {error_id}", metadata={"error_id": error_id})


def from_rpc_error(error: grpc.RpcError) -> UellmError:
    """Restores what a server raised.

    Args:
        error: what a call ended with, of grpc or grpc.aio.

    Returns:
        An error of the class that stands for the status code, `RefusedError` for a refusal; with the details that the
        server sent, if it sent any.
    """
    call = cast("grpc.Call", error)
    for key, value in call.trailing_metadata() or ():
        if key == _DETAILS_KEY:
            try:
                return from_status(status_pb2.Status.FromString(cast("bytes", value)))
            except DecodeError:
                break
    code = call.code() or grpc.StatusCode.UNKNOWN
    return from_status(status_pb2.Status(code=code.value[0], message=call.details() or ""))


def from_status(status: status_pb2.Status) -> UellmError:
    """Restores an error from its status; the inverse of `to_status`."""
    details = _Details(status)
    code = code_pb2.Code.Name(status.code) if status.code in code_pb2.Code.values() else "UNKNOWN"
    restored = _restore(code, status.message, details)
    restored.code = code
    info = details.read(error_details_pb2.ErrorInfo)
    if info is not None:
        restored.reason = info.reason
        restored.metadata = dict(info.metadata)
    return restored


def unimplemented(what: str) -> errors.UnimplementedError:
    """Returns the error for something that the contract has and this version does not."""
    return errors.UnimplementedError(f"{what} is not implemented in this version")


# To details.


def _details(error: UellmError) -> Sequence[Message]:
    """Returns the details that belong to an error, `ErrorInfo` excepted."""
    message = _clip(error.message, _MAX_TEXT_BYTES)
    match error:
        case RefusedError():
            return _refusal_details(error.refusal)
        case errors.InvalidArgumentError():
            return [_bad_request(error.violations)]
        case errors.NotFoundError() | errors.AlreadyExistsError():
            name = _clip(error.name, _MAX_TEXT_BYTES)
            return [error_details_pb2.ResourceInfo(resource_type=error.kind, resource_name=name, description=message)]
        case errors.FailedPreconditionError():
            failure = error_details_pb2.PreconditionFailure()
            failure.violations.add(
                type=error.reason, subject=_clip(error.subject, _MAX_TEXT_BYTES), description=message
            )
            return [failure]
        case errors.ResourceExhaustedError():
            quota = error_details_pb2.QuotaFailure()
            quota.violations.add(subject=_clip(error.subject, _MAX_TEXT_BYTES), description=message)
            return [quota]
        case errors.UnavailableError():
            return [_retry_info(error.retry_after_seconds)]
        case _:
            return []


def _refusal_details(refusal: Refusal) -> Sequence[Message]:
    clipped = Refusal()
    clipped.CopyFrom(refusal)
    clipped.message = _clip(refusal.message, _MAX_TEXT_BYTES)
    details: list[Message] = [clipped]
    kind = refusal.WhichOneof("detail")
    detail = getattr(refusal, kind) if kind else None
    if detail is not None and "retry_after" in detail.DESCRIPTOR.fields_by_name and detail.HasField("retry_after"):
        details.append(error_details_pb2.RetryInfo(retry_delay=detail.retry_after))
    if refusal.reason == RefusalReason.REFUSAL_REASON_PROMPT_TOO_LONG:
        details.append(_bad_request([FieldViolation("query.prompt", refusal.message)]))
    return details


def _bad_request(violations: Sequence[FieldViolation]) -> error_details_pb2.BadRequest:
    """Packs as many violations as fit; the last entry counts the others."""
    request = error_details_pb2.BadRequest()
    for index, violation in enumerate(violations):
        entry = request.field_violations.add(
            field=_clip(violation.field, _MAX_TEXT_BYTES), description=_clip(violation.description, _MAX_TEXT_BYTES)
        )
        if request.ByteSize() > _MAX_VIOLATIONS_BYTES:
            entry.field = ""
            entry.description = f"and {len(violations) - index:,} more violations"
            break
    return request


def _retry_info(seconds: float) -> error_details_pb2.RetryInfo:
    delay = Duration()
    delay.FromNanoseconds(max(0, round(seconds * 1e9)))
    return error_details_pb2.RetryInfo(retry_delay=delay)


def _clip(text: str, size: int) -> str:
    """Cuts to at most `size` UTF-8 bytes, at a character; a cut text ends with three dots."""
    encoded = text[: size + 1].encode(errors="replace")
    if len(encoded) <= size:
        return encoded.decode()
    return encoded[: size - 3].decode(errors="ignore") + "..."


# From details.


class _Details:
    """The details of a status, by type."""

    def __init__(self, status: status_pb2.Status) -> None:
        self._packed = {detail.TypeName(): detail for detail in reversed(status.details)}

    def read(self, kind: type[M]) -> M | None:
        """Returns the first detail of a type; None if there is none that can be read."""
        packed = self._packed.get(kind.DESCRIPTOR.full_name)
        try:
            return kind.FromString(packed.value) if packed is not None else None
        except DecodeError:
            return None


def _restore(code: str, message: str, details: _Details) -> UellmError:
    """Builds the error that stands for a code."""
    refusal = details.read(Refusal)
    if refusal is not None:
        return RefusedError(refusal)
    match code:
        case "INVALID_ARGUMENT":
            return _restore_invalid_argument(message, details)
        case "NOT_FOUND" | "ALREADY_EXISTS":
            resource = details.read(error_details_pb2.ResourceInfo) or error_details_pb2.ResourceInfo()
            kind = errors.NotFoundError if code == "NOT_FOUND" else errors.AlreadyExistsError
            return kind(resource.resource_type, resource.resource_name, message)
        case "FAILED_PRECONDITION":
            failure = details.read(error_details_pb2.PreconditionFailure)
            subject = failure.violations[0].subject if failure and failure.violations else ""
            return errors.FailedPreconditionError(subject, message)
        case "RESOURCE_EXHAUSTED":
            quota = details.read(error_details_pb2.QuotaFailure)
            subject = quota.violations[0].subject if quota and quota.violations else ""
            return errors.ResourceExhaustedError(subject, message)
        case "UNAVAILABLE":
            retry = details.read(error_details_pb2.RetryInfo)
            seconds = retry.retry_delay.ToNanoseconds() / 1e9 if retry else _DEFAULT_RETRY_SECONDS
            return errors.UnavailableError(message, retry_after_seconds=seconds)
        case _:
            return _PLAIN[code](message) if code in _PLAIN else UellmError(message, reason=code)


def _restore_invalid_argument(message: str, details: _Details) -> UellmError:
    request = details.read(error_details_pb2.BadRequest)
    found = [FieldViolation(entry.field, entry.description) for entry in request.field_violations] if request else []
    restored = errors.InvalidArgumentError(found or [FieldViolation("", message)])
    restored.message = message
    restored.args = (message,)
    return restored


_PLAIN: dict[str, type[UellmError]] = {
    kind.code: kind
    for kind in (
        errors.AbortedError,
        errors.UnauthenticatedError,
        errors.PermissionDeniedError,
        errors.OutOfRangeError,
        errors.DeadlineExceededError,
        errors.UnimplementedError,
    )
}
