"""Recorded decisions, replayed: what a policy saw is built again from the flight recorder, and a policy asked again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from uellm.cost.model import CostModel
from uellm.v1.query_pb2 import Refusal
from uellm.v1.stream_pb2 import CostModelState, DecisionRecord, DeploymentRecord, EngineSnapshot, RunningBatchSnapshot

from ..domain.odds import POINTS, TAIL
from ..domain.pending import COLUMNS, QueryColumns
from ..domain.policy import Decision, EngineView, Policy, QueueView, RunningRow
from ..domain.tenants import Tenants
from .batches import engine_view

MOST_SLOTS = 2**24
"""No table is that large: an entry that says so is damaged."""


class RecordError(ValueError):
    """An entry of the flight recorder that contradicts itself or those before it; the message says how."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A decision by the names of its queries."""

    batches: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Deployment and queries, in row order."""
    refusals: tuple[tuple[str, Refusal], ...] = ()

    @property
    def dispatched(self) -> set[str]:
        """The queries that it put on engines."""
        return {name for _, names in self.batches for name in names}

    @property
    def refused(self) -> set[str]:
        """The queries that it rejected."""
        return {name for name, _ in self.refusals}


@dataclass(frozen=True, slots=True)
class Replayed:
    """A recorded decision, what its policy saw, and what a policy decides about that now.

    The view is that of the moment: the next decision changes it.
    """

    decision_id: str
    record: DecisionRecord
    view: QueueView
    slots: Mapping[str, int]
    """Of the queries that waited, by name."""
    recorded: Choice
    again: Choice | None
    """None: this version has no such policy, or another version of it."""


class RecordedTable(QueryColumns):
    """The table of what waited, built from entries."""

    def __init__(self) -> None:
        super().__init__()
        self.names: dict[int, str] = {}
        self.slot_of: dict[str, int] = {}

    def remove(self, slots: Iterable[int]) -> None:
        """Empty some slots. Raises KeyError if one is empty."""
        for slot in slots:
            del self.slot_of[self.names.pop(slot)]
            self._alive[slot] = False
        self._order.changed()

    def add(self, record: DecisionRecord) -> None:
        """Fill slots with the rows of an entry; a column that it does not have is 0. Raises ValueError."""
        count = len(record.slots)
        if not count:
            return
        slots = np.array(record.slots, np.intp)
        if slots.max() >= MOST_SLOTS:
            raise ValueError(f"no table has a slot {slots.max()}")
        while len(self._alive) <= slots.max():
            self._enlarge()
        self.names.update(zip(record.slots, record.names, strict=True))
        self.slot_of.update(zip(record.names, record.slots, strict=True))
        self._alive[slots] = True
        self._order.changed()
        for name, dtype in COLUMNS.items():
            if name not in record.columns:
                self._columns[name][slots] = 0
                continue
            stored = np.frombuffer(record.columns[name], np.dtype(dtype).newbyteorder("<"))
            if len(stored) != count:
                raise ValueError(f"column {name} has {len(stored)} rows instead of {count}")
            self._columns[name][slots] = stored


class Recording:
    """The fold of a flight recorder's entries, oldest first."""

    def __init__(self) -> None:
        self.table = RecordedTable()
        self._engines: dict[str, tuple[DeploymentRecord, CostModelState | None]] = {}
        self._last: tuple[int, int] | None = None
        """Epoch and number of the last entry; None: waits for a keyframe."""

    def take(self, decision_id: str, record: DecisionRecord) -> QueueView | None:
        """Take an entry; returns what its policy saw.

        None: nothing was decided, or it can't be known what the policy saw, since entries before it are gone; that
        lasts until the next keyframe.

        Raises:
            RecordError: the entry contradicts itself or those before it.
        """
        epoch, number = (int(part) for part in decision_id.split("-"))
        if record.keyframe:
            self.table = RecordedTable()
            self._engines.clear()
        elif self._last != (epoch, number - 1):
            self._last = None
            return None
        self._last = epoch, number
        try:
            self.table.remove(record.removed_slots)
            self.table.add(record)
            return self._view(record) if record.policy else None
        except (KeyError, IndexError, ValueError) as error:
            self._last = None
            raise RecordError(f"decision {decision_id} can't be read: {error!r}") from error

    def choice(self, decision: Decision) -> Choice:
        """A policy's decision about the last view."""
        names = self.table.names
        return Choice(
            tuple((batch.deployment, tuple(names[slot] for slot in batch.slots)) for batch in decision.batches),
            tuple((names[plan.slot], plan.refusal) for plan in decision.refusals),
        )

    def _view(self, record: DecisionRecord) -> QueueView:
        now_ms = record.time.ToMilliseconds()
        served = np.frombuffer(record.tenants_served, np.dtype(np.float64).newbyteorder("<")).astype(np.float64)
        self.table.tenants = Tenants.as_of(served, now_ms)
        eligible = self.table.eligible(now_ms)
        slots = eligible.alone[:1] if record.alone else eligible.together
        engines = tuple(self._engine(snapshot) for snapshot in record.engines)
        return QueueView(self.table, slots, engines, record.alone)

    def _engine(self, snapshot: EngineSnapshot) -> EngineView:
        record, state = self._engines.get(snapshot.deployment, (None, None))
        if snapshot.HasField("record"):
            record = snapshot.record
        if snapshot.HasField("cost_model"):
            state = snapshot.cost_model
        if record is None:
            raise KeyError(snapshot.deployment)
        self._engines[snapshot.deployment] = record, state
        running = tuple(_running(batch) for batch in snapshot.running)
        return engine_view(record, CostModel.of(record, state), snapshot.free_batches, running, snapshot.served_tokens)


def recorded_choice(record: DecisionRecord) -> Choice:
    """The decision that an entry has."""
    return Choice(
        tuple((batch.deployment, tuple(batch.names)) for batch in record.batches),
        tuple((plan.name, plan.refusal) for plan in record.refusals),
    )


def replay(
    entries: Iterable[tuple[str, DecisionRecord]], policies: Mapping[str, Policy], policy: Policy | None = None
) -> Iterator[Replayed]:
    """Replay entries (id, record; oldest first), from the first keyframe on, with the recorded policies or another one.

    Raises:
        RecordError: an entry contradicts itself or those before it.
    """
    recording = Recording()
    for decision_id, record in entries:
        view = recording.take(decision_id, record)
        if view is None:
            continue
        asked = policy or _same_version(policies.get(record.policy), record)
        again = None
        if asked is not None:
            generator = np.random.default_rng(record.seed)
            again = recording.choice(asked.decide(view, record.time.ToMilliseconds(), generator))
        yield Replayed(decision_id, record, view, recording.table.slot_of, recorded_choice(record), again)


def _same_version(policy: Policy | None, record: DecisionRecord) -> Policy | None:
    return policy if policy is not None and policy.info.version == record.policy_version else None


def _running(batch: RunningBatchSnapshot) -> tuple[RunningRow, ...]:
    points, tails = batch.length_points, batch.length_tail
    columns = zip(batch.prompt_tokens, batch.delivered_tokens, batch.limit_tokens, batch.deadline_ms, strict=True)
    return tuple(
        RunningRow(
            prompt,
            delivered,
            tuple(points[POINTS * row : POINTS * (row + 1)]),
            limit,
            tuple(tails[len(TAIL) * row : len(TAIL) * (row + 1)]),
            deadline,
        )
        for row, (prompt, delivered, limit, deadline) in enumerate(columns)
    )
