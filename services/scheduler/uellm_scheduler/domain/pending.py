"""The pending table: one row per waiting query, columns as numpy arrays.

A policy reads columns, never objects, so that a decision over 10,000 queries is a few vector operations. Prompts stay
in Redis until dispatch.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uellm.v1.stream_pb2 import Attempt

from .arrivals import ArrivalOrder
from .odds import POINTS, TAIL
from .pending_query import NOTHING, Needs, PendingQuery, Progress
from .tenants import Tenants

COLUMNS: dict[str, Any] = {
    "arrival_ms": np.int64,
    "deadline_ms": np.int64,
    "first_token_deadline_ms": np.int64,
    "not_before_ms": np.int64,
    "confidence": np.float32,
    "prompt_tokens": np.int32,
    "length_points": np.dtype((np.float32, POINTS)),
    "length_tail": np.dtype((np.float32, len(TAIL))),
    "p50_tokens": np.float32,
    "p90_tokens": np.float32,
    "p99_tokens": np.float32,
    "limit_tokens": np.int32,
    "delivered_tokens": np.int32,
    "kv_bytes_p90": np.int64,
    "kv_bytes_limit": np.int64,
    "priority": np.int16,
    "tenant": np.int32,
    "attempts": np.int16,
    "cancel_on_miss": np.bool_,
    "alone": np.bool_,
}
"""What policies see, and the flight recorder keeps."""
OWN_COLUMNS: dict[str, Any] = {"entry_number": np.uint64, "alone_ms": np.int64}
"""What only the table needs; the number is the second part of an entry's id."""
NEEDS = tuple(one.name for one in fields(Needs))
GROWTH = 1.25


@dataclass(frozen=True, slots=True)
class Eligible:
    """Slots that may be dispatched now, in order of arrival."""

    together: NDArray[np.intp]
    alone: NDArray[np.intp]
    """Those that are to be served by themselves."""
    next_ms: int | None
    """When the next of the others may be dispatched."""


class QueryColumns:
    """What policies see of the waiting queries: columns, indexed by slot. Live they are a `PendingTable`'s."""

    def __init__(self, capacity: int = 256) -> None:
        self._columns = {name: np.zeros(capacity, dtype) for name, dtype in COLUMNS.items()}
        self._alive = np.zeros(capacity, np.bool_)
        self._order = ArrivalOrder()
        self.tenants = Tenants()

    def slots(self) -> NDArray[np.intp]:
        """Slots in use, in order of arrival (ties by slot)."""
        return self._order.of(self._alive, self._columns["arrival_ms"])

    def eligible(self, now_ms: int) -> Eligible:
        """Slots that may be dispatched now."""
        slots = self.slots()
        not_before = self._columns["not_before_ms"][slots]
        later = not_before > now_ms
        next_ms = int(not_before[later].min()) if later.any() else None
        slots = slots[~later]
        alone = self._columns["alone"][slots]
        return Eligible(slots[~alone], slots[alone], next_ms)

    def column(self, name: str) -> NDArray[Any]:
        """A whole column, indexed by slot. Not to be written to."""
        return self._columns[name]

    def _enlarge(self) -> int:
        """Make room; returns for how many more."""
        more = max(256, int(len(self._alive) * (GROWTH - 1)))
        for name, column in self._columns.items():
            self._columns[name] = np.concatenate([column, np.zeros_like(column, shape=(more, *column.shape[1:]))])
        self._alive = np.append(self._alive, np.zeros(more, np.bool_))
        return more


class PendingTable(QueryColumns):
    """Rows are addressed by name or by slot; a slot is stable while its query waits.

    A query is its row: `test_scheduler_pending.py` bounds the bytes that it takes.
    """

    def __init__(self, capacity: int = 256) -> None:
        super().__init__(capacity)
        self._columns.update({name: np.zeros(capacity, dtype) for name, dtype in OWN_COLUMNS.items()})
        self._names: list[str | None] = [None] * capacity
        self._pasts: dict[int, tuple[Progress, tuple[Attempt, ...]]] = {}
        """By slot, of those that were on an engine."""
        self._free = list(range(capacity - 1, -1, -1))
        self._slots: dict[str, int] = {}
        self._numbers = np.zeros(capacity, np.int64)
        self._added = 0

    def __len__(self) -> int:
        return len(self._slots)

    def __contains__(self, name: str) -> bool:
        return name in self._slots

    def add(self, pending: PendingQuery) -> None:
        """Add a query. Raises KeyError if it waits already."""
        if pending.name in self._slots:
            raise KeyError(pending.name)
        if not self._free:
            self._grow()
        slot = self._free.pop()
        self._slots[pending.name], self._names[slot] = slot, pending.name
        if pending.progress is not NOTHING or pending.history:
            self._pasts[slot] = pending.progress, pending.history
        for column, value in self._values(pending).items():
            self._columns[column][slot] = value
        self._alive[slot] = True
        self._added += 1
        self._numbers[slot] = self._added
        self._order.changed()

    def remove(self, name: str) -> PendingQuery | None:
        """Take a query out; None if it does not wait."""
        slot = self._slots.get(name)
        if slot is None:
            return None
        pending = self.at(slot)
        del self._slots[name]
        self._names[slot] = None
        self._pasts.pop(slot, None)
        self._alive[slot] = False
        self._numbers[slot] = 0
        self._order.changed()
        self._free.append(slot)
        return pending

    def get(self, name: str) -> PendingQuery | None:
        """The query of that name; None if it does not wait."""
        slot = self._slots.get(name)
        return None if slot is None else self.at(slot)

    def at(self, slot: int) -> PendingQuery:
        """The query in a slot. Raises KeyError if there is none."""
        name = self.name_at(slot)
        row = {column: values[slot].tolist() for column, values in self._columns.items()}
        row["length_points"], row["length_tail"] = tuple(row["length_points"]), tuple(row["length_tail"])
        progress, history = self._pasts.get(slot, (NOTHING, ()))
        return PendingQuery(
            name,
            f"{row['arrival_ms']}-{row['entry_number']}",
            Needs(**{need: row[need] for need in NEEDS}),
            row["attempts"],
            progress,
            row["not_before_ms"],
            history,
            row["alone"],
        )

    def name_at(self, slot: int) -> str:
        """The name of the query in a slot. Raises KeyError if there is none."""
        name = self._names[slot]
        if name is None:
            raise KeyError(slot)
        return name

    def row_numbers(self) -> NDArray[np.int64]:
        """Which row is in each slot, by a number that no other row ever has; 0: none. Not to be written to."""
        return self._numbers

    def oldest_ms(self) -> int:
        """Arrival of the query that has waited longest. Raises ValueError if none waits."""
        return int(self._columns["arrival_ms"][self._alive].min())

    def names(self) -> list[str]:
        """Names of all waiting queries, in no order."""
        return list(self._slots)

    def _values(self, pending: PendingQuery) -> dict[str, Any]:
        values = {need: getattr(pending.needs, need) for need in NEEDS}
        arrival, number = pending.entry_id.split("-", 1)
        return values | {
            "arrival_ms": int(arrival),
            "entry_number": int(number),
            "not_before_ms": pending.not_before_ms,
            "delivered_tokens": len(pending.progress.token_ids),
            "tenant": self.tenants.number(pending.tenant),
            "attempts": pending.attempts,
            "alone": pending.alone,
        }

    def _grow(self) -> None:
        size = len(self._alive)
        more = self._enlarge()
        self._numbers = np.append(self._numbers, np.zeros(more, np.int64))
        self._names += [None] * more
        self._free = list(range(size + more - 1, size - 1, -1))
