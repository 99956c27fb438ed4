"""The gRPC servicer: decodes, calls one use case, encodes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from uellm.rpc.errors import FieldViolation, InvalidArgumentError
from uellm.v1 import scheduler_pb2 as pb
from uellm.v1.scheduler_pb2_grpc import SchedulerServiceServicer

from .app.decisions import Decisions
from .app.letters import Letters
from .app.policy_choice import PolicyChoice
from .app.queries import Queries
from .app.tenants import Tenants
from .policies import POLICIES


class SchedulerServicer(SchedulerServiceServicer):
    """`uellm.v1.SchedulerService`."""

    def __init__(
        self, queries: Queries, choice: PolicyChoice, tenants: Tenants, letters: Letters, decisions: Decisions
    ) -> None:
        self._queries = queries
        self._choice = choice
        self._tenants = tenants
        self._letters = letters
        self._decisions = decisions

    async def Watch(self, request: pb.WatchRequest, context: Any) -> AsyncIterator[pb.WatchResponse]:
        """Stream events of the named queries until their outcomes, or outcomes of a tenant's queries."""
        if request.targets and (request.parent or request.cursor):
            raise InvalidArgumentError([FieldViolation("targets", "must be empty where parent or cursor is set")])
        if request.parent or request.cursor:
            events = self._tenants.watch(request.parent, request.cursor)
        else:
            events = self._queries.watch([(target.name, target.cursor) for target in request.targets])
        async with aclosing(events):
            async for name, stored in events:
                event = stored.event if stored.event.WhichOneof("event") else None
                yield pb.WatchResponse(name=name, cursor=stored.cursor, event=event)

    async def GetQuery(self, request: pb.GetQueryRequest, context: Any) -> pb.GetQueryResponse:
        """Say where a query stands."""
        return pb.GetQueryResponse(status=await self._queries.status(request.name))

    async def CancelQuery(self, request: pb.CancelQueryRequest, context: Any) -> pb.CancelQueryResponse:
        """End a query that waits or runs."""
        return pb.CancelQueryResponse(state=await self._queries.cancel(request.name))

    async def GetQueue(self, request: pb.GetQueueRequest, context: Any) -> pb.GetQueueResponse:
        """Say what waits and runs for a model."""
        return await self._queries.queue(request.model)

    async def ListPolicies(self, request: pb.ListPoliciesRequest, context: Any) -> pb.ListPoliciesResponse:
        """List the policies."""
        infos = [policy.info for policy in POLICIES.values()]
        policies = [pb.PolicyDescription(name=info.name, description=info.description) for info in infos]
        return pb.ListPoliciesResponse(policies=policies)

    async def ListQueries(self, request: pb.ListQueriesRequest, context: Any) -> pb.ListQueriesResponse:
        """List a tenant's queries of one model."""
        page, token = await self._tenants.page(request.parent, request.page_size, request.page_token)
        return pb.ListQueriesResponse(queries=page, next_page_token=token)

    async def ExplainQuery(self, request: pb.ExplainQueryRequest, context: Any) -> pb.ExplainQueryResponse:
        """Say why a query was served when it was, or refused."""
        return await self._decisions.explain(request.name)

    async def ReadDecisions(
        self, request: pb.ReadDecisionsRequest, context: Any
    ) -> AsyncIterator[pb.ReadDecisionsResponse]:
        """Stream the flight recorder of a model."""
        async for stored in self._decisions.read(request.model, request.shard, request.after_decision_id):
            yield pb.ReadDecisionsResponse(decision_id=stored.decision_id, decision=stored.record)

    async def ListDeadLetters(self, request: pb.ListDeadLettersRequest, context: Any) -> pb.ListDeadLettersResponse:
        """List the queries of a model that failed for good."""
        page, token = await self._letters.page(request.model, request.page_size, request.page_token)
        return pb.ListDeadLettersResponse(dead_letters=page, next_page_token=token)

    async def ReplayDeadLetter(self, request: pb.ReplayDeadLetterRequest, context: Any) -> pb.ReplayDeadLetterResponse:
        """Submit a query that failed for good again."""
        return pb.ReplayDeadLetterResponse(name=await self._letters.replay(request.name))

    async def SetPolicy(self, request: pb.SetPolicyRequest, context: Any) -> pb.SetPolicyResponse:
        """Have a model's queue served by another policy."""
        return pb.SetPolicyResponse(previous_policy=await self._choice.choose(request.model, request.policy))
