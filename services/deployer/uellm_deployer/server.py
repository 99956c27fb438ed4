"""The servicer: decode, call one use case, encode."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from typing import Any

from google.longrunning.operations_pb2 import Operation as OperationMessage

from uellm.rpc.errors import FieldViolation, InvalidArgumentError
from uellm.rpc.names import DeploymentName
from uellm.v1 import deployer_pb2
from uellm.v1.deployer_pb2_grpc import DeployerServiceServicer
from uellm_deployer import decoding, encoding
from uellm_deployer.app.book import Book
from uellm_deployer.app.creation import CreateDeployment
from uellm_deployer.app.planning import Planning
from uellm_deployer.app.reconcile import Reconcile
from uellm_deployer.app.removal import DeleteDeployment
from uellm_deployer.app.rollback import RollbackDeployment
from uellm_deployer.app.traffic import SetTraffic
from uellm_deployer.domain.deployment import Operation

SERVICE: str = deployer_pb2.DESCRIPTOR.services_by_name["DeployerService"].full_name

_DEFAULT_PAGE, _MAX_PAGE = 50, 1000


class DeployerServicer(DeployerServiceServicer):
    """`uellm.v1.DeployerService`."""

    def __init__(
        self,
        book: Book,
        planning: Planning,
        create: CreateDeployment,
        delete: DeleteDeployment,
        traffic: SetTraffic,
        rollback: RollbackDeployment,
        reconcile: Reconcile,
        triton_endpoint: str,
    ) -> None:
        self._book = book
        self._planning = planning
        self._create = create
        self._delete = delete
        self._traffic = traffic
        self._rollback = rollback
        self._reconcile = reconcile
        self._endpoint = triton_endpoint

    async def GetTopology(
        self,
        request: deployer_pb2.GetTopologyRequest,
        context: Any,
    ) -> deployer_pb2.GetTopologyResponse:
        """The machine as it is now."""
        topology = await self._planning.topology()
        return deployer_pb2.GetTopologyResponse(topology=encoding.topology_message(topology))

    async def PlanDeployment(
        self,
        request: deployer_pb2.PlanDeploymentRequest,
        context: Any,
    ) -> deployer_pb2.PlanDeploymentResponse:
        """Plans; nothing changes."""
        machine = decoding.topology(request.topology) if request.HasField("topology") else None
        placed = await self._planning.plan(decoding.spec(request.spec), machine)
        return encoding.planned_message(placed, await self._planning.what_if(placed))

    async def PlanFleet(
        self,
        request: deployer_pb2.PlanFleetRequest,
        context: Any,
    ) -> deployer_pb2.PlanFleetResponse:
        """Plans several models at once; nothing changes."""
        wanted = decoding.fleet(request)
        machine = decoding.topology(request.topology) if request.HasField("topology") else None
        return encoding.fleet_message(await self._planning.plan_fleet(wanted, machine))

    async def CreateDeployment(
        self,
        request: deployer_pb2.CreateDeploymentRequest,
        context: Any,
    ) -> OperationMessage:
        """Begins a deployment."""
        creation = decoding.creation(request)
        identity = decoding.request(request, request.request_id)
        if request.validate_only:
            return encoding.validated_message(await self._create.validate(creation), self._endpoint)
        return self._operation(await self._create.create(creation, identity))

    async def GetDeployment(
        self,
        request: deployer_pb2.GetDeploymentRequest,
        context: Any,
    ) -> deployer_pb2.GetDeploymentResponse:
        """One deployment."""
        deployment = self._book.deployment(str(DeploymentName.parse(request.name)))
        return deployer_pb2.GetDeploymentResponse(deployment=encoding.deployment_message(deployment, self._endpoint))

    async def ListDeployments(
        self,
        request: deployer_pb2.ListDeploymentsRequest,
        context: Any,
    ) -> deployer_pb2.ListDeploymentsResponse:
        """The deployments, by name."""
        if request.page_size < 0:
            raise InvalidArgumentError([FieldViolation("page_size", "must not be negative")])
        size = min(request.page_size or _DEFAULT_PAGE, _MAX_PAGE)
        after = _read_token(request.page_token)
        names = sorted(name for name in self._book.deployments if name > after)
        page = names[:size]
        return deployer_pb2.ListDeploymentsResponse(
            deployments=[encoding.deployment_message(self._book.deployments[name], self._endpoint) for name in page],
            next_page_token=_token(page[-1]) if len(names) > size else "",
        )

    async def WatchDeployment(
        self,
        request: deployer_pb2.WatchDeploymentRequest,
        context: Any,
    ) -> AsyncIterator[deployer_pb2.WatchDeploymentResponse]:
        """A deployment now and after every change, until it is gone."""
        async for standing in self._book.watch(str(DeploymentName.parse(request.name))):
            response = deployer_pb2.WatchDeploymentResponse(
                deployment=encoding.deployment_message(standing.deployment, self._endpoint)
            )
            if standing.operation is not None:
                response.progress.CopyFrom(encoding.progress_message(standing.operation))
            if standing.recommendation is not None:
                response.recommendation.CopyFrom(encoding.recommendation_message(standing.recommendation))
            yield response

    async def SetTraffic(
        self,
        request: deployer_pb2.SetTrafficRequest,
        context: Any,
    ) -> deployer_pb2.SetTrafficResponse:
        """Divides a model's traffic."""
        changed = await self._traffic.set(*decoding.traffic(request))
        return deployer_pb2.SetTrafficResponse(
            deployments=[encoding.deployment_message(one, self._endpoint) for one in changed]
        )

    async def RollbackDeployment(
        self,
        request: deployer_pb2.RollbackDeploymentRequest,
        context: Any,
    ) -> OperationMessage:
        """Begins to return a model to the deployment before the last one."""
        identity = decoding.request(request, request.request_id)
        return self._operation(await self._rollback.roll_back(decoding.model(request.model), identity))

    async def DeleteDeployment(
        self,
        request: deployer_pb2.DeleteDeploymentRequest,
        context: Any,
    ) -> OperationMessage:
        """Begins to remove a deployment."""
        operation = await self._delete.delete(
            str(DeploymentName.parse(request.name)),
            request.etag,
            decoding.request(request, request.request_id),
            decoding.drain_timeout(request),
        )
        return self._operation(operation)

    async def Reconcile(
        self,
        request: deployer_pb2.ReconcileRequest,
        context: Any,
    ) -> deployer_pb2.ReconcileResponse:
        """Compares, and repairs."""
        drifts = await self._reconcile.run(repair=not request.validate_only, restart=request.restart_triton)
        return deployer_pb2.ReconcileResponse(drifts=[encoding.drift_message(one) for one in drifts])

    async def GetOperation(
        self,
        request: deployer_pb2.GetOperationRequest,
        context: Any,
    ) -> OperationMessage:
        """How far an operation is, or how it ended."""
        return self._operation(self._book.operation(request.name))

    def _operation(self, operation: Operation) -> OperationMessage:
        deployment = self._book.deployments.get(operation.deployment)
        return encoding.operation_message(operation, deployment, self._endpoint)


def _token(name: str) -> str:
    return base64.urlsafe_b64encode(name.encode()).decode()


def _read_token(token: str) -> str:
    try:
        return base64.b64decode(token, altchars=b"-_", validate=True).decode()
    except ValueError:
        raise InvalidArgumentError(
            [FieldViolation("page_token", "must be `next_page_token` of an earlier response")]
        ) from None
