"""Where batches come in, and what is asked of those that are there."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Sequence

from .job import Job, Sink
from .request import BadRow, RequestError, Row
from .rows import Limits

LOG = logging.getLogger(__name__)


class Desk:
    """The batches of an engine, in arrival order. All methods are safe from any thread and only `wait` blocks."""

    def __init__(self, limits: Limits, decode: Callable[[Sequence[int]], str]) -> None:
        """`decode` turns tokens into text."""
        self._limits = limits
        self._decode = decode
        self._changed = threading.Condition()
        self._jobs: dict[str, Job] = {}
        self._epochs: dict[str, int] = {}
        self._stopping = False

    @property
    def jobs(self) -> list[Job]:
        """Those that have not ended."""
        with self._changed:
            return list(self._jobs.values())

    @property
    def stopping(self) -> bool:
        """Whether the engine is being unloaded."""
        return self._stopping

    def submit(self, batch_id: str, rows: Sequence[Row | BadRow], sink: Sink, fence: tuple[str, int]) -> None:
        """Take a batch; raises RequestError if its id is missing or already there."""
        if not batch_id:
            raise RequestError("the request id is missing: it is the batch id")
        job = Job(batch_id, rows, sink, self._limits, self._decode, fence)
        with self._changed:
            if self._stopping:
                raise RequestError("the engine is being unloaded")
            if batch_id in self._jobs:
                raise RequestError(f"batch {batch_id} is already running")
            self._jobs[batch_id] = job
            self._changed.notify()

    def cancel(self, batch_id: str, row_ids: Collection[str]) -> list[str]:
        """Cancel rows of a batch (none named: all); returns those that will end as cancelled."""
        with self._changed:
            job = self._jobs.get(batch_id)
        return job.cancel(row_ids) if job else []

    def fence(self, scope: str, epoch: int) -> None:
        """Note an epoch: ends the scope's batches of lower ones; raises RequestError if a higher one was seen."""
        with self._changed:
            seen = self._epochs.get(scope, epoch)
            if epoch < seen:
                raise RequestError(f"fence_epoch {epoch} of {scope} is behind epoch {seen}, which was seen already")
            self._epochs[scope] = epoch
            behind = [job for job in self._jobs.values() if job.fence_scope == scope and job.fence_epoch < epoch]
        for job in behind:
            job.cancel()

    def wait(self) -> bool:
        """Wait until there is a batch; False if the engine is being unloaded."""
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._stopping)
            return not self._stopping

    def leave(self, job: Job) -> None:
        """A batch has ended: forget it, and close its stream."""
        with self._changed:
            self._jobs.pop(job.batch_id, None)
        attempt(job.sink.close, job)

    def stop(self) -> None:
        """Take nothing any more."""
        with self._changed:
            self._stopping = True
            self._changed.notify()


def attempt(action: Callable[[], None], job: Job) -> None:
    """Report to a caller who may have left."""
    try:
        action()
    except Exception:
        LOG.warning("batch %s: its caller cannot be reached", job.batch_id, exc_info=True)
