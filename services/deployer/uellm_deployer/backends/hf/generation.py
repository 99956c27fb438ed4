"""Runs one batch from prefill to its last row."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from ..common.aggregates import StepLog
from ..common.job import Job
from ..common.rows import LiveRow
from .batch import StaticBatch
from .language_model import LanguageModel
from .sampling import Sampler


class Generation:
    """The run of one job; `poll` is called between steps and may cancel rows of the job."""

    def __init__(self, job: Job, model: LanguageModel, poll: Callable[[], None]) -> None:
        self._job = job
        self._model = model
        self._poll = poll
        self._log = StepLog()
        self._started = time.monotonic()

    @torch.inference_mode()
    def run(self) -> None:
        """Generate until every row has ended, sending the news on the way."""
        self._job.settle()
        if self._job.running:
            self._poll()
            self._job.settle()
        if rows := self._job.running:
            self._job.send_if_due()
            self._generate(rows)
        self.finish()

    def finish(self) -> None:
        """Send the last news with the step aggregates."""
        seconds = time.monotonic() - self._started
        self._job.finish(self._log.to_json(seconds, self._model.kv_bytes_per_token))

    def _generate(self, rows: list[LiveRow]) -> None:
        begin = time.monotonic()
        batch = StaticBatch(self._model, [row.row.prompt + row.row.resume for row in rows])
        sampler = Sampler([row.row for row in rows], self._model.vocabulary)
        tokens = self._draw(sampler, batch.prefill(), rows)
        self._log.add_prefill(len(rows), sum(batch.contexts), batch.rows * batch.padded, time.monotonic() - begin)
        while True:
            begin = time.monotonic()
            self._poll()
            self._job.settle()
            stay = [i for i, row in enumerate(rows) if not row.finish_reason]
            if not stay:
                return
            self._job.send_if_due()
            if len(stay) < len(rows):
                rows = [rows[i] for i in stay]
                index = torch.tensor(stay)
                batch.keep(stay)
                sampler.keep(index)
                tokens = tokens[index]
            tokens = self._draw(sampler, batch.step(tokens), rows)
            self._log.add_step(len(rows), batch.padded, sum(batch.contexts), time.monotonic() - begin)

    def _draw(self, sampler: Sampler, logits: Tensor, rows: list[LiveRow]) -> Tensor:
        tokens = sampler.draw(logits, [row.length for row in rows])
        for row, token in zip(rows, tokens.tolist(), strict=True):
            if token < 0:
                row.fail("the model returned logits that are not numbers")
            else:
                row.accept(token)
        return tokens
