"""How the servers that are compared are asked: UELLM under a policy, and engines driven directly."""

from __future__ import annotations

import time

from runs import Answer
from workload import Arrival

from uellm.client import AsyncClient
from uellm.rpc.errors import RefusedError, UellmError
from uellm.v1.query_pb2 import QUERY_STATE_COMPLETED, QUERY_STATE_REJECTED, Outcome
from uellm.v1.stream_pb2 import TokenDelta


async def ask_uellm(client: AsyncClient, arrival: Arrival, answer: Answer, begin: float) -> None:
    """Submit and watch."""
    options = {} if arrival.slo_seconds is None else {"slo_seconds": arrival.slo_seconds}
    try:
        query = await client.submit(arrival.prompt, max_output_tokens=arrival.max_output_tokens, **options)
        async for event in client.stream(query):
            if isinstance(event, TokenDelta) and answer.first_token is None:
                answer.first_token = time.monotonic() - begin
            if isinstance(event, Outcome):
                answer.tokens = event.output_tokens
                answer.rejected = event.state == QUERY_STATE_REJECTED
                if not answer.rejected and event.state != QUERY_STATE_COMPLETED:
                    answer.error = event.failure.message or str(event.state)
    except RefusedError:
        answer.rejected = True
    except UellmError as error:
        answer.error = str(error)
    answer.end = time.monotonic() - begin
