"""The flight recorder: what policies saw and decided, so that it can be replayed bit for bit.

What waits is told once: an entry has the rows that came and went since the one before. Keyframes tell the whole, so
that what was trimmed, or is read from the middle, can be replayed from the next one on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uellm.cost.model import CostModel
from uellm.v1.stream_pb2 import (
    BatchDecision,
    DecisionRecord,
    DeploymentRecord,
    EngineSnapshot,
    RefusalDecision,
    RunningBatchSnapshot,
)

from ..domain.pending import COLUMNS, PendingTable
from ..domain.policy import Decision, EngineView, PolicyInfo, QueueView, RunningRow
from .effects import RecordDecision
from .flight import Flight
from .limits import CoreLimits

SCHEMA_VERSION = 1
ROW_BYTES = sum(np.dtype(dtype).itemsize for dtype in COLUMNS.values()) + 64
"""About what telling of one row takes, its name included."""
LARGE_TABLE_PATIENCE = 8
"""A large table is told again after so many times more decisions than a small one, at the latest."""


@dataclass(frozen=True, slots=True)
class Draw:
    """The random numbers of one decision."""

    seed: int

    @property
    def generator(self) -> np.random.Generator:
        """From their beginning."""
        return np.random.default_rng(self.seed)


@dataclass(frozen=True, slots=True)
class _Known:
    """What was last told of an engine."""

    record: DeploymentRecord
    cost: CostModel


class Recorder:
    """Makes the entries of one owner, in order; the first one is a keyframe."""

    def __init__(self, epoch: int, pending: PendingTable, flight: Flight, limits: CoreLimits, seed: int) -> None:
        self._epoch = epoch
        self._pending = pending
        self._flight = flight
        self._limits = limits
        self._seed = seed
        self._draws = 0
        self._number = 0
        self._told = np.zeros(0, np.int64)
        """Number of the row of each slot that was told of; 0: none."""
        self._engines: dict[str, _Known] = {}
        self._keyframe_due = True
        self._decisions = 0
        """Since the last keyframe, with it; the bytes are those after it."""
        self._bytes = 0

    def draw(self) -> Draw:
        """Random numbers for the next question to a policy."""
        self._draws += 1
        digest = hashlib.blake2b(f"{self._seed}/{self._draws}".encode(), digest_size=8)
        return Draw(int.from_bytes(digest.digest(), "little"))

    def record(
        self,
        view: QueueView,
        decision: Decision,
        batch_ids: Sequence[str],
        policy: PolicyInfo,
        draw: Draw,
        now_ms: int,
    ) -> list[RecordDecision]:
        """The entries of a decision that is not carried out yet; the last one has the decision itself."""
        keyframe = self._keyframe_due
        if keyframe:
            self._told[:] = 0
            self._engines.clear()
        removed, added = self._changes()
        decided = DecisionRecord(policy=policy.name, policy_version=policy.version, seed=draw.seed)
        self._tell_decision(decided, view, decision, batch_ids, now_ms)
        self._count(len(added), decided.ByteSize(), keyframe=keyframe)
        step = self._limits.rows_per_entry
        starts = range(0, max(len(added), 1), step)
        records = [*(DecisionRecord() for _ in starts[1:]), decided]
        for record, start in zip(records, starts, strict=True):
            record.schema_version = SCHEMA_VERSION
            record.time.FromMilliseconds(now_ms)
            self._tell_rows(record, added[start : start + step])
        records[0].keyframe = keyframe
        records[0].removed_slots.extend(removed.tolist())
        return [RecordDecision(self._next_id(), record) for record in records]

    def _changes(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Slots that were emptied, and those that were filled, since the entry before."""
        now = self._pending.row_numbers()
        if len(self._told) < len(now):
            self._told = np.append(self._told, np.zeros(len(now) - len(self._told), np.int64))
        changed = np.flatnonzero(self._told != now)
        removed, added = changed[self._told[changed] != 0], changed[now[changed] != 0]
        self._told[changed] = now[changed]
        return removed, added

    def _tell_rows(self, record: DecisionRecord, added: NDArray[np.intp]) -> None:
        if len(added):
            slots = added.tolist()
            record.slots.extend(slots)
            record.names.extend([self._pending.name_at(slot) for slot in slots])
            for name in COLUMNS:
                record.columns[name] = little_endian(self._pending.column(name)[added])

    def _tell_decision(
        self, record: DecisionRecord, view: QueueView, decision: Decision, batch_ids: Sequence[str], now_ms: int
    ) -> None:
        record.queued = len(self._pending)
        record.alone = view.alone
        record.cost_model_version = ",".join(engine.cost.version for engine in view.engines)
        record.tenants_served = little_endian(view.table.tenants.served(now_ms))
        record.engines.extend(self._snapshot(engine) for engine in view.engines)
        for batch_id, batch in zip(batch_ids, decision.batches, strict=True):
            names = [self._pending.name_at(slot) for slot in batch.slots]
            record.batches.append(BatchDecision(batch_id=batch_id, deployment=batch.deployment, names=names))
        for plan in decision.refusals:
            name = self._pending.name_at(plan.slot)
            record.refusals.append(RefusalDecision(name=name, refusal=plan.refusal))

    def _snapshot(self, view: EngineView) -> EngineSnapshot:
        snapshot = EngineSnapshot(
            deployment=view.deployment,
            free_batches=view.free_batches,
            running=[_running(rows) for rows in view.running],
            served_tokens=view.served_tokens,
        )
        record, known = self._flight.engines[view.deployment].record, self._engines.get(view.deployment)
        if known is None or not _alike(record, known.record):
            snapshot.record.CopyFrom(record)
        if (known is None or view.cost is not known.cost) and (state := self._flight.costs.state_of(record)):
            snapshot.cost_model.CopyFrom(state)
        self._engines[view.deployment] = _Known(record, view.cost)
        return snapshot

    def _count(self, rows: int, other_bytes: int, *, keyframe: bool) -> None:
        """Count towards the next keyframe; the size of rows is estimated, since to measure it is to serialise them."""
        self._decisions = 1 if keyframe else self._decisions + 1
        self._bytes = 0 if keyframe else self._bytes + ROW_BYTES * rows + other_bytes
        self._keyframe_due = self._is_keyframe_due()

    def _is_keyframe_due(self) -> bool:
        """Often enough to find one in what is kept, but tables are not most of what is written."""
        usual, kept = self._limits.decisions_per_keyframe, self._limits.decisions_bytes
        if self._decisions >= LARGE_TABLE_PATIENCE * usual:
            return True
        repaid = self._bytes >= ROW_BYTES * len(self._pending)
        return repaid and (self._decisions >= usual or self._bytes >= kept // 4)

    def _next_id(self) -> str:
        self._number += 1
        return f"{self._epoch}-{self._number}"


def little_endian(values: NDArray[Any]) -> bytes:
    """An array as it is recorded."""
    return values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()


def _running(rows: Sequence[RunningRow]) -> RunningBatchSnapshot:
    return RunningBatchSnapshot(
        prompt_tokens=[row.prompt_tokens for row in rows],
        delivered_tokens=[row.delivered_tokens for row in rows],
        limit_tokens=[row.limit_tokens for row in rows],
        length_points=[point for row in rows for point in row.length_points],
        length_tail=[point for row in rows for point in row.length_tail],
        deadline_ms=[row.deadline_ms for row in rows],
    )


def _alike(first: DeploymentRecord, second: DeploymentRecord) -> bool:
    """Whether two records say the same; that they are published again does not count."""
    if first is second:
        return True
    left, right = DeploymentRecord(), DeploymentRecord()
    left.CopyFrom(first)
    right.CopyFrom(second)
    left.ClearField("publish_time")
    right.ClearField("publish_time")
    return left == right
