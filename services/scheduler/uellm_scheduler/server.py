"""The gRPC servicer: decodes, calls one use case, encodes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from uellm.rpc.status import unimplemented
from uellm.v1 import scheduler_pb2 as pb
from uellm.v1.scheduler_pb2_grpc import SchedulerServiceServicer

from .app.decisions import Decisions
from .app.policy_choice import PolicyChoice
from .app.queries import Queries
from .policies import POLICIES


class SchedulerServicer(SchedulerServiceServicer):
    """`uellm.v1.SchedulerService`."""

    def __init__(self, queries: Queries, choice: PolicyChoice, decisions: Decisions) -> None:
        self._queries = queries
        self._choice = choice
        self._decisions = decisions

    async def Watch(self, request: pb.WatchRequest, context: Any) -> AsyncIterator[pb.WatchResponse]:
        """Stream events of the named queries until their outcomes."""
        if request.parent:
            raise unimplemented("watching all queries of a tenant")
        async for name, stored in self._queries.watch([(target.name, target.cursor) for target in request.targets]):
            yield pb.WatchResponse(name=name, cursor=stored.cursor, event=stored.event)

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
        """Not in this version."""
        raise unimplemented("listing queries")

    async def ExplainQuery(self, request: pb.ExplainQueryRequest, context: Any) -> pb.ExplainQueryResponse:
        """Say why a query was served when it was, or refused."""
        return await self._decisions.explain(request.name)

    async def ReadDecisions(
        self, request: pb.ReadDecisionsRequest, context: Any
    ) -> AsyncIterator[pb.ReadDecisionsResponse]:
        """Stream the flight recorder of a model."""
        async for stored in self._decisions.read(request.model, request.after_decision_id):
            yield pb.ReadDecisionsResponse(decision_id=stored.decision_id, decision=stored.record)

    async def ListDeadLetters(self, request: pb.ListDeadLettersRequest, context: Any) -> pb.ListDeadLettersResponse:
        """Not in this version."""
        raise unimplemented("dead letters")

    async def ReplayDeadLetter(self, request: pb.ReplayDeadLetterRequest, context: Any) -> pb.ReplayDeadLetterResponse:
        """Not in this version."""
        raise unimplemented("dead letters")

    async def SetPolicy(self, request: pb.SetPolicyRequest, context: Any) -> pb.SetPolicyResponse:
        """Have a model's queue served by another policy."""
        return pb.SetPolicyResponse(previous_policy=await self._choice.choose(request.model, request.policy))
