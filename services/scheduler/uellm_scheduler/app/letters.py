"""What clients do with queries that failed for good: list them, submit them again."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from uellm.messaging.clock import Clock
from uellm.messaging.connection import RedisClient
from uellm.messaging.deployments import DeploymentDirectory, queue_for
from uellm.messaging.keys import MODELS, ModelKeys
from uellm.messaging.letters import DeadLetters, StoredLetter
from uellm.messaging.queries import Accepted, Full, QueryStore, Submission
from uellm.rpc.errors import AlreadyExistsError, NotFoundError, RefusedError
from uellm.rpc.names import QueryName
from uellm.rpc.paging import page_size, page_token, read_page_token
from uellm.rpc.refusals import model_not_deployed, queue_full, retry_seconds
from uellm.rpc.violations import Violations
from uellm.v1.query_pb2 import Query
from uellm.v1.stream_pb2 import Backlog, DeadLetter, DeploymentRecord, ProfiledQuery, QueryRecord

from ..domain.replays import replay_ids
from .pages import page_of


@dataclass(frozen=True, slots=True)
class Letters:
    """Use cases of the servicer."""

    redis: RedisClient
    store: QueryStore
    clock: Clock
    directory: DeploymentDirectory
    queue_limit: int
    """Queries of one model that may wait or run at once."""

    async def page(self, model: str, size: int, token: str) -> tuple[list[DeadLetter], str]:
        """Letters of a model, oldest first, and the token of the next page.

        Raises InvalidArgumentError, NotFoundError for a model that was never deployed.
        """
        violations = Violations()
        violations.model_identifier("model", model)
        violations.raise_if_any()
        size, after = page_size(size), read_page_token(f"dead-letters/{model}", token)
        if not await self.redis.sismember(MODELS, model):
            raise NotFoundError("model", model, f"model {model!r} was never deployed", reason="MODEL_NOT_DEPLOYED")
        async with aclosing(self._after(model, after)) as letters:
            page, position = await page_of(letters, size)
        return page, page_token(f"dead-letters/{model}", position)

    async def replay(self, name: str) -> str:
        """Submit a query that failed again, its deadline counted anew; returns the new query's name.

        Asked again, it finds the query that the first call submitted, for as long as that one can be read.

        Raises:
            InvalidArgumentError: the name is none.
            NotFoundError: there is no such dead letter, and no query that came from it.
            RefusedError: MODEL_NOT_DEPLOYED or QUEUE_FULL. The letter stays.
        """
        failed = QueryName.parse(name)
        letters = DeadLetters(self.redis)
        stored = await letters.find(failed.model, name)
        if stored is None:
            return await self._replayed(failed)
        ready = self.directory.ready(failed.model)
        if not ready:
            raise model_not_deployed(failed.model, self.directory.of_model(failed.model))
        new = await self._submit(failed, stored, ready)
        await letters.remove(failed.model, stored.entry_id)
        return new

    async def _submit(self, failed: QueryName, stored: StoredLetter, ready: Sequence[DeploymentRecord]) -> str:
        for query_id in replay_ids(failed.query):
            name = str(failed.parent.query(query_id))
            queue = queue_for(name, ready)
            answer = await self.store.submit(_submission(name, queue, failed, stored), self.queue_limit)
            if isinstance(answer, Accepted):
                return name
            if isinstance(answer, Full):
                raise await self._queue_full(queue, answer.depth)
        raise AlreadyExistsError("query", name, f"all ids for another try of {failed} are taken")

    async def _replayed(self, failed: QueryName) -> str:
        """The query that an earlier call made of a letter."""
        names = [str(failed.parent.query(query_id)) for query_id in replay_ids(failed.query)]
        for query in reversed(await self.store.read_many(names)):
            if query is not None and query.body_hash.startswith(_origin(failed)):
                return query.name
        raise NotFoundError("dead letter", str(failed), f"there is no dead letter of {failed}, or not any more")

    async def _queue_full(self, queue: str, depth: int) -> RefusedError:
        backlog = Backlog.FromString(await self.redis.get(ModelKeys.of(queue).backlog) or b"")
        seconds = retry_seconds(backlog, depth, self.queue_limit, self.clock.now_ms())
        return queue_full(ModelKeys.of(queue).model, depth, self.queue_limit, seconds)

    async def _after(self, model: str, after: str) -> AsyncGenerator[tuple[str, DeadLetter], None]:
        async for stored in DeadLetters(self.redis).read(model, after):
            yield stored.entry_id, stored.letter


def _submission(name: str, queue: str, failed: QueryName, stored: StoredLetter) -> Submission:
    record, entry = QueryRecord(), ProfiledQuery()
    record.CopyFrom(stored.letter.record)
    entry.CopyFrom(stored.letter.entry)
    record.query.MergeFrom(Query(name=name))
    entry.name = name
    return Submission(name, f"{_origin(failed)}{stored.entry_id}", record, entry, queue)


def _origin(failed: QueryName) -> str:
    """Stands in place of a body's hash, which has no colon: no client can submit the same."""
    return f"replay:{failed}:"
