"""One batch as the engine sees it: its rows, who hears of them, and how it is ended from outside."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from .request import BadRow, Row
from .rows import Limits, LiveRow, RowDelta

GATHER_SECONDS = 0.05  # news wait for each other at most this long


class Sink(Protocol):
    """Where a batch's news go. The engine calls it from its own thread only."""

    def send(self, deltas: Sequence[RowDelta], step_aggregates: str | None) -> None:
        """Send one response."""

    def close(self) -> None:
        """Send the final flag; nothing follows."""

    def is_cancelled(self) -> bool:
        """Whether the caller has cancelled the RPC."""


class Job:
    """A batch from its arrival to its end. Cancelling is safe from any thread."""

    def __init__(
        self,
        batch_id: str,
        rows: Sequence[Row | BadRow],
        sink: Sink,
        limits: Limits,
        decode: Callable[[Sequence[int]], str],
        fence: tuple[str, int] = ("", 0),
    ) -> None:
        """`fence` is the dispatcher's scope and epoch."""
        self.batch_id = batch_id
        self.sink = sink
        self.fence_scope, self.fence_epoch = fence
        self.rows = [LiveRow(row, limits, decode) for row in rows if isinstance(row, Row)]
        self._bad = [row for row in rows if isinstance(row, BadRow)]
        self._lock = threading.Lock()
        self._sent = time.monotonic()

    @property
    def running(self) -> list[LiveRow]:
        """Rows that have not ended, in order."""
        return [row for row in self.rows if not row.finish_reason]

    @property
    def urgent(self) -> bool:
        """Whether some news must not wait."""
        return bool(self._bad) or any(row.urgent for row in self.rows)

    def cancel(self, row_ids: Collection[str] = ()) -> list[str]:
        """Ask the rows (none named: all) to end as cancelled; returns those that will."""
        with self._lock:
            asked = [row for row in self.running if not row_ids or row.row.row_id in row_ids]
            for row in asked:
                row.cancel_requested = True
        return [row.row.row_id for row in asked]

    def settle(self) -> None:
        """End the rows whose cancellation or whose tokens call for it."""
        with self._lock:
            for row in self.running:
                if row.cancel_requested:
                    row.finish_reason, row.error = "cancelled", ""
                else:
                    row.finish_reason = row.outcome

    def fail(self, message: str) -> None:
        """End all rows that still run as errors."""
        for row in self.running:
            row.fail(message)
        self.settle()

    def send_if_due(self) -> None:
        """Send the news if some must not wait, or have waited long enough."""
        now = time.monotonic()
        if self.urgent or now - self._sent >= GATHER_SECONDS:
            if deltas := self._take_deltas():
                self.sink.send(deltas, None)
            self._sent = now

    def finish(self, step_aggregates: str) -> None:
        """Send the last news with what the batch cost."""
        self.sink.send(self._take_deltas(), step_aggregates)

    def _take_deltas(self) -> list[RowDelta]:
        """The news of all rows."""
        bad = [RowDelta(row.row_id, finish_reason="error", error=row.message) for row in self._bad]
        self._bad = []
        return bad + [delta for row in self.rows if (delta := row.take_delta()) is not None]
