"""The client for asyncio."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable
from types import TracebackType
from typing import Any, Self, Unpack

import grpc

from uellm.client.endpoints import DEFAULT_MODEL, DEFAULT_TENANT, Endpoints, client_channel_options
from uellm.client.following import Ended, Event, Following, FollowingTenant, Patience
from uellm.client.requests import (
    INSTALL_SECONDS,
    Defaults,
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
from uellm.rpc.channel import ClientTls
from uellm.rpc.errors import UellmError, UnavailableError
from uellm.rpc.status import from_rpc_error
from uellm.v1.deployer_pb2 import (
    Deployment,
    GetTopologyRequest,
    GetTopologyResponse,
    ListDeploymentsRequest,
    Topology,
)
from uellm.v1.deployer_pb2_grpc import DeployerServiceStub
from uellm.v1.profiler_pb2 import (
    DescribePredictorRequest,
    DescribePredictorResponse,
    InstallPredictorRequest,
    InstallPredictorResponse,
    RollbackPredictorRequest,
    RollbackPredictorResponse,
)
from uellm.v1.profiler_pb2_grpc import ProfilerServiceStub
from uellm.v1.query_pb2 import Outcome, QueryState, ResourceProfile
from uellm.v1.scheduler_pb2 import (
    CancelQueryRequest,
    ExplainQueryRequest,
    ExplainQueryResponse,
    GetQueryRequest,
    GetQueueRequest,
    GetQueueResponse,
    ListDeadLettersRequest,
    ListDeadLettersResponse,
    ListPoliciesRequest,
    ListPoliciesResponse,
    ListQueriesRequest,
    ListQueriesResponse,
    PolicyDescription,
    QueryStatus,
    ReadDecisionsRequest,
    ReplayDeadLetterRequest,
    ReplayDeadLetterResponse,
    SetPolicyRequest,
    SetPolicyResponse,
)
from uellm.v1.scheduler_pb2_grpc import SchedulerServiceStub
from uellm.v1.stream_pb2 import DeadLetter, DecisionRecord


class AsyncClient:
    """Talks to the three services from one event loop. Use it as a context manager, or `close` it."""

    def __init__(
        self,
        endpoints: Endpoints | None = None,
        *,
        model: str = DEFAULT_MODEL,
        tenant: str = DEFAULT_TENANT,
        tls: ClientTls | None = None,
        timeout_seconds: float = 30.0,
        submit_seconds: float = 5.0,
        reconnect_seconds: float = 60.0,
    ) -> None:
        """Nothing is connected yet.

        Args:
            endpoints: where the services answer; default: `Endpoints.from_environment()`.
            model: logical model of queries that name none.
            tenant: tenant of queries that name none.
            tls: None for plain text.
            timeout_seconds: of one call that does not stream.
            submit_seconds: how long `submit` tries to reach the profiler.
            reconnect_seconds: how long `stream` tries to reach the scheduler again after a lost connection.
        """
        where = endpoints or Endpoints.from_environment()
        self._channels = [_channel(target, tls) for target in (where.profiler, where.scheduler, where.deployer)]
        self._profiler = ProfilerServiceStub(self._channels[0])  # type: ignore[no-untyped-call]
        self._scheduler = SchedulerServiceStub(self._channels[1])  # type: ignore[no-untyped-call]
        self._deployer = DeployerServiceStub(self._channels[2])  # type: ignore[no-untyped-call]
        self._defaults = Defaults(model, tenant)
        self._timeout_seconds = timeout_seconds
        self._submit_seconds = submit_seconds
        self._reconnect_seconds = reconnect_seconds

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; streams end."""
        for channel in self._channels:
            await channel.close(None)

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
                    if _is_cancelled():
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
                if _is_cancelled():
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
                if _is_cancelled():
                    raise
            finally:
                call.cancel()
            await asyncio.sleep(following.pause_after(lost))

    async def dead_letters(self, model: str = "") -> AsyncIterator[DeadLetter]:
        """The queries of a model, default: the client's, that failed for good, oldest first. They hold prompts."""
        request = ListDeadLettersRequest(model=model or self._defaults.model)
        while True:
            page: ListDeadLettersResponse = await self._call(self._scheduler.ListDeadLetters, request)
            for letter in page.dead_letters:
                yield letter
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def replay(self, query: str | Submitted) -> str:
        """Submit a query that failed for good again; returns the name of the new one. May be repeated.

        Raises NotFoundError if it has no dead letter (any more), RefusedError if the queue is full or the model not
        served.
        """
        request = ReplayDeadLetterRequest(name=name_of(query))
        response: ReplayDeadLetterResponse = await self._call(self._scheduler.ReplayDeadLetter, request)
        return response.name

    async def queue(self, model: str = "") -> GetQueueResponse:
        """What waits and runs for a model; default: the client's."""
        request = GetQueueRequest(model=model or self._defaults.model)
        response: GetQueueResponse = await self._call(self._scheduler.GetQueue, request)
        return response

    async def policies(self) -> list[PolicyDescription]:
        """The batching policies that the scheduler knows."""
        response: ListPoliciesResponse = await self._call(self._scheduler.ListPolicies, ListPoliciesRequest())
        return list(response.policies)

    async def set_policy(self, policy: str, model: str = "") -> str:
        """Have a model's queue, default: the client's, served by another policy; returns the name of the one before.

        It decides when this returns. Queries that wait or run are not touched. Raises InvalidArgumentError for a policy
        that there is not, NotFoundError.
        """
        request = SetPolicyRequest(model=model or self._defaults.model, policy=policy)
        response: SetPolicyResponse = await self._call(self._scheduler.SetPolicy, request)
        return response.previous_policy

    async def explain(self, query: str | Submitted) -> ExplainQueryResponse:
        """Why a query was served when it was, or refused: in words, and the decisions that named it.

        Raises NotFoundError for a query that there is not (any more).
        """
        request = ExplainQueryRequest(name=name_of(query))
        response: ExplainQueryResponse = await self._call(self._scheduler.ExplainQuery, request)
        return response

    async def decisions(self, model: str = "", *, after: str = "") -> AsyncIterator[tuple[str, DecisionRecord]]:
        """What policies saw and decided for a model, default: the client's: (id, entry), oldest first.

        With `after` only what comes after that id. Raises InvalidArgumentError, NotFoundError, UnavailableError.
        """
        request = ReadDecisionsRequest(model=model or self._defaults.model, after_decision_id=after)
        call = self._scheduler.ReadDecisions(request)
        try:
            async for response in call:
                yield response.decision_id, response.decision
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        except asyncio.CancelledError:
            if _is_cancelled():
                raise
            raise UnavailableError("the scheduler ended the stream") from None
        finally:
            call.cancel()

    async def describe_predictor(self, model: str = "") -> DescribePredictorResponse:
        """What predicts, and how well it has done lately for a model, default: for all."""
        response: DescribePredictorResponse = await self._call(
            self._profiler.DescribePredictor, DescribePredictorRequest(model=model)
        )
        return response

    async def install_predictor(self, folder: str, *, validate_only: bool = False) -> InstallPredictorResponse:
        """Switch the profilers to the adapter in a folder, or only check it; the path is absolute, and theirs.

        Raises InvalidArgumentError if it can't be used.
        """
        request = InstallPredictorRequest(path=folder, validate_only=validate_only)
        response: InstallPredictorResponse = await self._call(
            self._profiler.InstallPredictor, request, seconds=INSTALL_SECONDS
        )
        return response

    async def rollback_predictor(self) -> RollbackPredictorResponse:
        """Return to the predictor before the last installation; raises FailedPreconditionError if there is none."""
        response: RollbackPredictorResponse = await self._call(
            self._profiler.RollbackPredictor, RollbackPredictorRequest(), seconds=INSTALL_SECONDS
        )
        return response

    async def deployments(self) -> list[Deployment]:
        """What is deployed, by name."""
        found: list[Deployment] = []
        request = ListDeploymentsRequest()
        while True:
            page = await self._call(self._deployer.ListDeployments, request)
            found.extend(page.deployments)
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token

    async def topology(self) -> Topology:
        """The deployer's devices, how they are linked, and what memory of theirs is free now."""
        response: GetTopologyResponse = await self._call(self._deployer.GetTopology, GetTopologyRequest())
        return response.topology

    async def _call(self, method: Any, request: Any, *, seconds: float = 0.0) -> Any:
        try:
            return await method(request, timeout=seconds or self._timeout_seconds)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error

    async def _cancel_quietly(self, query: Submitted) -> None:
        with contextlib.suppress(UellmError):  # what is being raised says more
            await self.cancel(query)


def _is_cancelled() -> bool:
    """Whether it is this task that is cancelled: grpc.aio raises the same when a server ends a call."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _lost_while_sending(error: UellmError) -> UellmError:
    """grpc.aio replaces the status of a call that ends while it writes by one of its own; a service's has details."""
    if error.code == "INTERNAL" and error.message == "Internal error from Core":
        return UnavailableError("the connection was lost")
    return error


def _channel(target: str, tls: ClientTls | None) -> grpc.aio.Channel:
    if tls is None:
        return grpc.aio.insecure_channel(target, options=client_channel_options())
    return grpc.aio.secure_channel(target, tls.credentials(), options=client_channel_options())
