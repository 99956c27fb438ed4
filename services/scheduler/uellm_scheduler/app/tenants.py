"""What a tenant asks about all of its queries of one model."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from uellm.messaging.connection import RedisClient
from uellm.messaging.events import EventHub, StoredEvent
from uellm.messaging.outcomes import OutcomesLostError, TenantQueries
from uellm.messaging.queries import QueryStore
from uellm.rpc.errors import OutOfRangeError
from uellm.rpc.names import ModelName
from uellm.rpc.paging import page_size, page_token, read_page_token
from uellm.v1.scheduler_pb2 import QueryStatus
from uellm.v1.stream_pb2 import QueryEvent

from .pages import page_of
from .queries import check_cursor, status_of


@dataclass(frozen=True, slots=True)
class Tenants:
    """Use cases of the servicer."""

    redis: RedisClient
    store: QueryStore
    hub: EventHub

    async def page(self, parent: str, size: int, token: str) -> tuple[list[QueryStatus], str]:
        """Queries of `tenants/{tenant}/models/{model}`, oldest first, and the token of the next page.

        Raises InvalidArgumentError.
        """
        queries = self._queries(parent)
        size, after = page_size(size), read_page_token(parent, token)
        async with aclosing(_statuses(queries, after)) as statuses:
            page, position = await page_of(statuses, size)
        return page, page_token(parent, position)

    async def watch(self, parent: str, cursor: str) -> AsyncGenerator[tuple[str, StoredEvent], None]:
        """Name and outcome of every query of `tenants/{tenant}/models/{model}` that ends after the cursor.

        First comes the parent's own name with the cursor from which on is watched, and an empty event. Does not end.

        Raises:
            InvalidArgumentError: parent or cursor is malformed.
            OutOfRangeError: what came after the cursor is not kept any more.
        """
        queries = self._queries(parent)
        check_cursor("cursor", cursor)
        start = cursor or await queries.now()
        yield parent, StoredEvent(start, QueryEvent())
        try:
            async with aclosing(queries.follow(self.hub, start)) as outcomes:
                async for name, stored in outcomes:
                    yield name, stored
        except OutcomesLostError:
            seconds, kept = self.store.retention_ms // 1000, self.store.outcomes_kept
            message = (
                f"outcomes are kept for {seconds:,} s, the last {kept:,} at most: some of those after this cursor are "
                f"gone. Watch from now on (without a cursor), then list the queries"
            )
            raise OutOfRangeError(message, reason="CURSOR_TOO_OLD") from None

    def _queries(self, parent: str) -> TenantQueries:
        name = ModelName.parse(parent)
        return TenantQueries(self.redis, self.store, name.tenant, name.model)


async def _statuses(queries: TenantQueries, after: str) -> AsyncGenerator[tuple[str, QueryStatus], None]:
    async for record in queries.read(after):
        yield record.entry_id, status_of(record)
