"""The pending table: one row per waiting query, columns as numpy arrays.

A policy reads columns, never objects, so that a decision over 10,000 queries is a few vector operations. Prompts stay
in Redis until dispatch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uellm.v1.query_pb2 import ON_MISS_CANCEL
from uellm.v1.stream_pb2 import Attempt, ProfiledQuery

from .arrivals import ArrivalOrder
from .odds import LEVELS, POINTS, TAIL, length_points
from .tenants import Tenants

NEVER = np.iinfo(np.int64).max
"""A deadline that does not exist, in ms."""
DEFAULT_CONFIDENCE = 0.9

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
}


@dataclass(frozen=True, slots=True)
class Progress:
    """What earlier attempts delivered of an answer."""

    token_ids: tuple[int, ...] = ()
    text: str = ""
    first_token_ms: int = 0
    """When the first token was delivered; 0: never."""


NOTHING = Progress()
_PACKED = ProfiledQuery()


@dataclass(frozen=True, slots=True)
class PendingQuery:
    """One waiting query, as it enters and leaves the table."""

    name: str
    entry_id: str
    query: ProfiledQuery
    attempts: int = 0
    progress: Progress = NOTHING
    not_before_ms: int = 0
    """Not to be dispatched before, by the queue's clock."""
    history: tuple[Attempt, ...] = ()
    """The attempts that failed, oldest first."""

    @property
    def tenant(self) -> str:
        """Whose it is."""
        return self.name.split("/", 2)[1]

    @property
    def arrival_ms(self) -> int:
        """When it was accepted, by the queue's clock."""
        return int(self.entry_id.split("-", 1)[0])

    @property
    def deadline_ms(self) -> int:
        """When the whole answer is wanted, by the queue's clock; `NEVER` without a deadline."""
        slo = self.query.slo
        return self.arrival_ms + int(slo.completion.ToMilliseconds()) if slo.HasField("completion") else int(NEVER)


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

    def eligible(self, now_ms: int) -> tuple[NDArray[np.intp], int | None]:
        """Slots that may be dispatched now, in order of arrival, and when the next of the others may be, in ms."""
        slots = self.slots()
        not_before = self._columns["not_before_ms"][slots]
        later = not_before > now_ms
        return slots[~later], int(not_before[later].min()) if later.any() else None

    def column(self, name: str) -> NDArray[Any]:
        """A whole column, indexed by slot. Not to be written to."""
        return self._columns[name]

    def _double(self) -> None:
        """Make room for as many slots again."""
        for name, column in self._columns.items():
            self._columns[name] = np.concatenate([column, np.zeros_like(column)])
        self._alive = np.concatenate([self._alive, np.zeros_like(self._alive)])


class PendingTable(QueryColumns):
    """Rows are addressed by name or by slot; a slot is stable while its query waits.

    Queries are held serialized: as message objects they take four times as much memory.
    """

    def __init__(self, capacity: int = 256) -> None:
        super().__init__(capacity)
        self._queries: list[PendingQuery | None] = [None] * capacity
        self._packed: list[bytes] = [b""] * capacity
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
        self._slots[pending.name] = slot
        self._queries[slot], self._packed[slot] = replace(pending, query=_PACKED), pending.query.SerializeToString()
        for column, value in self._values(pending).items():
            self._columns[column][slot] = value
        self._alive[slot] = True
        self._added += 1
        self._numbers[slot] = self._added
        self._order.changed()

    def remove(self, name: str) -> PendingQuery | None:
        """Take a query out; None if it does not wait."""
        slot = self._slots.pop(name, None)
        if slot is None:
            return None
        pending = self.at(slot)
        self._queries[slot], self._packed[slot] = None, b""
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
        pending = self._queries[slot]
        if pending is None:
            raise KeyError(slot)
        return replace(pending, query=ProfiledQuery.FromString(self._packed[slot]))

    def name_at(self, slot: int) -> str:
        """The name of the query in a slot. Raises KeyError if there is none."""
        pending = self._queries[slot]
        if pending is None:
            raise KeyError(slot)
        return pending.name

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
        query, length = pending.query, pending.query.profile.output_length
        arrival = pending.arrival_ms
        slo = query.slo
        quantiles = length_points(length, (*LEVELS, *TAIL))
        return {
            "arrival_ms": arrival,
            "deadline_ms": pending.deadline_ms,
            "first_token_deadline_ms": (
                arrival + slo.first_token.ToMilliseconds() if slo.HasField("first_token") else NEVER
            ),
            "not_before_ms": pending.not_before_ms,
            "confidence": slo.confidence or DEFAULT_CONFIDENCE,
            "prompt_tokens": query.profile.prompt_tokens,
            "length_points": quantiles[:POINTS],
            "length_tail": quantiles[POINTS:],
            "p50_tokens": length.p50_tokens,
            "p90_tokens": length.p90_tokens,
            "p99_tokens": length.p99_tokens,
            "limit_tokens": length.limit_tokens,
            "delivered_tokens": len(pending.progress.token_ids),
            "kv_bytes_p90": query.profile.kv_cache_bytes_p90,
            "kv_bytes_limit": query.profile.kv_cache_bytes_limit,
            "priority": query.priority,
            "tenant": self.tenants.number(pending.tenant),
            "attempts": pending.attempts,
            "cancel_on_miss": slo.on_miss == ON_MISS_CANCEL,
        }

    def _grow(self) -> None:
        size = len(self._alive)
        self._double()
        self._numbers = np.concatenate([self._numbers, np.zeros_like(self._numbers)])
        self._queries += [None] * size
        self._packed += [b""] * size
        self._free = list(range(2 * size - 1, size - 1, -1))
