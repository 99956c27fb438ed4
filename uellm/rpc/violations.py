"""Collects everything that is wrong with a request, so that the caller learns it at once."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from google.protobuf.duration_pb2 import Duration

from uellm.rpc.errors import FieldViolation, InvalidArgumentError

_QUOTE_CHARACTERS = 80
_ID = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_MODEL_ID = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,61}[a-z0-9])?")
_ID_RULE = "1 to 63 of a-z, 0-9 and '-', beginning and ending with a letter or digit"
_MODEL_ID_RULE = "1 to 63 of a-z, 0-9, '-' and '.', beginning and ending with a letter or digit, without '--' and '..'"
_MAX_NANOS = 999_999_999


def quote(text: str) -> str:
    """Returns `text` in quotes, control characters escaped, cut after 80 characters."""
    if len(text) <= _QUOTE_CHARACTERS:
        return repr(text)
    return f"{text[:_QUOTE_CHARACTERS]!r}... ({len(text):,} characters)"


class Violations:
    """A list of field violations that grows while a request is checked."""

    def __init__(self) -> None:
        self._found: list[FieldViolation] = []

    def __len__(self) -> int:
        return len(self._found)

    def add(self, field: str, description: str) -> None:
        """Notes that `field` (a path such as `query.slo.confidence`) is wrong, and what would be right."""
        self._found.append(FieldViolation(field, description))

    def extend(self, violations: Iterable[FieldViolation]) -> None:
        """Notes violations found elsewhere."""
        self._found.extend(violations)

    def under(self, path: str) -> list[FieldViolation]:
        """What was found, as of fields of a message at `path`."""
        return [FieldViolation(f"{path}.{found.field}", found.description) for found in self._found]

    def raise_if_any(self) -> None:
        """Ends the checks.

        Raises:
            InvalidArgumentError: something was noted.
        """
        if self._found:
            raise InvalidArgumentError(self._found)

    def identifier(self, field: str, value: str) -> None:
        """Checks the id of a tenant, query or deployment."""
        if not _ID.fullmatch(value):
            self.add(field, f"must be {_ID_RULE}; got {quote(value)}")

    def model_identifier(self, field: str, value: str) -> None:
        """Checks the id of a logical model."""
        if not _MODEL_ID.fullmatch(value) or "--" in value or ".." in value:
            self.add(field, f"must be {_MODEL_ID_RULE}; got {quote(value)}")

    def finite(
        self, field: str, value: float, low: float, high: float, *, above: bool = False, below: bool = False
    ) -> None:
        """Checks that a number is finite and within bounds.

        Args:
            field: path of the field.
            value: the number.
            low: lower bound, itself allowed unless `above`.
            high: upper bound, itself allowed unless `below`.
            above: `low` itself is refused.
            below: `high` itself is refused.
        """
        within = (low < value if above else low <= value) and (value < high if below else value <= high)
        if not math.isfinite(value) or not within:
            lower = f"above {low:g}" if above else f"at least {low:g}"
            upper = f"below {high:g}" if below else f"at most {high:g}"
            self.add(field, f"must be a finite number {lower} and {upper}; got {value!r}")

    def duration_seconds(self, field: str, value: Duration, high: float) -> float | None:
        """Checks that a duration is well-formed, positive and at most `high` seconds.

        Returns:
            The duration in seconds, or None if it is wrong.
        """
        well_formed = abs(value.nanos) <= _MAX_NANOS and value.seconds * value.nanos >= 0
        seconds: float = value.seconds + value.nanos / 1e9
        if well_formed and 0 < seconds <= high:
            return seconds
        if well_formed:
            self.add(field, f"must be above 0 s and at most {high:,.0f} s; got {seconds:,} s")
        else:
            self.add(field, "is no valid duration: nanos must be below a second, with the sign of seconds")
        return None

    def size(self, field: str, value: str, high: int) -> None:
        """Checks that a string has at most `high` UTF-8 bytes."""
        # A character has one to four bytes: only the cases in between need encoding.
        if len(value) * 4 <= high:
            return
        size = len(value.encode())
        if size > high:
            self.add(field, f"must have at most {high:,} bytes; got {size:,}")
