"""How much memory is missing."""

from __future__ import annotations

from dataclasses import replace

from uellm_deployer.domain.helr.cost import INFINITE, LONGEST
from uellm_deployer.domain.helr.effort import search_of
from uellm_deployer.domain.helr.errors import DoesNotFitError
from uellm_deployer.domain.helr.problem import Problem


def does_not_fit(problem: Problem, states: int) -> DoesNotFitError:
    """The error for a problem without a plan; what is missing by bisection over what every device would have more."""
    model = problem.model
    needed = sum(part.weight_bytes + part.kv_bytes for part in (*model.layers, model.embedding, model.head))
    free = sum(max(0, device.room_bytes - model.activation_bytes) for device in problem.devices)

    def fits(more: int) -> bool:
        devices = tuple(replace(device, free_bytes=device.free_bytes + more) for device in problem.devices)
        search, _ = search_of(replace(problem, devices=devices), states)
        return bool(search.latencies().min(initial=INFINITE) < LONGEST)

    high = needed + model.activation_bytes + max((-device.room_bytes for device in problem.devices), default=0)
    if not fits(high):
        return DoesNotFitError(None, needed, free)
    low = 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return DoesNotFitError(high, needed, free)
