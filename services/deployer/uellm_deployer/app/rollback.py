"""Use case: return a model to the deployment before the last one."""

from __future__ import annotations

from uellm.rpc.errors import FailedPreconditionError, NotFoundError
from uellm_deployer.app.book import Book
from uellm_deployer.app.creation import CreateDeployment, Creation
from uellm_deployer.app.operations import Operations, Request
from uellm_deployer.domain.deployment import Deployment, Operation, State


class RollbackDeployment:
    """Creates what was replaced once more, planned for the machine as it is now."""

    def __init__(self, book: Book, operations: Operations, create: CreateDeployment) -> None:
        self._book = book
        self._operations = operations
        self._create = create

    async def roll_back(self, model: str, request: Request) -> Operation:
        """Begin; the operation is that of a creation, and what serves now is replaced by it.

        Raises:
            NotFoundError: no deployment of the model serves.
            FailedPreconditionError: what serves has replaced nothing, or too long ago.
            Others as of `CreateDeployment.create`.
        """
        if before := self._operations.repeated(request):
            return before
        former = self._replaced_by_what_serves(model)
        name = former.name.removeprefix("deployments/")
        holder = self._book.deployments.get(former.name)
        taken = holder is not None and holder.state is not State.FAILED
        return await self._create.create(Creation("" if taken else name, former.plan.spec), request)

    def _replaced_by_what_serves(self, model: str) -> Deployment:
        """What one that serves the model now replaced last; of several at once, what had most of the traffic."""
        serving = {
            one.name
            for one in self._book.deployments.values()
            if one.state is State.READY and one.plan.spec.model == model
        }
        if not serving:
            raise NotFoundError("model", model)
        replaced = [one for one in self._book.former.values() if one.replaced_by in serving]
        if not replaced:
            raise FailedPreconditionError(
                model,
                f"{', '.join(sorted(serving))} replaced nothing that is remembered: create what is wanted instead",
                reason="NOTHING_TO_RETURN_TO",
            )
        together = [one for one in replaced if one.replaced_by == replaced[-1].replaced_by]
        return max(together, key=lambda one: one.traffic_share)
