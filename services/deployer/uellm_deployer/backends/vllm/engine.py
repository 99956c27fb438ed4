"""The generation thread: rows of all batches step together, join at any step, and leave when they end."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from ..common.aggregates import StepLog
from ..common.desk import Desk, attempt
from ..common.job import GATHER_SECONDS, Job
from ..common.rows import Limits, LiveRow
from ..common.vllm_sampling import sampling_arguments
from .steps import Steps

if TYPE_CHECKING:
    from .core import Step

LOG = logging.getLogger(__name__)


class Core(Protocol):
    """vLLM, as the generation thread needs it (core.py)."""

    facts: dict[str, Any]

    def add(self, key: str, tokens: Sequence[int], sampling: dict[str, Any]) -> None:
        """Let a row join at the next step; raises ValueError if it is refused."""

    def abort(self, keys: Collection[str]) -> None:
        """Let rows leave."""

    def step(self) -> Step:
        """One step of all rows that are there."""

    def close(self) -> None:
        """Free what it holds."""


@dataclass(slots=True, eq=False)
class Request:
    """A batch that has begun."""

    job: Job
    arrival: int
    log: StepLog = field(default_factory=StepLog)
    rows: dict[str, LiveRow] = field(default_factory=dict)
    """Those that are in vLLM, by key."""


class Engine(Desk):
    """Runs the rows of all batches at once. Public methods are safe from any thread and do not block."""

    def __init__(
        self,
        limits: Limits,
        decode: Callable[[Sequence[int]], str],
        open_core: Callable[[], Core],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Returns when the model is loaded; raises what `open_core` raises, which runs in the generation thread."""
        super().__init__(limits, decode)
        self._clock = clock
        self._end_tokens = limits.end_tokens
        self._open_core = open_core
        self._core: Core | None = None
        self._failure: BaseException | None = None
        self._opened = threading.Event()
        self._requests: dict[str, Request] = {}
        self._by_row: dict[str, Request] = {}
        self._numbers = itertools.count()
        self._steps = Steps()
        self._stepped: float | None = None
        """When the last step ended, while rows have been there ever since."""
        self._next_look = 0.0
        self._thread = threading.Thread(target=self._run, name="generation", daemon=True)
        self._thread.start()
        self._opened.wait()
        if self._failure is not None:
            raise self._failure

    def describe(self) -> dict[str, Any]:
        """The answer to the describe action."""
        assert self._core is not None
        running = [job.batch_id for job in self.jobs]
        return {**self._core.facts, "batches_running": len(running), "batch_ids": running}

    def close(self) -> None:
        """Stop after the step that runs now; rows that have not ended end as errors."""
        self.stop()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._core = core = self._open_core()
        except BaseException as error:  # noqa: BLE001  (raised in the thread that waits)
            self._failure = error
            return
        finally:
            self._opened.set()
        while self.wait():
            try:
                self._turn(core)
            except Exception as error:
                LOG.exception("a step failed")
                self._fail(core, f"{type(error).__name__}: {error}")
        self._fail(core, "the engine is being unloaded")
        core.close()

    def _turn(self, core: Core) -> None:
        """One step, with what happens around it."""
        began = self._clock()
        self._look_for_callers()
        for job in self.jobs:
            if job.batch_id not in self._requests:
                self._begin(core, job)
        self._settle(core)
        if self._by_row:
            step = core.step()
            # From step to step, as a row sees it: what happens in between makes it wait as well.
            since, self._stepped = self._stepped or began, self._clock()
            self._absorb(step, self._stepped - since)
            self._settle(core)
        if not self._by_row:
            self._stepped = None
        for request in self._requests.values():
            attempt(request.job.send_if_due, request.job)

    def _look_for_callers(self) -> None:
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + GATHER_SECONDS
        for job in self.jobs:
            if job.sink.is_cancelled():
                job.cancel()

    def _begin(self, core: Core, job: Job) -> None:
        """Let the rows of a batch join that have not ended before they begin."""
        request = self._requests[job.batch_id] = Request(job, next(self._numbers))
        job.settle()
        for row in job.running:
            key = str(next(self._numbers))
            try:
                core.add(key, row.row.prompt + row.row.resume, sampling_arguments(row, self._end_tokens))
            except ValueError as error:
                row.fail(f"vLLM refuses the row: {error}")
            else:
                request.rows[key] = row
                self._by_row[key] = request

    def _absorb(self, step: Step, seconds: float) -> None:
        """Note what a step cost, and give its tokens to their rows."""
        self._steps.add(step.rows, seconds, self._by_row)
        for news in step.news:
            row = self._by_row[news.key].rows[news.key]
            for token in news.tokens:
                if not row.outcome:
                    row.accept(token)
            if news.ended:
                self._drop([news.key])
                if not row.outcome:
                    row.fail(f"vLLM has ended the row ({news.ended})")

    def _settle(self, core: Core) -> None:
        """Take rows out that have ended, and batches of which no row is left."""
        over: list[str] = []
        for request in list(self._requests.values()):
            request.job.settle()
            over += [key for key, row in request.rows.items() if row.finish_reason]
        if over:
            core.abort(over)
            self._drop(over)
        for request in list(self._requests.values()):
            if not request.job.running:
                self._end(request)

    def _drop(self, keys: Sequence[str]) -> None:
        for key in keys:
            del self._by_row.pop(key).rows[key]

    def _end(self, request: Request) -> None:
        del self._requests[request.job.batch_id]
        aggregates = request.log.to_json(request.log.seconds, self._kv_bytes_per_token)
        attempt(lambda: request.job.finish(aggregates), request.job)
        self.leave(request.job)

    def _fail(self, core: Core, message: str) -> None:
        """End everything that is there as errors."""
        running, self._by_row = list(self._by_row), {}
        for job in self.jobs:
            request = self._requests.setdefault(job.batch_id, Request(job, next(self._numbers)))
            request.rows.clear()
            job.fail(message)
            self._end(request)
        try:
            core.abort(running)
        except Exception:
            LOG.exception("rows could not be taken out")

    @property
    def _kv_bytes_per_token(self) -> int:
        assert self._core is not None
        return int(self._core.facts["kv_bytes_per_token"])
