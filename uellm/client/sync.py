"""The client for threads."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from typing import Unpack

import grpc

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
from uellm.client.submitting import WINDOW, Answered, Feed, Outbox, Wanted
from uellm.client.sync_deployments import Deployments
from uellm.client.sync_operations import Operations
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


class Client(Operations, Deployments):
    """Talks to the three services; may be shared between threads. Use it as a context manager, or `close` it."""

    def profile(self, prompt: Prompt, **options: Unpack[QueryOptions]) -> ResourceProfile:
        """What a query would cost. Nothing is submitted."""
        request = profile_request(prompt, options, self._defaults)
        profile: ResourceProfile = self._call(self._profiler.Profile, request).profile
        return profile

    def submit(self, prompt: Prompt, **options: Unpack[QueryOptions]) -> Submitted:
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
                return submitted(self._call(self._profiler.Submit, request))
            except UellmError as error:
                time.sleep(patience.pause_after(error))

    def submit_many(self, queries: Iterable[Wanted]) -> Iterator[Answered]:
        """Submit many queries over one stream; yields how each went, as it is decided, not in order.

        At most 256 are without an answer; more are not drawn from `queries`. Goes on after a lost connection,
        without submitting anything twice. What `queries` raises is raised after the answers to what was drawn.

        Raises UnavailableError if the profiler does not answer for so long; what had no answer may have been accepted.
        """
        outbox = Outbox(self._defaults, WINDOW)
        feed, patience = Feed(queries, outbox), Patience(self._submit_seconds)
        try:
            while not feed.finished:
                call = self._profiler.SubmitStream(feed.requests())
                lost: UellmError = UnavailableError("the profiler ended the stream")
                try:
                    for response in call:
                        patience.renew()
                        answered = feed.take(response)
                        if answered is not None:
                            yield answered
                except grpc.RpcError as error:
                    lost = from_rpc_error(error)
                finally:
                    call.cancel()
                if not feed.finished:
                    time.sleep(patience.pause_after(lost))
        finally:
            feed.close()
        if outbox.error is not None:
            raise outbox.error

    def stream(self, query: str | Submitted) -> Iterator[Event]:
        """The events of a query from its beginning; the last one is its outcome.

        Goes on where it was after a lost connection. Raises NotFoundError for a query that there is not (any more),
        UnavailableError if the scheduler cannot be reached again.
        """
        following = Following(name_of(query), Patience(self._reconnect_seconds))
        while True:
            call = self._scheduler.Watch(following.request())
            lost: UellmError | None = None
            try:
                for response in call:
                    yield following.take(response)
            except grpc.RpcError as error:
                lost = from_rpc_error(error)
            finally:
                call.cancel()
            if following.finished:
                return
            time.sleep(following.pause_after(lost))

    def generate(self, prompt: Prompt, **options: Unpack[QueryOptions]) -> Outcome:
        """Submit a query and wait for its outcome. An interrupt or another exception meanwhile cancels it."""
        query = self.submit(prompt, **options)
        try:
            return self.outcome(query)
        except BaseException:
            self._cancel_quietly(query)
            raise

    def outcome(self, query: str | Submitted) -> Outcome:
        """Wait for the outcome of a query."""
        *_, last = self.stream(query)
        assert isinstance(last, Outcome)
        return last

    def get(self, query: str | Submitted) -> QueryStatus:
        """Where a query stands, with its outcome if it has one."""
        status: QueryStatus = self._call(self._scheduler.GetQuery, GetQueryRequest(name=name_of(query))).status
        return status

    def cancel(self, query: str | Submitted) -> QueryState:
        """Ask for the end of a query; returns where it stood. Its outcome follows, unless it has one already."""
        state: QueryState = self._call(self._scheduler.CancelQuery, CancelQueryRequest(name=name_of(query))).state
        return state

    def queries(self, *, model: str = "", tenant: str = "") -> Iterator[QueryStatus]:
        """A tenant's queries of one model, oldest first: those that wait or run, and those that ended lately."""
        request = ListQueriesRequest(parent=parent_of(model, tenant, self._defaults))
        while True:
            page: ListQueriesResponse = self._call(self._scheduler.ListQueries, request)
            yield from page.queries
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def outcomes(self, *, model: str = "", tenant: str = "", cursor: str = "") -> Iterator[Ended]:
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
                for response in call:
                    ended = following.take(response)
                    if ended is not None:
                        yield ended
            except grpc.RpcError as error:
                lost = from_rpc_error(error)
            finally:
                call.cancel()
            time.sleep(following.pause_after(lost))

    def _cancel_quietly(self, query: Submitted) -> None:
        with contextlib.suppress(UellmError):  # what is being raised says more
            self.cancel(query)
