"""The scheduler's core: a state machine without effects of its own.

`step` takes an event and the time, and returns what is to be done. Live, an asyncio shell does it; in tests a seeded
virtual world does, so that crashes, delays and reorderings are searched by the thousand. There is one core per owned
model; it lives as long as the lease.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uellm.v1.query_pb2 import QUERY_STATE_CANCELLED, QUERY_STATE_REJECTED, QUERY_STATE_WITHDRAWN, QueryState

from ..domain.outcomes import NOT_SERVED, outcome_of
from ..domain.pending import PendingTable
from ..domain.pending_query import PendingQuery
from ..domain.policy import Decision, EngineView, Policy, QueueView
from . import effects as do
from . import events as on
from .endings import end, give_up
from .flight import Flight
from .limits import CoreLimits
from .recorder import Draw, Recorder


class SchedulerCore:
    """What waits and runs for one model, under one lease."""

    def __init__(
        self,
        model: str,
        epoch: int,
        policy: Policy,
        limits: CoreLimits | None = None,
        seed: int = 0,
        *,
        recording: bool = True,
    ) -> None:
        self.model = model
        self.epoch = epoch
        self.policy = policy
        self.limits = limits or CoreLimits()
        self.pending = PendingTable()
        self._random = np.random.default_rng(seed)
        self._effects: list[do.Effect] = []
        self.flight = Flight(f"{model}-{epoch}", self.pending, self.limits, self._random, self._effects)
        self._recording = recording
        self._recorder = Recorder(epoch, self.pending, self.flight, self.limits, seed)
        self._deployed_ms: int | None = None
        self.wake_ms: int | None = None
        """When something is to be decided again, at the latest."""
        self._handlers: dict[type[Any], Callable[[Any, int], None]] = {
            on.QueriesTaken: self._take,
            on.CancelWanted: self._cancel,
            on.DeploymentsChanged: self._deployments_changed,
            on.CostModelsFound: self._costs_found,
            on.PolicyChanged: self._policy_changed,
            on.AttemptsBegun: self.flight.attempts_begun,
            on.EngineNews: self.flight.engine_news,
            on.BatchEnded: self.flight.batch_ended,
            on.EngineReady: self.flight.engine_ready,
            on.HandOver: self.flight.hand_over,
            on.Tick: self._tick,
        }

    def step(self, event: on.Event, now_ms: int) -> list[do.Effect]:
        """Take an event; return what is to be done, in order. `now_ms` is the queue's clock."""
        if self._deployed_ms is None:
            self._deployed_ms = now_ms
        matters = self._matters(event)
        self._handlers[type(event)](event, now_ms)
        if matters:
            self._decide(now_ms, reviewing=isinstance(event, on.Tick))
        if states := self.flight.costs.to_publish(now_ms, at_once=self.flight.handing_over):
            self._effects.append(do.PublishCostModels(states))
        effects = list(self._effects)
        self._effects.clear()
        return effects

    def _take(self, event: on.QueriesTaken, now_ms: int) -> None:
        for taken in event.queries:
            if taken.name in self.pending or taken.name in self.flight:
                continue
            pending = PendingQuery.of(
                taken.name, taken.entry_id, taken.query, taken.attempts, taken.progress, taken.history
            )
            if taken.cancel_requested:
                self._effects.append(end(pending, QUERY_STATE_CANCELLED, now_ms))
            elif taken.attempts >= self.limits.max_attempts:
                why = f"given up after {taken.attempts} attempts"
                self._effects.append(give_up(pending, NOT_SERVED, why, now_ms))
            else:
                self.pending.add(pending)

    def _cancel(self, event: on.CancelWanted, now_ms: int) -> None:
        pending = self.pending.remove(event.name)
        if pending is not None:
            self._effects.append(end(pending, QUERY_STATE_CANCELLED, now_ms))
        self.flight.cancel(event.name)
        self._effects.append(do.AcknowledgeEntry(event.entry_id))

    def _costs_found(self, event: on.CostModelsFound, now_ms: int) -> None:  # noqa: ARG002
        self.flight.costs.remember(event.states)

    def _policy_changed(self, event: on.PolicyChanged, now_ms: int) -> None:  # noqa: ARG002
        self.policy = event.policy

    def _deployments_changed(self, event: on.DeploymentsChanged, now_ms: int) -> None:
        self.flight.deployments_changed(event.records)
        if event.records:
            self._deployed_ms = now_ms

    def _tick(self, event: on.Tick, now_ms: int) -> None:  # noqa: ARG002
        slots = self.pending.slots()
        late = (self.pending.column("deadline_ms")[slots] < now_ms) & self.pending.column("cancel_on_miss")[slots]
        self._end_all([self.pending.name_at(int(slot)) for slot in slots[late]], QUERY_STATE_CANCELLED, now_ms)
        self.flight.tick(now_ms)
        if self.flight.engines:
            self._deployed_ms = now_ms
        elif now_ms - (self._deployed_ms or now_ms) > self.limits.withdraw_after_ms:
            self._end_all(self.pending.names(), QUERY_STATE_WITHDRAWN, now_ms)

    def _end_all(self, names: list[str], state: QueryState, now_ms: int) -> None:
        for name in names:
            pending = self.pending.remove(name)
            if pending is not None:
                self._effects.append(end(pending, state, now_ms))

    def _matters(self, event: on.Event) -> bool:
        """Whether a policy could decide otherwise after it."""
        match event:
            case on.EngineNews():  # tokens that come are no reason to ask
                return event.aggregates is not None or any(row.finish_reason for row in event.rows)
            case on.AttemptsBegun():
                return any(answer.status != "ok" for answer in event.answers)
            case on.BatchEnded():
                return bool(event.error) or not self.flight.has_left(event.batch_id)
        return True

    def _decide(self, now_ms: int, *, reviewing: bool) -> None:
        self.wake_ms = None
        if self.flight.handing_over or not self.pending:
            return
        # With every place taken there may still be something to refuse, but not more often than time is told.
        if not (reviewing and self.policy.info.refuses) and not self.flight.has_place:
            return
        engines = self.flight.views(accepting=True)
        if not engines:
            return
        eligible = self.pending.eligible(now_ms)
        self.wake_ms = eligible.next_ms
        if len(eligible.alone):
            engines = self._serve_alone(eligible.alone[:1], engines, now_ms)
        self._ask(QueueView(self.pending, eligible.together, engines), now_ms)

    def _serve_alone(
        self, slot: NDArray[np.intp], engines: tuple[EngineView, ...], now_ms: int
    ) -> tuple[EngineView, ...]:
        """Have a query served by an engine that does nothing else; returns the engines with what is left for others.

        The engine that has least to do takes nothing new until it is free.
        """
        quietest = min(engines, key=lambda engine: (len(engine.rows), engine.deployment))
        if not quietest.rows and not self._ask(QueueView(self.pending, slot, (quietest,), alone=True), now_ms):
            return engines
        return tuple(replace(engine, free_batches=0) if engine is quietest else engine for engine in engines)

    def _ask(self, view: QueueView, now_ms: int) -> bool:
        """Ask the policy and do what it decides; returns whether it formed a batch."""
        if not len(view.slots):
            return False
        draw = self._recorder.draw()
        decision = self.policy.decide(view, now_ms, draw.generator)
        if decision.wake_ms is not None:
            self.wake_ms = min(decision.wake_ms, self.wake_ms or decision.wake_ms)
        if decision.batches or decision.refusals:
            self._carry_out(view, decision, draw, now_ms)
        return bool(decision.batches)

    def _carry_out(self, view: QueueView, decision: Decision, draw: Draw, now_ms: int) -> None:
        batch_ids = self.flight.new_batch_ids(len(decision.batches))
        decision_id = ""
        if self._recording:
            recorded = self._recorder.record(view, decision, batch_ids, self.policy.info, draw, now_ms)
            self._effects += recorded
            decision_id = recorded[-1].decision_id
        refusals = [(self.pending.name_at(plan.slot), plan.refusal) for plan in decision.refusals]
        for batch_id, plan in zip(batch_ids, decision.batches, strict=True):
            names = [self.pending.name_at(slot) for slot in plan.slots]
            queries = [q for name in names if (q := self.pending.remove(name))]
            self.flight.dispatch(batch_id, plan.deployment, queries, now_ms, decision_id)
        for name, refusal in refusals:
            pending = self.pending.remove(name)
            if pending is not None:
                outcome = outcome_of(
                    pending, QUERY_STATE_REJECTED, pending.progress, NOT_SERVED, pending.attempts, now_ms
                )
                outcome.refusal.CopyFrom(refusal)
                outcome.decision_id = decision_id
                self._effects.append(end(pending, QUERY_STATE_REJECTED, now_ms, outcome))
