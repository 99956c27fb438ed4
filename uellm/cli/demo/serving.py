"""Submits the requests, follows them, and checks that each got exactly one outcome."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from uellm.cli.demo.workload import Arrival
from uellm.client import AsyncClient, Batched, Event, Outcome, Preempted, Submitted, TokenDelta, Transcript
from uellm.rpc.errors import RefusedError, UellmError


class Phase(StrEnum):
    """Where a request stands."""

    DUE = "due"
    WAITING = "waiting"
    RUNNING = "running"
    ENDED = "ended"


@dataclass(slots=True, eq=False)
class Request:
    """One request and what became of it."""

    arrival: Arrival
    phase: Phase = Phase.DUE
    query: Submitted | None = None
    """Not set: not accepted."""
    refusal: str = ""
    """Reason of a refusal at `Submit`, which leaves no query behind."""
    error: str = ""
    """Why it could not be followed to its end."""
    submitted_at: float = 0.0
    """`time.monotonic()`."""
    tokens: int = 0
    transcript: Transcript = field(default_factory=Transcript)
    outcome: Outcome | None = None
    defects: list[str] = field(default_factory=list)
    """What breaks the promise of exactly one outcome."""


async def serve(client: AsyncClient, requests: Sequence[Request], on_end: Callable[[Request], None]) -> None:
    """Submit each request when it is due and follow it to its end."""
    run = uuid.uuid4().hex[:8]
    began = time.monotonic()

    async def one(request: Request) -> None:
        await asyncio.sleep(began + request.arrival.at_seconds - time.monotonic())
        await _serve_one(client, request, f"{run}-{request.arrival.id}")
        request.phase = Phase.ENDED
        on_end(request)

    async with asyncio.TaskGroup() as tasks:
        for request in requests:
            tasks.create_task(one(request))


async def verify(client: AsyncClient, requests: Sequence[Request]) -> None:
    """Read every outcome again, by `GetQuery` and from the event stream, and note what does not agree."""
    for request in requests:
        if request.query is not None:
            request.defects += await _defects(client, request, request.query)
        elif not request.refusal:
            request.defects.append(f"not submitted: {request.error}")


async def _serve_one(client: AsyncClient, request: Request, query_id: str) -> None:
    prompt = request.arrival.prompt
    request.submitted_at = time.monotonic()
    request.phase = Phase.WAITING
    try:
        request.query = await client.submit(
            prompt.prompt,
            query_id=query_id,
            slo_seconds=request.arrival.slo_seconds,
            max_output_tokens=prompt.max_output_tokens,
            labels={"class": prompt.service_class},
        )
        async for event in client.stream(request.query):
            _absorb(request, event)
    except RefusedError as error:
        request.refusal = error.reason
    except UellmError as error:
        request.error = error.message


def _absorb(request: Request, event: Event) -> None:
    request.transcript.add(event)
    if isinstance(event, Batched):
        request.phase = Phase.RUNNING
    elif isinstance(event, Preempted):
        request.phase = Phase.WAITING
    elif isinstance(event, TokenDelta):
        request.tokens = event.first_token_index + len(event.token_ids)
    elif isinstance(event, Outcome):
        request.outcome = event


async def _defects(client: AsyncClient, request: Request, query: Submitted) -> list[str]:
    try:
        status = await client.get(query)
        events = [event async for event in client.stream(query)]
    except UellmError as error:
        return [f"cannot be read again: {error.message}"]
    outcomes = [event for event in events if isinstance(event, Outcome)]
    transcript = Transcript()
    for event in events:
        transcript.add(event)
    checks = {
        f"{len(outcomes)} outcome events": len(outcomes) == 1,
        "GetQuery has another outcome than the events": outcomes[-1:] == [status.outcome],
        "the outcome changed": request.outcome == status.outcome,
        "the deltas are not the answer": transcript.text == status.outcome.text,
        "what was streamed is not the answer": request.transcript.text == status.outcome.text,
    }
    return [what for what, holds in checks.items() if not holds]
