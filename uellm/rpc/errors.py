"""The one hierarchy of errors. `uellm.rpc.status` turns each into a gRPC status with details, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from uellm.v1.query_pb2 import Refusal, RefusalReason


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One thing wrong with one field of a request."""

    field: str
    """Path of the field, e.g. `query.generation.temperature`."""
    description: str
    """What is wrong and what would be right."""


class UellmError(Exception):
    """Root of all errors that may leave a service.

    Attributes:
        code: name of the gRPC status code.
        reason: UPPER_SNAKE reason of `google.rpc.ErrorInfo`.
    """

    code: str = "INTERNAL"
    reason: str = "INTERNAL"

    def __init__(self, message: str, *, reason: str = "", metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or type(self).reason
        self.metadata = dict(metadata or {})


class InvalidArgumentError(UellmError):
    """A request that is wrong whatever the state."""

    code = "INVALID_ARGUMENT"
    reason = "INVALID_ARGUMENT"

    def __init__(self, violations: Sequence[FieldViolation]) -> None:
        super().__init__("; ".join(f"{violation.field}: {violation.description}" for violation in violations))
        self.violations = tuple(violations)


class NotFoundError(UellmError):
    """Something named in the request does not exist."""

    code = "NOT_FOUND"
    reason = "NOT_FOUND"

    def __init__(self, kind: str, name: str, message: str = "", *, reason: str = "") -> None:
        super().__init__(message or f"{kind} {name!r} does not exist", reason=reason)
        self.kind = kind
        self.name = name


class AlreadyExistsError(UellmError):
    """Something of that name exists with another content."""

    code = "ALREADY_EXISTS"
    reason = "ALREADY_EXISTS"

    def __init__(self, kind: str, name: str, message: str = "") -> None:
        super().__init__(message or f"{kind} {name!r} exists with another content")
        self.kind = kind
        self.name = name


class FailedPreconditionError(UellmError):
    """The request fits no state that the system is in."""

    code = "FAILED_PRECONDITION"
    reason = "FAILED_PRECONDITION"

    def __init__(self, subject: str, message: str, *, reason: str = "") -> None:
        super().__init__(message, reason=reason)
        self.subject = subject


class AbortedError(UellmError):
    """Somebody else changed the same thing meanwhile."""

    code = "ABORTED"
    reason = "CONFLICT"


class UnavailableError(UellmError):
    """A part that the request needs does not answer now; the same request may succeed later."""

    code = "UNAVAILABLE"
    reason = "UNAVAILABLE"

    def __init__(self, message: str, *, retry_after_seconds: float = 1.0, reason: str = "") -> None:
        super().__init__(message, reason=reason)
        self.retry_after_seconds = retry_after_seconds


class ResourceExhaustedError(UellmError):
    """A resource does not suffice; the subject names it."""

    code = "RESOURCE_EXHAUSTED"
    reason = "RESOURCE_EXHAUSTED"

    def __init__(self, subject: str, message: str, *, reason: str = "") -> None:
        super().__init__(message, reason=reason)
        self.subject = subject


class UnauthenticatedError(UellmError):
    """The caller did not say who it is, or not credibly."""

    code = "UNAUTHENTICATED"
    reason = "UNAUTHENTICATED"


class PermissionDeniedError(UellmError):
    """The caller may not do this."""

    code = "PERMISSION_DENIED"
    reason = "PERMISSION_DENIED"


class OutOfRangeError(UellmError):
    """What the request wants to go on from is not kept any more."""

    code = "OUT_OF_RANGE"
    reason = "OUT_OF_RANGE"


class DeadlineExceededError(UellmError):
    """The caller's own gRPC deadline leaves no time."""

    code = "DEADLINE_EXCEEDED"
    reason = "DEADLINE_EXCEEDED"


class UnimplementedError(UellmError):
    """The contract has it, this version does not."""

    code = "UNIMPLEMENTED"
    reason = "UNIMPLEMENTED"


REFUSAL_CODES: dict[RefusalReason, str] = {
    RefusalReason.REFUSAL_REASON_DEADLINE_INFEASIBLE: "FAILED_PRECONDITION",
    RefusalReason.REFUSAL_REASON_QUEUE_FULL: "RESOURCE_EXHAUSTED",
    RefusalReason.REFUSAL_REASON_PROMPT_TOO_LONG: "INVALID_ARGUMENT",
    RefusalReason.REFUSAL_REASON_MODEL_NOT_DEPLOYED: "NOT_FOUND",
    RefusalReason.REFUSAL_REASON_QUOTA_EXCEEDED: "RESOURCE_EXHAUSTED",
    RefusalReason.REFUSAL_REASON_PREDICTOR_OVERLOADED: "RESOURCE_EXHAUSTED",
}
"""Status code of each refusal at `Submit`."""


class RefusedError(UellmError):
    """A query is not accepted; the refusal carries the numbers. The status code depends on the reason."""

    def __init__(self, refusal: Refusal) -> None:
        known = refusal.reason in RefusalReason.values()
        name: str = RefusalReason.Name(refusal.reason) if known else f"UNKNOWN_{refusal.reason:d}"
        super().__init__(refusal.message, reason=name.removeprefix("REFUSAL_REASON_"))
        self.code = REFUSAL_CODES.get(refusal.reason, "FAILED_PRECONDITION")
        self.refusal = refusal
