"""What generates answers to label: a stack that runs, or vLLM in an environment of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import threading
from collections.abc import AsyncIterator, Iterable
from collections.abc import Generator as Answers
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from uellm.client import AsyncClient, Endpoints
from uellm.v1.query_pb2 import FINISH_REASON_LENGTH, QUERY_STATE_COMPLETED

WINDOW = 64
"""Queries that are submitted at once."""
_WORKER = Path(__file__).with_name("vllm_worker.py")


class GeneratorError(RuntimeError):
    """Answers can't be had; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Request:
    """One answer wanted."""

    key: str
    prompt_token_ids: tuple[int, ...]
    temperature: float
    top_p: float
    repetition_penalty: float
    max_tokens: int
    seed: int
    stop: tuple[str, ...] = ()
    """The answer ends before any of these."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer."""

    key: str
    output_tokens: int
    censored: bool
    text: str


class Generator(Protocol):
    """Answers requests."""

    def generate(self, requests: Iterable[Request]) -> Answers[Answer, None, None]:
        """Answers in the order in which they end. Raises GeneratorError."""


@dataclass(frozen=True, slots=True)
class VllmGenerator:
    """vLLM as a child process."""

    python: Path
    """Of an environment that has vLLM (`make vllm-env`)."""
    model: Path
    """Folder of the model."""
    context_tokens: int
    log: Path
    """Takes what vLLM prints."""
    dtype: str = "float32"
    """Number format of the weights, as vLLM names it."""

    def generate(self, requests: Iterable[Request]) -> Answers[Answer, None, None]:
        """See `Generator`."""
        if not self.python.exists():
            raise GeneratorError(f"{self.python} is not there: `make vllm-env` makes the environment of vLLM")
        command = [str(self.python), str(_WORKER), str(self.model), str(self.context_tokens), self.dtype]
        with (
            self.log.open("wb") as log,
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log) as process,
        ):
            feeder = threading.Thread(target=_feed, args=(process, requests), daemon=True)
            feeder.start()
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    row = json.loads(line)
                    yield Answer(row["key"], row["output_tokens"], row["finish"] == "length", row["text"])
            except BaseException:
                process.kill()
                raise
            if process.wait():
                raise GeneratorError(f"vLLM ended with status {process.returncode}; see {self.log}")


def _feed(process: subprocess.Popen[bytes], requests: Iterable[Request]) -> None:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError), process.stdin as stream:
        for request in requests:
            stream.write(json.dumps(asdict(request)).encode() + b"\n")


@dataclass(frozen=True, slots=True)
class ServedGenerator:
    """A stack that runs, through its own front door: what is labelled is what is served."""

    endpoints: Endpoints
    model: str

    def generate(self, requests: Iterable[Request]) -> Answers[Answer, None, None]:
        """See `Generator`."""
        answers = self._answers(requests)
        with asyncio.Runner() as runner:
            while True:
                try:
                    yield runner.run(anext(answers))  # type: ignore[arg-type]  # an awaitable of a coroutine's kind
                except StopAsyncIteration:
                    return

    async def _answers(self, requests: Iterable[Request]) -> AsyncIterator[Answer]:
        waiting: set[asyncio.Task[Answer]] = set()
        async with AsyncClient(self.endpoints, model=self.model) as client:
            for request in requests:
                waiting.add(asyncio.create_task(_ask(client, request)))
                if len(waiting) >= WINDOW:
                    done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        yield task.result()
            for next_task in asyncio.as_completed(waiting):
                yield await next_task


async def _ask(client: AsyncClient, request: Request) -> Answer:
    options: dict[str, Any] = {
        "max_output_tokens": request.max_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "repetition_penalty": request.repetition_penalty,
        "seed": request.seed,
        "stop": list(request.stop),
    }
    query = await client.submit(list(request.prompt_token_ids), **options)
    outcome = await client.outcome(query)
    if outcome.state != QUERY_STATE_COMPLETED:
        raise GeneratorError(f"{query.name} was not answered: {outcome.failure.message or outcome.refusal.message}")
    return Answer(request.key, outcome.output_tokens, outcome.finish_reason == FINISH_REASON_LENGTH, outcome.text)
