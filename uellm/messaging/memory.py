"""The semantics of the scripts in plain Python: what the effect-free core runs against in tests and in simulation.

`tests/integration/test_delivery_contract.py` runs the same random operations against this and against Redis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from uellm.messaging.keys import tenant_of
from uellm.messaging.queries import (
    SCHEMA_VERSION,
    Accepted,
    Conflict,
    DispatchAnswer,
    DispatchRow,
    EventRow,
    FencedError,
    FinishRow,
    Full,
    Submission,
)
from uellm.v1.query_pb2 import QUERY_STATE_QUEUED, QUERY_STATE_RUNNING, Outcome
from uellm.v1.stream_pb2 import Admitted, DeadLetter, DecisionRecord, ProfiledQuery, QueryEvent, QueryRecord


@dataclass(slots=True)
class MemoryRecord:
    """A query's record and events."""

    body_hash: str
    entry_id: str
    entry: ProfiledQuery
    payload: QueryRecord | None
    state: int = QUERY_STATE_QUEUED
    attempts: int = 0
    cancel: bool = False
    outcome: Outcome | None = None
    events: list[tuple[int, QueryEvent]] = field(default_factory=list)
    """Time in ms, event; the outcome included."""


@dataclass(slots=True)
class MemoryQueue:
    """One model's queue. `now_ms` is its clock; whoever uses it moves it on."""

    now_ms: int = 1
    epoch: int = 0
    depth: int = 0
    records: dict[str, MemoryRecord] = field(default_factory=dict)
    entries: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Entry id -> (`query` or `cancel`, query name)."""
    dead_letters: list[DeadLetter] = field(default_factory=list)
    """With their records and entries."""
    accepted: dict[str, list[str]] = field(default_factory=dict)
    """Tenant -> names of its queries, by acceptance."""
    ended: dict[str, list[str]] = field(default_factory=dict)
    """Tenant -> names of those with an outcome, by end."""
    decisions: list[tuple[str, DecisionRecord]] = field(default_factory=list)
    """Id and entry of the flight recorder, oldest first; all are kept."""
    _sequence: int = 0

    def acquire(self) -> int:
        """Take the lease from whoever holds it; returns the new epoch."""
        self.epoch = max(self.epoch + 1, self.now_ms)
        return self.epoch

    def submit(self, submission: Submission, depth_limit: int) -> Accepted | Conflict | Full:
        """As `QueryStore.submit`."""
        known = self.records.get(submission.name)
        if known is not None:
            if known.body_hash != submission.body_hash:
                return Conflict()
            return Accepted(known.entry_id, 0, known.entry.profile, created=False)
        if self.depth >= depth_limit:
            return Full(self.depth)
        entry_id = self._add_entry("query", submission.name)
        admitted = QueryEvent(schema_version=SCHEMA_VERSION, admitted=Admitted(profile=submission.entry.profile))
        record = MemoryRecord(submission.body_hash, entry_id, submission.entry, submission.record)
        record.events.append((self.now_ms, admitted))
        self.records[submission.name] = record
        self.accepted.setdefault(tenant_of(submission.name), []).append(submission.name)
        self.depth += 1
        return Accepted(entry_id, self.depth, submission.entry.profile, created=True)

    def dispatch(self, epoch: int, rows: Sequence[DispatchRow]) -> list[DispatchAnswer]:
        """As `QueryStore.dispatch`."""
        self._check(epoch)
        return [self._dispatch(row) for row in rows]

    def append(self, epoch: int, rows: Sequence[EventRow]) -> list[bool]:
        """As `QueryStore.append`; True where the event was taken."""
        self._check(epoch)
        taken = []
        for row in rows:
            record = self.records.get(row.name)
            current = record is not None and record.attempts == row.attempt and record.outcome is None
            if current and record is not None:
                record.events.append((self.now_ms, row.event))
            taken.append(current)
        return taken

    def finish(self, epoch: int, rows: Sequence[FinishRow]) -> list[str]:
        """As `QueryStore.finish`."""
        self._check(epoch)
        return [self._finish(row) for row in rows]

    def record(self, epoch: int, decision_id: str, record: DecisionRecord) -> None:
        """As `DecisionStore.write`."""
        self._check(epoch)
        self.decisions.append((decision_id, record))

    def cancel(self, name: str) -> int | None:
        """As `QueryStore.cancel`."""
        record = self.records.get(name)
        if record is None:
            return None
        if record.outcome is None and not record.cancel:
            record.cancel = True
            self._add_entry("cancel", name)
        return record.state

    def acknowledge(self, entry_id: str) -> None:
        """As `Inbox.acknowledge`."""
        self.entries.pop(entry_id, None)

    def _dispatch(self, row: DispatchRow) -> DispatchAnswer:
        record = self.records.get(row.name)
        if record is None or record.outcome is not None:
            return DispatchAnswer("gone")
        if record.cancel:
            return DispatchAnswer("cancelled")
        if record.attempts != row.attempts:
            return DispatchAnswer("stale", attempts=record.attempts)
        record.attempts += 1
        record.state = QUERY_STATE_RUNNING
        record.events.append((self.now_ms, row.event))
        return DispatchAnswer("ok", record=record.payload)

    def _finish(self, row: FinishRow) -> str:
        record = self.records.get(row.name)
        if record is not None and record.outcome is None and record.attempts != row.attempts:
            return "stale"
        self.entries.pop(row.entry_id, None)
        if record is None:
            return "gone"
        if record.outcome is not None:
            return "finished"
        if row.dead_letter is not None:
            letter = DeadLetter(record=record.payload, entry=record.entry)
            letter.MergeFrom(row.dead_letter)
            self.dead_letters.append(letter)
        self.ended.setdefault(tenant_of(row.name), []).append(row.name)
        record.outcome, record.state, record.payload = Outcome(profile=record.entry.profile), row.outcome.state, None
        record.outcome.MergeFrom(row.outcome)
        if row.last_event is not None:
            record.events.append((self.now_ms, row.last_event))
        record.events.append((self.now_ms, QueryEvent(schema_version=SCHEMA_VERSION, outcome=record.outcome)))
        self.depth -= 1
        return "ok"

    def _check(self, epoch: int) -> None:
        if epoch != self.epoch:
            raise FencedError

    def _add_entry(self, kind: str, name: str) -> str:
        self._sequence += 1
        entry_id = f"{self.now_ms}-{self._sequence}"
        self.entries[entry_id] = (kind, name)
        return entry_id
