"""Rows to requests of an engine that is a Triton model beside this one, and its answers back into batches."""

from __future__ import annotations

import itertools
import json
import logging
import queue
import threading
from collections.abc import Callable, Collection, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Protocol

from .aggregates import StepLog
from .desk import Desk, attempt
from .job import GATHER_SECONDS, Job, Sink
from .request import BadRow, Row
from .rows import Limits, LiveRow

LOG = logging.getLogger(__name__)

Outputs = dict[str, Any]
"""Arrays of one response, by output."""

Ask = Callable[[str, dict[str, Any]], Generator[Outputs]]
"""Sends tensors to the engine under a request id; yields its responses. Raises EngineError."""


class EngineError(RuntimeError):
    """The engine's own words, or what is wrong with what it answers."""


class Behind(Protocol):
    """The engine. Its methods block, and are called from many threads."""

    @property
    def name(self) -> str:
        """For people."""

    @property
    def keeps_end_token(self) -> bool:
        """Whether it ends a row at an end token without telling that token."""

    def generate(self, key: str, row: LiveRow) -> Generator[Sequence[int]]:
        """New tokens of a row as they come. Closed early where nobody wants more. Raises EngineError."""

    def stop(self, key: str) -> None:
        """Let go of a row that has ended here, if it is there at all."""


@dataclass(frozen=True, slots=True)
class News:
    """What came for a row."""

    key: str
    tokens: tuple[int, ...] = ()
    over: bool = False
    error: str = ""


WAKE = News("")
"""Nothing of a row: somebody came or goes."""


