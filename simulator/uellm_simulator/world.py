"""The scheduler's core before simulated engines, from one event to the next."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from uellm_scheduler.app import effects as do
from uellm_scheduler.app import events as on
from uellm_scheduler.app.core import SchedulerCore

from uellm.cost.steps import StepTime
from uellm.messaging.queries import DispatchAnswer, FinishRow
from uellm.v1.query_pb2 import QUERY_STATE_COMPLETED, Query, ResourceProfile
from uellm.v1.stream_pb2 import DecisionRecord, DeploymentRecord, ProfiledQuery, QueryRecord
from uellm_simulator.batching import batching_of
from uellm_simulator.engine import Batch, Made, Row, SimulatedEngine
from uellm_simulator.fates import Fate
from uellm_simulator.workload import Request

TICK_SECONDS = 1.0
"""How often the core is told the time, to refuse by. Live it is four times as often: hardly anything is due sooner."""
DELTA_TOKENS = 16
"""After as many tokens a running row is told of; what is fewer is less than a step's error."""


@dataclass(slots=True)
class Deployed:
    """An engine and what it was given."""

    record: DeploymentRecord
    engine: SimulatedEngine
    batches: dict[str, Batch] = field(default_factory=dict)


class World:
    """One queue. Time is in seconds from the first arrival; the core is told milliseconds from `EPOCH_MS`."""

    EPOCH_MS = 1_000

    def __init__(
        self,
        core: SchedulerCore,
        deployments: Sequence[tuple[DeploymentRecord, StepTime]],
        requests: Iterable[Request],
        *,
        dispatch_seconds: float = 0.0,
        tick_seconds: float = TICK_SECONDS,
        on_decision: Callable[[str, DecisionRecord], None] | None = None,
    ) -> None:
        """Nothing has happened yet.

        Args:
            core: the scheduler's, new.
            deployments: with the true step time of each; what the scheduler believes is in the record.
            requests: in any order.
            dispatch_seconds: from a decision until the engine has the batch.
            tick_seconds: how often the core is told the time, while anything waits.
            on_decision: told of every entry of the flight recorder.
        """
        self.now = 0.0
        self.fates: dict[str, Fate] = {}
        self.deployed = {
            record.name: Deployed(record, SimulatedEngine(batching_of(record), step)) for record, step in deployments
        }
        self._core = core
        self._arrivals = sorted(requests, key=lambda request: request.arrival.seconds)
        self._arrived = 0
        self._dispatch_seconds = dispatch_seconds
        self._tick_seconds = tick_seconds
        self._next_tick = tick_seconds
        self._on_decision = on_decision
        self._by_name = {request.name: request for request in self._arrivals}
        self._starting: list[tuple[float, int, do.RunBatch]] = []
        self._numbers = itertools.count()
        self._wake_seconds = math.inf
        self._tell(on.DeploymentsChanged(tuple(record for record, _ in deployments)))

    def run(self) -> list[Fate]:
        """Everything, to its end; in order of arrival."""
        while self.step():
            pass
        return [self.fates[request.name] for request in self._arrivals]

    def step(self) -> bool:
        """Go to the next thing that happens; False if there is none."""
        moment = min(self._next_arrival, self._next_start, self._next_made, self._next_review)
        if not math.isfinite(moment):
            return False
        self.now = max(self.now, moment)
        made = [(deployed, deployed.engine.advance(self.now)) for deployed in self.deployed.values()]
        if self._is_asked(made):
            self._show_progress()
        for deployed, some in made:
            self._hear(deployed, some)
        while self._starting and self._starting[0][0] <= self.now:
            self._start(heapq.heappop(self._starting)[2])
        if self._next_arrival <= self.now:
            self._arrive()
        elif self._next_review <= self.now:
            self._tell(on.Tick())
            self._next_tick = self.now + self._tick_seconds
        return True

    def _is_asked(self, made: Iterable[tuple[Deployed, Sequence[Made]]]) -> bool:
        """Whether a policy will look at what runs."""
        if self._next_review <= self.now or any(one.ended for _, some in made for one in some):
            return True
        return self._next_arrival <= self.now and any(
            engine.free_batches for engine in self._core.flight.engines.values()
        )

    # --- what comes next ---

    @property
    def _next_arrival(self) -> float:
        return self._arrivals[self._arrived].arrival.seconds if self._arrived < len(self._arrivals) else math.inf

    @property
    def _next_start(self) -> float:
        return self._starting[0][0] if self._starting else math.inf

    @property
    def _next_made(self) -> float:
        return min(deployed.engine.next_seconds for deployed in self.deployed.values())

    @property
    def _next_review(self) -> float:
        if not self._core.pending:
            return math.inf
        wake = self._core.wake_ms
        # A decision that was just taken may ask to be woken now: time has to go on.
        woken = max(self.seconds(wake), self.now + 0.001) if wake is not None else math.inf
        # Without places only who refuses has anything to review.
        return min(self._next_tick, woken) if self._core.policy.info.refuses else woken

    # --- what happens ---

    def _arrive(self) -> None:
        if self._next_tick <= self.now:  # nothing waited for a while
            self._next_tick = self.now + self._tick_seconds
        taken = []
        while self._next_arrival <= self.now:
            request = self._arrivals[self._arrived]
            self._arrived += 1
            self.fates[request.name] = Fate(request)
            taken.append(on.TakenQuery(request.name, f"{self.ms}-{self._arrived}", profiled(request)))
        self._tell(on.QueriesTaken(tuple(taken)))

    def _start(self, run: do.RunBatch) -> None:
        deployed = self.deployed[run.deployment.name]
        batch = Batch(run.batch_id, next(self._numbers), len(run.rows))
        deployed.batches[run.batch_id] = batch
        rows = []
        for row in run.rows:
            request, made = self._by_name[row.name].arrival, len(row.resume_token_ids)
            rows.append(Row(row.name, batch, request.prompt_tokens, request.output_tokens, made, made))
            fate = self.fates[row.name]
            fate.deployment, fate.batch_id, fate.dispatch_seconds = run.deployment.name, run.batch_id, self.now
        deployed.engine.start(rows, self.now)

    def _hear(self, deployed: Deployed, made: Sequence[Made]) -> None:
        """Tell the core of first tokens and ends; a batch without rows has ended."""
        self._deliver(made)
        for batch in {id(one.row.batch): one.row.batch for one in made if one.ended}.values():
            if not batch.left:
                del deployed.batches[batch.batch_id]
                self._tell(on.BatchEnded(batch.batch_id))

    def _deliver(self, made: Sequence[Made]) -> None:
        batches: dict[str, list[Made]] = {}
        for one in made:
            batches.setdefault(one.row.batch.batch_id, []).append(one)
        for batch_id, some in batches.items():
            batch = some[0].row.batch
            news = tuple(_news(one) for one in some)
            for one in some:
                fate = self.fates[one.row.name]
                fate.first_token_seconds = min(fate.first_token_seconds, self.now)
            over = any(one.ended for one in some) and not batch.left
            self._tell(on.EngineNews(batch_id, news, batch.aggregates() if over else None))

    def _show_progress(self) -> None:
        """What a policy sees of running rows is what they have delivered."""
        for deployed in self.deployed.values():
            self._deliver(deployed.engine.progress(DELTA_TOKENS))

    def _tell(self, event: on.Event) -> None:
        effects = self._core.step(event, self.ms)
        for effect in effects:
            match effect:
                case do.BeginAttempts():
                    ok = DispatchAnswer("ok", _RECORD)
                    self._tell(on.AttemptsBegun(effect.batch_id, (ok,) * len(effect.rows)))
                case do.RunBatch():
                    entry = (self.now + self._dispatch_seconds, next(self._numbers), effect)
                    heapq.heappush(self._starting, entry)
                case do.FinishQueries():
                    for row in effect.rows:
                        self._finish(row)
                case do.CancelRows():
                    self._cancel(effect)
                case do.RecordDecision() if self._on_decision is not None:
                    self._on_decision(effect.decision_id, effect.record)
                case _:
                    pass  # what only clients and other owners read

    def _finish(self, row: FinishRow) -> None:
        fate, outcome = self.fates[row.name], row.outcome
        fate.state, fate.finish_seconds = outcome.state, self.now
        if outcome.state == QUERY_STATE_COMPLETED:
            fate.output_tokens = outcome.output_tokens

    def _cancel(self, cancel: do.CancelRows) -> None:
        deployed = self.deployed[cancel.deployment.name]
        batch = deployed.batches.get(cancel.batch_id)
        if batch is None:
            return
        engine = deployed.engine
        rows = [row.name for row in (*engine.rows, *engine.joining, *engine.waiting) if row.batch is batch]
        gone = engine.cancel(set(cancel.names or rows))
        news = tuple(on.RowNews(row.name, row.told, (), "", "cancelled") for row in gone)
        self._tell(on.EngineNews(cancel.batch_id, news))
        if not batch.left:
            del deployed.batches[cancel.batch_id]
            self._tell(on.BatchEnded(cancel.batch_id))

    # --- clocks ---

    @property
    def ms(self) -> int:
        """The queue's clock."""
        return self.EPOCH_MS + math.floor(1000 * self.now + 1e-6)

    def seconds(self, ms: int) -> float:
        """A time of the queue's clock as one of the world's."""
        return (ms - self.EPOCH_MS) / 1000


_RECORD = QueryRecord(query=Query(prompt="simulated"))


def profiled(request: Request) -> ProfiledQuery:
    """As the profiler would have written it."""
    prompt = request.arrival.prompt_tokens
    profile = ResourceProfile(prompt_tokens=prompt, output_length=request.predicted.to_proto())
    entry = ProfiledQuery(name=request.name, profile=profile)
    if request.completion_seconds:
        entry.slo.completion.FromMilliseconds(round(1000 * request.completion_seconds))
    if request.first_token_seconds:
        entry.slo.first_token.FromMilliseconds(round(1000 * request.first_token_seconds))
    entry.slo.confidence = request.confidence
    return entry


def _news(made: Made) -> on.RowNews:
    finish = "stop" if made.ended else ""
    return on.RowNews(made.row.name, made.first_index, (0,) * made.count, "", finish)
