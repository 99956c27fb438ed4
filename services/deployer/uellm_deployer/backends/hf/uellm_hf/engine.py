"""The generation thread, its queue of batches, and the control actions."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import Any

from .generation import GATHER_SECONDS, Generation
from .job import Job, Sink
from .language_model import LanguageModel
from .request import BadRow, RequestError, Row
from .rows import Limits

LOG = logging.getLogger(__name__)


class EngineStoppingError(Exception):
    """Ends the batch that runs when the engine is being unloaded."""


class Engine:
    """Runs batches one after the other in arrival order. Public methods are safe from any thread and do not block."""

    def __init__(self, model: LanguageModel) -> None:
        self._model = model
        self._limits = Limits(model.end_tokens, model.context_limit)
        self._changed = threading.Condition()
        self._queue: deque[Job] = deque()
        self._current: Job | None = None
        self._epochs: dict[str, int] = {}
        self._stopping = False
        self._next_look = 0.0
        self._thread = threading.Thread(target=self._run, name="generation", daemon=True)
        self._thread.start()

    def submit(self, batch_id: str, rows: Sequence[Row | BadRow], sink: Sink, fence: tuple[str, int]) -> None:
        """Queue a batch; raises RequestError if its id is missing or already there."""
        if not batch_id:
            raise RequestError("the request id is missing: it is the batch id")
        job = Job(batch_id, rows, sink, self._limits, self._model.decode, fence)
        with self._changed:
            if self._stopping:
                raise RequestError("the engine is being unloaded")
            if any(other.batch_id == batch_id for other in self._jobs()):
                raise RequestError(f"batch {batch_id} is already running")
            self._queue.append(job)
            self._changed.notify()

    def cancel(self, batch_id: str, row_ids: Collection[str]) -> list[str]:
        """Cancel rows of a batch (none named: all); returns those that will end as cancelled."""
        with self._changed:
            jobs = [job for job in self._jobs() if job.batch_id == batch_id]
        return [row_id for job in jobs for row_id in job.cancel(row_ids)]

    def fence(self, scope: str, epoch: int) -> None:
        """Note an epoch: ends the scope's batches of lower ones; raises RequestError if a higher one was seen."""
        with self._changed:
            seen = self._epochs.get(scope, epoch)
            if epoch < seen:
                raise RequestError(f"fence_epoch {epoch} of {scope} is behind epoch {seen}, which was seen already")
            self._epochs[scope] = epoch
            behind = [job for job in self._jobs() if job.fence_scope == scope and job.fence_epoch < epoch]
        for job in behind:
            job.cancel()

    def describe(self) -> dict[str, Any]:
        """The answer to the describe action."""
        with self._changed:
            running = [job.batch_id for job in self._jobs()]
        return {
            "kv_bytes_per_token": self._model.kv_bytes_per_token,
            "weight_bytes": self._model.weight_bytes,
            "context_limit_tokens": self._model.context_limit,
            "vocabulary": self._model.vocabulary,
            "device": str(self._model.device),
            "dtype": self._model.dtype,
            "batches_running": len(running),
            "batch_ids": running,
        }

    def close(self) -> None:
        """Stop after the step that runs now; rows that have not ended end as errors."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def _jobs(self) -> list[Job]:
        return [*([self._current] if self._current else []), *self._queue]

    def _run(self) -> None:
        while (job := self._next()) is not None:
            self._serve(job)
            del job
        for job in self._queue:
            self._serve(job)

    def _next(self) -> Job | None:
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._stopping)
            if self._stopping:
                return None
            self._current = self._queue.popleft()
            return self._current

    def _serve(self, job: Job) -> None:
        """Run a batch to its end; whatever happens, its rows end and its stream is closed."""
        generation = Generation(job, self._model, self._poll)
        try:
            generation.run()
        except EngineStoppingError:
            job.fail("the engine is being unloaded")
            _try(generation.finish, job)
        except Exception as error:
            LOG.exception("batch %s failed", job.batch_id)
            job.fail(f"{type(error).__name__}: {error}")
            _try(generation.finish, job)
        with self._changed:
            if self._current is job:
                self._current = None
        _try(job.sink.close, job)

    def _poll(self) -> None:
        """Between steps: look after the batches that wait, and from time to time for callers that have left."""
        if self._stopping:
            raise EngineStoppingError
        look = time.monotonic() >= self._next_look
        if look:
            self._next_look = time.monotonic() + GATHER_SECONDS
        with self._changed:
            jobs = self._jobs()
        for job in jobs:
            if look and job.sink.is_cancelled():
                job.cancel()
            if job is not self._current:
                self._tend(job)

    def _tend(self, job: Job) -> None:
        """Tell a waiting batch what happened to its rows; it leaves the queue when none is left."""
        job.settle()
        if not job.running:
            with self._changed:
                self._queue.remove(job)
            self._serve(job)
        elif job.urgent:
            _try(lambda: job.sink.send(job.take_deltas(), None), job)


def _try(action: Callable[[], None], job: Job) -> None:
    """Report to a caller who may have left."""
    try:
        action()
    except Exception:
        LOG.warning("batch %s: its caller cannot be reached", job.batch_id, exc_info=True)
