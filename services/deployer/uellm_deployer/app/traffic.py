"""Use case: divide a model's traffic between its deployments."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace

from uellm.rpc.errors import FieldViolation, InvalidArgumentError, NotFoundError
from uellm_deployer.app.book import Book
from uellm_deployer.app.operations import Operations
from uellm_deployer.app.ports import JournalEntry, Publisher
from uellm_deployer.app.turns import things_of
from uellm_deployer.domain.deployment import Deployment, State
from uellm_deployer.domain.shares import TOLERANCE


class SetTraffic:
    """Sets the shares of all deployments of a model that serve. May be repeated."""

    def __init__(self, book: Book, operations: Operations, publisher: Publisher) -> None:
        self._book = book
        self._operations = operations
        self._publisher = publisher

    async def set(self, model: str, shares: Mapping[str, float]) -> list[Deployment]:
        """Journal, then publish; returns the deployments as they are now, by name.

        Raises:
            NotFoundError: no deployment of the model serves.
            InvalidArgumentError: a share is missing or of none of them, or those of a queue do not sum to 1.
            UnavailableError: Redis does not answer. The shares are kept, and published later.
        """
        of_model = [one for one in self._book.deployments.values() if one.plan.spec.model == model]
        queues = frozenset(thing for thing in things_of(*of_model) if thing.startswith("queues/"))
        async with self._operations.turns.of(queues):
            serving = {
                one.name: one
                for one in sorted(self._book.deployments.values(), key=lambda one: one.name)
                if one.state is State.READY and one.plan.spec.model == model
            }
            _check(model, serving, shares)
            changed = [replace(one, traffic_share=shares[one.name]) for one in serving.values()]
            for one in changed:
                if one != serving[one.name]:
                    await self._book.write(JournalEntry(deployment=one))
            now = [self._book.deployment(one.name) for one in changed]
            for one in now:
                await self._publisher.publish(one)
        return now


def _check(model: str, serving: Mapping[str, Deployment], shares: Mapping[str, float]) -> None:
    if not serving:
        raise NotFoundError("model", model)
    violations = [
        FieldViolation(f"shares[{name}]", f"no READY deployment of {model}; there are: {', '.join(serving)}")
        for name in sorted(set(shares) - set(serving))
    ]
    violations += [
        FieldViolation(f"shares[{name}]", "must be there: it serves the model, too; 0 takes its traffic away")
        for name in serving
        if name not in shares
    ]
    sums: dict[tuple[str, int], float] = defaultdict(float)
    for name, share in shares.items():
        if name in serving:
            sums[serving[name].plan.spec.queue] += share
    violations += [
        FieldViolation("shares", f"must sum to 1; those of shard {shard} sum to {total:g}")
        for (_, shard), total in sorted(sums.items())
        if abs(total - 1) > TOLERANCE
    ]
    if violations:
        raise InvalidArgumentError(violations)
