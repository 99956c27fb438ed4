"""A flight recorder in a file: the messages that `ReadDecisions` streams, each behind its length as a varint."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import cast

from google.protobuf import proto
from google.protobuf.message import DecodeError

from uellm.rpc.errors import FieldViolation, InvalidArgumentError
from uellm.v1.scheduler_pb2 import ReadDecisionsResponse
from uellm.v1.stream_pb2 import DecisionRecord


def write_recording(path: Path, entries: Iterable[tuple[str, DecisionRecord]]) -> None:
    """Write entries with their ids, oldest first. Raises OSError."""
    with path.open("wb") as file:
        stream = cast(BytesIO, file)  # its annotation is narrower than what it takes
        for decision_id, record in entries:
            proto.serialize_length_prefixed(ReadDecisionsResponse(decision_id=decision_id, decision=record), stream)


def read_recording(path: Path) -> Iterator[tuple[str, DecisionRecord]]:
    """The entries of a file. Raises InvalidArgumentError where it is no recording or cut short, OSError."""
    with path.open("rb") as file:
        stream, number = cast(BytesIO, file), 0
        while True:
            number += 1
            try:
                entry = proto.parse_length_prefixed(ReadDecisionsResponse, stream)
            except (DecodeError, ValueError) as error:
                raise InvalidArgumentError(
                    [FieldViolation("--file", f"{path.name} can't be read from entry {number} on: {error}")]
                ) from None
            if entry is None:
                return
            epoch, _, place = entry.decision_id.partition("-")
            if not (epoch.isdecimal() and place.isdecimal()):
                raise InvalidArgumentError(
                    [
                        FieldViolation(
                            "--file", f"{path.name}, entry {number}: {entry.decision_id!r} is no decision's id"
                        )
                    ]
                )
            yield entry.decision_id, entry.decision
