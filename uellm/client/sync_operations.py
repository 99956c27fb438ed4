"""What operators ask of the services, for threads."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping

import grpc

from uellm.client.deploying import CHANGE_SECONDS
from uellm.client.requests import (
    INSTALL_SECONDS,
    PLAN_SECONDS,
    Submitted,
    name_of,
)
from uellm.client.sync_connection import Connection
from uellm.rpc.status import from_rpc_error
from uellm.v1.deployer_pb2 import (
    Deployment,
    DeploymentSpec,
    FleetMember,
    GetTopologyRequest,
    GetTopologyResponse,
    ListDeploymentsRequest,
    PlanDeploymentRequest,
    PlanDeploymentResponse,
    PlanFleetRequest,
    PlanFleetResponse,
    SetTrafficRequest,
    SetTrafficResponse,
    Topology,
    WatchDeploymentRequest,
    WatchDeploymentResponse,
)
from uellm.v1.profiler_pb2 import (
    DescribePredictorRequest,
    DescribePredictorResponse,
    InstallPredictorRequest,
    InstallPredictorResponse,
    RollbackPredictorRequest,
    RollbackPredictorResponse,
)
from uellm.v1.scheduler_pb2 import (
    ExplainQueryRequest,
    ExplainQueryResponse,
    GetQueueRequest,
    GetQueueResponse,
    ListDeadLettersRequest,
    ListDeadLettersResponse,
    ListPoliciesRequest,
    ListPoliciesResponse,
    PolicyDescription,
    ReadDecisionsRequest,
    ReplayDeadLetterRequest,
    ReplayDeadLetterResponse,
    SetPolicyRequest,
    SetPolicyResponse,
)
from uellm.v1.stream_pb2 import DeadLetter, DecisionRecord


class Operations(Connection):
    """Queues, policies, decisions, dead letters, predictors, deployments."""

    def dead_letters(self, model: str = "") -> Iterator[DeadLetter]:
        """The queries of a model, default: the client's, that failed for good, oldest first. They hold prompts."""
        request = ListDeadLettersRequest(model=model or self._defaults.model)
        while True:
            page: ListDeadLettersResponse = self._call(self._scheduler.ListDeadLetters, request)
            yield from page.dead_letters
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def replay(self, query: str | Submitted) -> str:
        """Submit a query that failed for good again; returns the name of the new one. May be repeated.

        Raises NotFoundError if it has no dead letter (any more), RefusedError if the queue is full or the model not
        served.
        """
        request = ReplayDeadLetterRequest(name=name_of(query))
        response: ReplayDeadLetterResponse = self._call(self._scheduler.ReplayDeadLetter, request)
        return response.name

    def queue(self, model: str = "") -> GetQueueResponse:
        """What waits and runs for a model; default: the client's."""
        request = GetQueueRequest(model=model or self._defaults.model)
        response: GetQueueResponse = self._call(self._scheduler.GetQueue, request)
        return response

    def policies(self) -> list[PolicyDescription]:
        """The batching policies that the scheduler knows."""
        response: ListPoliciesResponse = self._call(self._scheduler.ListPolicies, ListPoliciesRequest())
        return list(response.policies)

    def set_policy(self, policy: str, model: str = "") -> str:
        """Have a model's queue, default: the client's, served by another policy; returns the name of the one before.

        It decides when this returns. Queries that wait or run are not touched. Raises InvalidArgumentError for a policy
        that there is not, NotFoundError.
        """
        request = SetPolicyRequest(model=model or self._defaults.model, policy=policy)
        response: SetPolicyResponse = self._call(self._scheduler.SetPolicy, request)
        return response.previous_policy

    def explain(self, query: str | Submitted) -> ExplainQueryResponse:
        """Why a query was served when it was, or refused: in words, and the decisions that named it.

        Raises NotFoundError for a query that there is not (any more).
        """
        request = ExplainQueryRequest(name=name_of(query))
        response: ExplainQueryResponse = self._call(self._scheduler.ExplainQuery, request)
        return response

    def decisions(self, model: str = "", *, after: str = "", shard: int = 0) -> Iterator[tuple[str, DecisionRecord]]:
        """What policies saw and decided for a shard of a model's queue: (id, entry), oldest first.

        With `after` only what comes after that id. Raises InvalidArgumentError, NotFoundError, UnavailableError.
        """
        request = ReadDecisionsRequest(model=model or self._defaults.model, after_decision_id=after, shard=shard)
        call = self._scheduler.ReadDecisions(request)
        try:
            for response in call:
                yield response.decision_id, response.decision
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        finally:
            call.cancel()

    def describe_predictor(self, model: str = "") -> DescribePredictorResponse:
        """What predicts, and how well it has done lately for a model, default: for all."""
        response: DescribePredictorResponse = self._call(
            self._profiler.DescribePredictor, DescribePredictorRequest(model=model)
        )
        return response

    def install_predictor(self, folder: str, *, validate_only: bool = False) -> InstallPredictorResponse:
        """Switch the profilers to the adapter in a folder, or only check it; the path is absolute, and theirs.

        Raises InvalidArgumentError if it can't be used.
        """
        request = InstallPredictorRequest(path=folder, validate_only=validate_only)
        response: InstallPredictorResponse = self._call(
            self._profiler.InstallPredictor, request, seconds=INSTALL_SECONDS
        )
        return response

    def rollback_predictor(self) -> RollbackPredictorResponse:
        """Return to the predictor before the last installation; raises FailedPreconditionError if there is none."""
        response: RollbackPredictorResponse = self._call(
            self._profiler.RollbackPredictor, RollbackPredictorRequest(), seconds=INSTALL_SECONDS
        )
        return response

    def plan(self, spec: DeploymentSpec, topology: Topology | None = None) -> PlanDeploymentResponse:
        """Where the deployer would place a model, on its machine or on another one. Nothing changes.

        Raises InvalidArgumentError, and ResourceExhaustedError with the numbers where it does not fit.
        """
        request = PlanDeploymentRequest(spec=spec, topology=topology)
        response: PlanDeploymentResponse = self._call(self._deployer.PlanDeployment, request)
        return response

    def plan_fleet(self, members: Iterable[FleetMember], topology: Topology | None = None) -> PlanFleetResponse:
        """Where the deployer would place several models at once: a plan for each copy, in order. Nothing changes.

        Raises InvalidArgumentError, and ResourceExhaustedError with what lacks where they do not fit together.
        """
        request = PlanFleetRequest(members=members, topology=topology)
        response: PlanFleetResponse = self._call(self._deployer.PlanFleet, request, seconds=PLAN_SECONDS)
        return response

    def set_traffic(self, shares: Mapping[str, float], model: str = "") -> list[Deployment]:
        """Divide a model's traffic, default: the client's, between its deployments, by resource name; sums to 1.

        Waits for operations that run. Returns them as they are now. Raises NotFoundError, InvalidArgumentError.
        """
        request = SetTrafficRequest(model=model or self._defaults.model, shares=shares)
        response: SetTrafficResponse = self._call(self._deployer.SetTraffic, request, seconds=CHANGE_SECONDS)
        return list(response.deployments)

    def topology(self) -> Topology:
        """The deployer's devices, how they are linked, and what memory of theirs is free now."""
        response: GetTopologyResponse = self._call(self._deployer.GetTopology, GetTopologyRequest())
        return response.topology

    def watch_deployment(self, name: str) -> Generator[WatchDeploymentResponse, None, None]:
        """A deployment, by resource name: where it stands and what would be better, now and after every change.

        Ends when it is gone. Raises NotFoundError, UnavailableError if the deployer goes away.
        """
        call = self._deployer.WatchDeployment(WatchDeploymentRequest(name=name))
        try:
            yield from call
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        finally:
            call.cancel()

    def deployments(self) -> list[Deployment]:
        """What is deployed, by name."""
        found: list[Deployment] = []
        request = ListDeploymentsRequest()
        while True:
            page = self._call(self._deployer.ListDeployments, request)
            found.extend(page.deployments)
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token
