"""The generation thread, which runs one batch after the other."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

from ..common.desk import Desk, attempt
from ..common.job import GATHER_SECONDS, Job
from ..common.rows import Limits
from .generation import Generation
from .language_model import LanguageModel

LOG = logging.getLogger(__name__)


class EngineStoppingError(Exception):
    """Ends the batch that runs when the engine is being unloaded."""


class Engine(Desk):
    """Runs batches one after the other in arrival order. Public methods are safe from any thread and do not block."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__(Limits(model.end_tokens, model.context_limit), model.decode)
        self._model = model
        self._current: Job | None = None
        self._next_look = 0.0
        self._thread = threading.Thread(target=self._run, name="generation", daemon=True)
        self._thread.start()

    def describe(self) -> dict[str, Any]:
        """The answer to the describe action."""
        running = [job.batch_id for job in self.jobs]
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
        self.stop()
        self._thread.join()

    def _run(self) -> None:
        while self.wait():
            self._current = self.jobs[0]
            self._serve(self._current)
        for job in self.jobs:
            self._serve(job)

    def _serve(self, job: Job) -> None:
        """Run a batch to its end; whatever happens, its rows end and its stream is closed."""
        generation = Generation(job, self._model, self._poll)
        try:
            generation.run()
        except EngineStoppingError:
            job.fail("the engine is being unloaded")
            attempt(generation.finish, job)
        except Exception as error:
            LOG.exception("batch %s failed", job.batch_id)
            job.fail(f"{type(error).__name__}: {error}")
            attempt(generation.finish, job)
        if self._current is job:
            self._current = None
        self.leave(job)

    def _poll(self) -> None:
        """Between steps: look after the batches that wait, and from time to time for callers that have left."""
        if self.stopping:
            raise EngineStoppingError
        look = time.monotonic() >= self._next_look
        if look:
            self._next_look = time.monotonic() + GATHER_SECONDS
        for job in self.jobs:
            if look and job.sink.is_cancelled():
                job.cancel()
            if job is not self._current:
                self._tend(job)

    def _tend(self, job: Job) -> None:
        """Tell a waiting batch what happened to its rows; it leaves the queue when none is left."""
        job.settle()
        if not job.running:
            self._serve(job)
        elif job.urgent:
            attempt(job.send_if_due, job)
