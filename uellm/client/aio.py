"""The client for asyncio."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable
from typing import Unpack

import grpc

from uellm.client.aio_connection import is_cancelled
from uellm.client.aio_deployments import AsyncDeployments
from uellm.client.aio_operations import AsyncOperations
from uellm.client.following import Ended, Event, Following, FollowingTenant, Patience
from uellm.client.requests import (
    Prompt,
    QueryOptions,
    Submitted,
    name_of,
    parent_of,
    profile_request,
    submit_request,
    submitted,
)
from uellm.client.submitting import WINDOW, Answered, AsyncFeed, Outbox, Wanted
from uellm.rpc.errors import UellmError, UnavailableError
from uellm.rpc.status import from_rpc_error
from uellm.v1.query_pb2 import Outcome, QueryState, ResourceProfile
from uellm.v1.scheduler_pb2 import (
    CancelQueryRequest,
    GetQueryRequest,
    ListQueriesRequest,
    ListQueriesResponse,
    QueryStatus,
)


class AsyncClient(AsyncOperations, AsyncDeployments):
    """Talks to the three services from one event loop. Use it as a context manager, or `close` it."""

    async def profile(self, prompt: Prompt, **options: Unpack[QueryOptions]) -> ResourceProfile:
        """What a query would cost. Nothing is submitted."""
        request = profile_request(prompt, options, self._defaults)
        profile: ResourceProfile = (await self._call(self._profiler.Profile, request)).profile
        return profile

    async def submit(self, prompt: Prompt, **options: Unpack[QueryOptions]) -> Submitted:
        """Submit a query; returns when it is accepted. A lost connection does not submit it twice.

        Raises:
            RefusedError: it is not accepted; `refusal` has the reason and its numbers.
            InvalidArgumentError: something about it is wrong; `violations` name the fields.
            AlreadyExistsError: another query has its id.
            UnavailableError: the profiler does not answer.
        """
        request = submit_request(prompt, options, self._defaults)
        patience = Patience(self._submit_seconds)
        while True:
            try:
                return submitted(await self._call(self._profiler.Submit, request))
            except UellmError as error:
                await asyncio.sleep(patience.pause_after(error))

    async def submit_many(self, queries: Iterable[Wanted] | AsyncIterable[Wanted]) -> AsyncGenerator[Answered, None]:
        """Submit many queries over one stream; yields how each went, as it is decided, not in order.

        At most 256 are without an answer; more are not drawn from `queries`. Goes on after a lost connection,
        without submitting anything twice. What `queries` raises is raised after the answers to what was drawn.

        Raises UnavailableError if the profiler does not answer for so long; what had no answer may have been accepted.
        """
        outbox = Outbox(self._defaults, WINDOW)
        feed, patience = AsyncFeed(queries, outbox), Patience(self._submit_seconds)
        try:
            while not outbox.finished:
                call = self._profiler.SubmitStream(feed.requests())
                lost: UellmError = UnavailableError("the profiler ended the stream")
                try:
                    async for response in call:
                        patience.renew()
                        answered = feed.take(response)
                        if answered is not None:
                            yield answered
                except grpc.RpcError as error:
                    lost = _lost_while_sending(from_rpc_error(error))
                except asyncio.CancelledError:
                    if is_cancelled():
                        raise
                finally:
                    call.cancel()
                if not outbox.finished:
                    await asyncio.sleep(patience.pause_after(lost))
        finally:
            await feed.close()
        if outbox.error is not None:
            raise outbox.error

    async def stream(self, query: str | Submitted) -> AsyncIterator[Event]:
        """The events of a query from its beginning; the last one is its outcome.

        Goes on where it was after a lost connection. Raises NotFoundError for a query that there is not (any more),
        UnavailableError if the scheduler cannot be reached again.
        """
        following = Following(name_of(query), Patience(self._reconnect_seconds))
        while True:
            call = self._scheduler.Watch(following.request())
            lost: UellmError | None = None
            try:
                async for response in call:
                    yield following.take(response)
            except grpc.RpcError as error:
                lost = from_rpc_error(error)
            except asyncio.CancelledError:
                if is_cancelled():
                    raise
                lost = UnavailableError("the scheduler ended the stream")
            finally:
                call.cancel()
            if following.finished:
                return
            await asyncio.sleep(following.pause_after(lost))

    async def generate(self, prompt: Prompt, **options: Unpack[QueryOptions]) -> Outcome:
        """Submit a query and wait for its outcome. A cancelled task or another exception meanwhile cancels it."""
        query = await self.submit(prompt, **options)
        try:
            return await self.outcome(query)
        except BaseException:
            await self._cancel_quietly(query)
            raise

    async def outcome(self, query: str | Submitted) -> Outcome:
        """Wait for the outcome of a query."""
        last = [event async for event in self.stream(query)][-1]
        assert isinstance(last, Outcome)
        return last

    async def get(self, query: str | Submitted) -> QueryStatus:
        """Where a query stands, with its outcome if it has one."""
        status: QueryStatus = (await self._call(self._scheduler.GetQuery, GetQueryRequest(name=name_of(query)))).status
        return status

    async def cancel(self, query: str | Submitted) -> QueryState:
        """Ask for the end of a query; returns where it stood. Its outcome follows, unless it has one already."""
        state: QueryState = (
            await self._call(self._scheduler.CancelQuery, CancelQueryRequest(name=name_of(query)))
        ).state
        return state

    async def queries(self, *, model: str = "", tenant: str = "") -> AsyncIterator[QueryStatus]:
        """A tenant's queries of one model, oldest first: those that wait or run, and those that ended lately."""
        request = ListQueriesRequest(parent=parent_of(model, tenant, self._defaults))
        while True:
            page: ListQueriesResponse = await self._call(self._scheduler.ListQueries, request)
            for status in page.queries:
                yield status
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def outcomes(self, *, model: str = "", tenant: str = "", cursor: str = "") -> AsyncIterator[Ended]:
        """The outcomes of all queries of a tenant and model that end from now on, or after a cursor; does not end.

        Goes on where it was after a lost connection. Raises OutOfRangeError if outcomes after the cursor are not kept
        any more, UnavailableError if the scheduler cannot be reached again.
        """
        parent = parent_of(model, tenant, self._defaults)
        following = FollowingTenant(parent, cursor, Patience(self._reconnect_seconds))
        while True:
            call = self._scheduler.Watch(following.request())
            lost: UellmError | None = None
            try:
                async for response in call:
                    ended = following.take(response)
                    if ended is not None:
                        yield ended
            except grpc.RpcError as error:
                lost = from_rpc_error(error)
            except asyncio.CancelledError:
                if is_cancelled():
                    raise
            finally:
                call.cancel()
            await asyncio.sleep(following.pause_after(lost))

    async def _cancel_quietly(self, query: Submitted) -> None:
        with contextlib.suppress(UellmError):  # what is being raised says more
            await self.cancel(query)


def _lost_while_sending(error: UellmError) -> UellmError:
    """grpc.aio replaces the status of a call that ends while it writes by one of its own; a service's has details."""
    if error.code == "INTERNAL" and error.message == "Internal error from Core":
        return UnavailableError("the connection was lost")
    return error
