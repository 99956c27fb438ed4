"""How many answers in time any schedule could reach, even one that knows all lengths and arrivals: an upper bound."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from uellm_simulator.metrics import Window
from uellm_simulator.scenario import Engine, Scenario
from uellm_simulator.simulate import Result
from uellm_simulator.workload import Request

MOMENTS = 1_024
"""Releases, and as many deadlines, that are told apart: of more, neighbours are merged so that windows only grow."""
SLACK_SECONDS = 1e-6
"""For rounding in the simulator."""


@dataclass(frozen=True, slots=True)
class Need:
    """What an answer in time takes at least."""

    release: float
    deadline: float
    seconds: float
    """Of one engine's time, between the two."""


def bound_of(result: Result) -> float:
    """Goodput that no schedule of the requests that count in a run can exceed, in answers a second."""
    fates = Window(result.scenario.warm_up).of(result.fates)
    return most_in_time([fate.request for fate in fates], result.scenario) / result.metrics.seconds


def most_in_time(requests: Sequence[Request], scenario: Scenario) -> int:
    """No schedule keeps the objectives of more of them.

    Of requests that are kept in time, those whose windows (from arrival to deadline) lie within [a, b] take at least
    the sum of their needs (`need_of`) of the engines' time there, which is (b - a) for each engine. This holds for all
    a and b, also where any share of a request may be served. So the bound is the largest sum of shares x_i in 0..1 with

        sum of x_i * seconds_i over {i: a <= release_i, deadline_i <= b}  <=  engines * (b - a)     for all a < b,

    a linear program over a polymatroid (engine time can be handed out in the windows as a flow). Its optimum is what
    the greedy algorithm finds (Edmonds 1970): in the order of their needs, each gets the largest share that still fits.
    The room of the cache, padding to longer rows, empty places and prefills that interrupt others are left out: they
    only make it less.
    """
    needs = [
        need
        for request in requests
        if request.completion_seconds or request.first_token_seconds
        if (need := need_of(request, scenario.engine, scenario.dispatch_seconds)) is not None
    ]
    return math.floor(_shares(sorted(needs, key=lambda need: need.seconds), scenario.deployments) + 1e-6)


def need_of(request: Request, engine: Engine, dispatch_seconds: float = 0.0) -> Need | None:
    """What it takes at least; None if it can't be in time even alone.

    A pass with B rows gives each 1/B of what does not depend on the rows: the larger B, the less a row needs, and the
    slower it gets. Of an answer of L tokens let M be the mean of B over its L - 1 decode steps. It needs at least
    base / M a step (the mean of 1/B is at least 1/M), and its own rows and contexts. It ends in time only if M is not
    too large, for a step takes base + per_row * B, and on a static engine, which pads, per_context_token * B * (its own
    context) and before that prefill_per_token * B' * (its own prompt) with B' >= B, for no row joins later.
    """
    step, arrival = engine.step, request.arrival
    prompt, steps = arrival.prompt_tokens, arrival.output_tokens - 1
    release = arrival.seconds + dispatch_seconds
    prefill = step.prefill_per_token * prompt
    if request.first_token_seconds and dispatch_seconds + step.startup + prefill > request.first_token_seconds:
        return None
    if not request.completion_seconds:
        deadline = arrival.seconds + request.first_token_seconds + SLACK_SECONDS
        return Need(release, deadline, prefill + step.startup / engine.rows)
    contexts = step.per_context_token * (steps * prompt + steps * (steps + 1) / 2)
    spare = request.completion_seconds + SLACK_SECONDS - dispatch_seconds - step.startup - steps * step.base
    per_row = step.per_row * steps
    if engine.continuous:
        spare -= prefill + contexts
    else:
        per_row += prefill + step.per_context_token * steps * (prompt + 1)
    rows = min(float(engine.rows), spare / per_row) if per_row else float(engine.rows)
    if spare < 0 or rows < 1:
        return None
    seconds = step.startup / engine.rows + prefill + steps * (step.base / rows + step.per_row) + contexts
    return Need(release, arrival.seconds + request.completion_seconds + SLACK_SECONDS, seconds)


def _shares(needs: Sequence[Need], engines: int) -> float:
    """The largest sum of shares; the needs ascend."""
    if not needs:
        return 0.0
    releases, first = _merged(np.array([need.release for need in needs]))
    deadlines, last = _merged(-np.array([need.deadline for need in needs]))
    deadlines = -deadlines
    # Engine time in [release a, deadline b] that nobody has been promised.
    free = np.maximum(deadlines[None, :] - releases[:, None], 0.0) * engines
    total = 0.0
    for need, a, b in zip(needs, first.tolist(), last.tolist(), strict=True):
        around = free[: a + 1, : b + 1]
        given = min(need.seconds, max(float(around.min()), 0.0))
        np.subtract(around, given, out=around)
        total += given / need.seconds if need.seconds else 1.0
    return total


def _merged(times: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """At most `MOMENTS` of the times, ascending, and for each time the last of them that is not after it."""
    kept = np.unique(times)
    kept = kept[np.unique(np.linspace(0, len(kept) - 1, MOMENTS).astype(np.intp))]
    return kept, np.asarray(np.searchsorted(kept, times, side="right") - 1, np.intp)