class Engine(Desk):
    """Each row is a request of its own: rows join and leave the engine's batch at any step."""

    def __init__(
        self, limits: Limits, decode: Callable[[Sequence[int]], str], facts: dict[str, Any], rows: int, behind: Behind
    ) -> None:
        """`facts`: what is told on `describe`; `rows` are asked for at once, the others wait here."""
        super().__init__(limits, decode)
        self._end_tokens = limits.end_tokens
        self._facts = facts
        self._behind = behind
        self._news: queue.SimpleQueue[News] = queue.SimpleQueue()
        self._rows: dict[str, tuple[Job, LiveRow]] = {}
        self._open: dict[str, str] = {}  # batches of the rows that the engine may still have, ended here or not
        self._begun: set[str] = set()
        self._numbers = itertools.count()
        self._asking = ThreadPoolExecutor(rows, "row")
        self._stops = ThreadPoolExecutor(1, "stop")
        self._thread = threading.Thread(target=self._run, name="generation", daemon=True)
        self._thread.start()

    def submit(self, batch_id: str, rows: Sequence[Row | BadRow], sink: Sink, fence: tuple[str, int]) -> None:
        """As `Desk.submit`."""
        super().submit(batch_id, rows, sink, fence)
        self._news.put(WAKE)

    def cancel(self, batch_id: str, row_ids: Collection[str]) -> list[str]:
        """As `Desk.cancel`."""
        cancelled = super().cancel(batch_id, row_ids)
        self._news.put(WAKE)
        return cancelled

    def describe(self) -> dict[str, Any]:
        """The answer to the describe action."""
        running = [job.batch_id for job in self.jobs]
        return {**self._facts, "batches_running": len(running), "batch_ids": running}

    def close(self) -> None:
        """Stop; rows that have not ended end as errors, and the engine is told to let go of them."""
        self.stop()
        self._thread.join()
        self._stops.shutdown()
        self._asking.shutdown()

    def _run(self) -> None:
        while self.wait():
            try:
                self._turn()
            except Exception as error:
                LOG.exception("a turn failed")
                self._fail(f"{type(error).__name__}: {error}")
        self._fail("the engine is being unloaded")

    def _turn(self) -> None:
        for job in self.jobs:
            if job.batch_id not in self._begun:
                self._begin(job)
            if job.sink.is_cancelled():
                job.cancel()
        self._absorb()
        self._settle()
        for job in self.jobs:
            attempt(job.send_if_due, job)

    def _begin(self, job: Job) -> None:
        self._begun.add(job.batch_id)
        job.settle()
        for row in job.running:
            key = f"{job.batch_id}/{next(self._numbers)}"
            self._rows[key] = job, row
            self._open[key] = job.batch_id
            self._asking.submit(self._follow, key, row)

    def _follow(self, key: str, row: LiveRow) -> None:
        """In a thread of the row: its answers become news."""
        error = ""
        try:
            if key in self._rows:  # else it ended while it waited for its turn
                self._read(key, row)
        except Exception as caught:  # noqa: BLE001  (whatever it is, the row must not wait for ever)
            error = str(caught) or type(caught).__name__
        self._news.put(News(key, over=True, error=error))

    def _read(self, key: str, row: LiveRow) -> None:
        with closing(self._behind.generate(key, row)) as answers:
            for tokens in answers:
                if key not in self._rows:  # it has ended here, maybe before the engine knew of it
                    self._behind.stop(key)
                    return
                self._news.put(News(key, tuple(tokens)))

    def _absorb(self) -> None:
        """Wait for news, and take all that is there."""
        try:
            self._take(self._news.get(timeout=GATHER_SECONDS))
            while True:
                self._take(self._news.get_nowait())
        except queue.Empty:
            return

    def _take(self, news: News) -> None:
        if news.over:
            self._open.pop(news.key, None)
        if news.key not in self._rows:
            return
        _, row = self._rows[news.key]
        for token in news.tokens:
            if not row.outcome:
                row.accept(token)
        if news.over:
            del self._rows[news.key]
            if not row.outcome:
                self._ended_by_engine(row, news.error)

    def _ended_by_engine(self, row: LiveRow, error: str) -> None:
        """An end that the tokens do not show: a failure, or an end token that the engine kept for itself."""
        hidden = self._behind.keeps_end_token and not row.row.sampling.ignore_eos
        if error or not (hidden and self._end_tokens):
            row.fail(error or f"{self._behind.name} has ended the row early")
        else:
            row.accept(min(self._end_tokens))

    def _settle(self) -> None:
        """Let go of rows that have ended here, and of batches of which none is left, in the engine either.

        Triton unloads this model once it has no batch left: until then the engine works for somebody.
        """
        for job in self.jobs:
            job.settle()
        for key, (_, row) in list(self._rows.items()):
            if row.finish_reason:
                self._let_go(key)
        busy = set(self._open.values())
        for job in self.jobs:
            if job.batch_id in self._begun and not job.running and job.batch_id not in busy:
                self._end(job)

    def _let_go(self, key: str) -> None:
        del self._rows[key]
        self._stops.submit(self._stop_row, key)

    def _stop_row(self, key: str) -> None:
        try:
            self._behind.stop(key)
        except Exception:
            LOG.exception("row %s could not be stopped", key)

    def _end(self, job: Job) -> None:
        """The engine's steps are not seen from here, so none is reported."""
        self._begun.discard(job.batch_id)
        aggregates = StepLog().to_json(0.0, int(self._facts["kv_bytes_per_token"]))
        attempt(lambda: job.finish(aggregates), job)
        self.leave(job)

    def _fail(self, message: str) -> None:
        """End everything that is there as errors."""
        for key in list(self._rows):
            self._let_go(key)
        for job in self.jobs:
            job.fail(message)
            self._end(job)


def facts_of(text: str) -> dict[str, Any]:
    """What the front tells of its engine; raises ValueError."""
    facts = json.loads(text)
    if not isinstance(facts, dict) or not {"kv_bytes_per_token", "vocabulary", "context_limit_tokens"} <= facts.keys():
        raise ValueError("model config parameter facts must be a JSON object with the figures of `describe`")
    return facts
