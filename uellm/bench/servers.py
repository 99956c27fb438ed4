"""What takes turns: our policies by name, and peers beside them on the same engine."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

from uellm.bench.records import Record, read_prediction
from uellm.bench.runs import Ask, Clock
from uellm.client import AsyncClient, Outcome, QueryOptions, Submitted, TokenDelta
from uellm.rpc.errors import RefusedError, UellmError
from uellm.v1.query_pb2 import QUERY_STATE_REJECTED, RefusalReason

_REASON = "REFUSAL_REASON_"


class Servers:
    """Policies of one model's queue, and peers. Use it as a context manager: the policy that it found comes back."""

    def __init__(self, client: AsyncClient, peers: Mapping[str, Ask]) -> None:
        self._client = client
        self._peers = peers
        self._found = ""

    async def __aenter__(self) -> Servers:
        return self

    async def __aexit__(self, *error: object) -> None:
        if self._found:
            with contextlib.suppress(UellmError):  # what is being raised says more
                await self._client.set_policy(self._found)

    async def ask(self, name: str) -> Ask:
        """How to ask this one, which serves from now on."""
        if name in self._peers:
            return self._peers[name]
        before = await self._client.set_policy(name)
        self._found = self._found or before
        return partial(ask_uellm, self._client)


async def ask_uellm(client: AsyncClient, record: Record, clock: Clock) -> None:
    """Submit a query and follow it to its end; one that is given up is cancelled."""
    query: Submitted | None = None
    try:
        query = await client.submit(record.planned.prompt, **_options(record))
        record.name, record.prompt_tokens = query.name, query.profile.prompt_tokens
        record.predicted = read_prediction(query.profile)
        async for event in client.stream(query):
            if isinstance(event, TokenDelta) and record.first_token is None:
                record.first_token = clock()
            if isinstance(event, Outcome):
                _end(record, event, clock())
    except RefusedError as error:
        record.state, record.reason = QUERY_STATE_REJECTED, error.reason
    except UellmError as error:
        record.failed(error.message)
    except asyncio.CancelledError:
        if query is not None:
            await _cancel_quietly(client.cancel, query)
        raise


async def _cancel_quietly(cancel: Callable[[Submitted], Awaitable[object]], query: Submitted) -> None:
    with contextlib.suppress(UellmError):
        await cancel(query)


def _options(record: Record) -> QueryOptions:
    planned, service = record.planned, record.planned.service
    options = QueryOptions(max_output_tokens=planned.max_output_tokens, tenant=planned.tenant)
    if service.completion_seconds:
        options["slo_seconds"] = service.completion_seconds
    if service.first_token_seconds:
        options["first_token_slo_seconds"] = service.first_token_seconds
    return options


def _end(record: Record, outcome: Outcome, now: float) -> None:
    """Only differences of the queue's clock are used: it may be another than ours."""
    timing = outcome.timing
    record.finished, record.state, record.output_tokens = now, outcome.state, outcome.output_tokens
    if timing.dispatch_time.ToNanoseconds():
        served = timing.finish_time.ToNanoseconds() - timing.dispatch_time.ToNanoseconds()
        record.dispatched = now - served / 1e9
    if outcome.HasField("refusal"):
        record.reason = RefusalReason.Name(outcome.refusal.reason).removeprefix(_REASON)
    elif outcome.HasField("failure"):
        record.reason = outcome.failure.message
