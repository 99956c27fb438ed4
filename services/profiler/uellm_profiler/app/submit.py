"""Submit a query: profile, admit, enqueue."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from uellm.messaging.clock import Clock
from uellm.messaging.deployments import queue_for
from uellm.messaging.keys import ModelKeys
from uellm.messaging.queries import SCHEMA_VERSION, Accepted, Conflict, Full, Submission
from uellm.rpc.errors import AlreadyExistsError, UellmError
from uellm.rpc.validation import ModelName
from uellm.v1.query_pb2 import Query, TokenIds
from uellm.v1.stream_pb2 import ProfiledQuery, QueryRecord
from uellm_profiler.app.ports import Backlogs, Queue
from uellm_profiler.app.profile import ProfiledPrompt, Profiler
from uellm_profiler.domain import admission, refusals


def new_query_id() -> str:
    """An id for a query that came without one: 128 random bits."""
    return next(_ids)


def _random_ids() -> Iterator[str]:
    # Many at a time: to ask the system for each of them takes as long as to hash a prompt.
    while True:
        block = os.urandom(4_096)
        for at in range(0, len(block), 16):
            yield block[at : at + 16].hex()


_ids = _random_ids()


def body_hash(query: Query) -> str:
    """Hash of what the client sent; the name is not part of it."""
    body = Query()
    body.CopyFrom(query)
    body.ClearField("name")
    return hashlib.sha256(body.SerializeToString(deterministic=True)).hexdigest()


@dataclass(frozen=True, slots=True)
class Submitted:
    """A query that was accepted, now or before."""

    name: str
    accepted: Accepted


@dataclass(frozen=True, slots=True)
class Submitter:
    """Puts queries on their model's queue, or refuses them without a trace."""

    profiler: Profiler
    queue: Queue
    backlogs: Backlogs
    clock: Clock
    queue_limit: int
    """Queries of one model that may wait or run at once."""
    new_id: Callable[[], str] = new_query_id

    async def submit(
        self, parent: ModelName, query_id: str, query: Query, trace_parent: str = "", *, allow_prior: bool = False
    ) -> Submitted:
        """Submit a query that passed `check_query`; `query_id` may be empty.

        With `allow_prior` the prior answers for an overloaded predictor.

        Raises:
            RefusedError: MODEL_NOT_DEPLOYED, PROMPT_TOO_LONG, QUEUE_FULL, PREDICTOR_OVERLOADED, or DEADLINE_INFEASIBLE
                where the policy in force refuses what it can't keep.
            AlreadyExistsError: another query has this id.
            InvalidArgumentError: the query asks for what its model does not have.
            UnavailableError: the model's tokenizer can't be read.
        """
        name = str(parent.query(query_id or self.new_id()))
        digest = body_hash(query)
        try:
            (profiled,) = await self.profiler.profile(parent.model, [query], ["query"], allow_prior=allow_prior)
            queue = self._queue_for(name, parent.model)
            await self._check_deadlines(queue, profiled)
        except UellmError:
            # What was accepted stays accepted, even if the same would be refused now.
            known = await self._find(name, digest) if query_id else None
            if known is None:
                raise
            return Submitted(name, known)
        submission = _submission(name, queue, digest, profiled, trace_parent)
        answer = await self.queue.submit(submission, self.queue_limit)
        if isinstance(answer, Full):
            raise await self._queue_full(queue, answer.depth)
        return Submitted(name, _accepted(name, answer))

    def _queue_for(self, name: str, model: str) -> str:
        ready = self.profiler.deployments.ready(model)
        if not ready:
            raise refusals.model_not_deployed(model, self.profiler.deployments.of_model(model))
        return queue_for(name, ready)

    async def _check_deadlines(self, queue: str, profiled: ProfiledPrompt) -> None:
        slo = profiled.query.slo
        if not slo.HasField("completion") and not slo.HasField("first_token"):
            return
        backlog = await self.backlogs.read(queue)
        admission.check_deadlines(slo, profiled.profile, profiled.cost, backlog, self.clock.now_ms())

    async def _find(self, name: str, digest: str) -> Accepted | None:
        """The query of this name, if there is one; raises AlreadyExistsError if its body differs."""
        lookup = Submission(name, digest, QueryRecord(), ProfiledQuery())
        answer = await self.queue.submit(lookup, depth_limit=0)
        return None if isinstance(answer, Full) else _accepted(name, answer)

    async def _queue_full(self, queue: str, depth: int) -> UellmError:
        backlog = await self.backlogs.read(queue)
        seconds = refusals.retry_seconds(backlog, depth, self.queue_limit, self.clock.now_ms())
        return refusals.queue_full(ModelKeys.of(queue).model, depth, self.queue_limit, seconds)


def _accepted(name: str, answer: Accepted | Conflict) -> Accepted:
    if isinstance(answer, Conflict):
        message = f"query {name!r} exists with another body. Send the same body again, or take another query_id"
        raise AlreadyExistsError("query", name, message)
    return answer


def _submission(name: str, queue: str, digest: str, profiled: ProfiledPrompt, trace_parent: str) -> Submission:
    query = profiled.query
    query.name = name
    record = QueryRecord(
        schema_version=SCHEMA_VERSION, query=query, prompt_token_ids=TokenIds(ids=profiled.prompt.token_ids)
    )
    entry = ProfiledQuery(
        schema_version=SCHEMA_VERSION,
        trace_parent=trace_parent,
        name=name,
        profile=profiled.profile,
        slo=query.slo if query.HasField("slo") else None,
        priority=query.priority,
        adapter=query.adapter,
        prefix_hash=query.prefix_hash,
    )
    return Submission(name, digest, record, entry, queue)
