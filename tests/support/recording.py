"""A core's life with all that a policy may look at, and what its flight recorder wrote: tenants, priorities, deadlines,
two engines whose cost is learnt, retries, cancellations, changes of policy and of owner."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from uellm_scheduler.app import effects as do
from uellm_scheduler.app import events as on
from uellm_scheduler.app.core import SchedulerCore
from uellm_scheduler.app.limits import CoreLimits
from uellm_scheduler.policies import POLICIES

from tests.support.costs import PRIOR, random_batch, times
from tests.support.world import MODEL, deployment
from uellm.cost.lengths import LengthDistribution, log_normal_cdf
from uellm.messaging.queries import DispatchAnswer
from uellm.v1.query_pb2 import ON_MISS_CANCEL, ResourceProfile
from uellm.v1.stream_pb2 import DecisionRecord, DeploymentRecord, ProfiledQuery, QueryRecord

LIMITS = CoreLimits(max_attempts=3, decisions_per_keyframe=4, rows_per_entry=3)


def engines() -> tuple[DeploymentRecord, ...]:
    """A fast one and a slow one; the cost of both is learnt."""
    made = []
    for number, name in enumerate("ab"):
        record = deployment(f"deployments/{name}", rows=4)
        record.plan_hash = f"plan-{name}"
        record.limits.context_tokens = 1_024
        record.step_time_prior.CopyFrom(times(0.3 + number, PRIOR).to_prior("roofline"))
        made.append(record)
    return tuple(made)


@dataclass
class Life:
    """Feeds cores under one clock; `entries` is what they recorded, in order."""

    policies: Sequence[str]
    seed: int
    limits: CoreLimits = LIMITS
    now_ms: int = 1_000_000
    entries: list[tuple[str, DecisionRecord]] = field(default_factory=list)
    waiting: dict[str, on.TakenQuery] = field(default_factory=dict)
    """Without an outcome; with the attempts that were begun."""
    effects: list[do.Effect] = field(default_factory=list)
    running: dict[str, do.RunBatch] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.choice = random.Random(self.seed)
        self.records = engines()
        self.epoch = self.count = 0
        self.take_over()

    def live(self, steps: int) -> list[tuple[str, DecisionRecord]]:
        actions = {"arrive": 4, "produce": 5, "end": 4, "tick": 3, "lose": 1, "cancel": 0.5, "change": 0.3}
        actions |= {"redeploy": 0.3, "take_over": 0.1}
        for action in self.choice.choices(list(actions), list(actions.values()), k=steps):
            getattr(self, action)()
        return self.entries

    # --- what can happen ---

    def arrive(self) -> None:
        taken = [self._query() for _ in range(self.choice.randint(1, 6))]
        self.waiting.update((one.name, one) for one in taken)
        self.tell(on.QueriesTaken(tuple(taken)))

    def produce(self) -> None:
        if batch := self._some_batch():
            news = tuple(on.RowNews(row.name, 0, (1, 2), "ab") for row in batch.rows if row.name in self.waiting)
            self.tell(on.EngineNews(batch.batch_id, news))

    def end(self) -> None:
        if batch := self._some_batch():
            del self.running[batch.batch_id]
            news = tuple(on.RowNews(row.name, 0, (3,), "c", "stop") for row in batch.rows)
            self.tell(on.EngineNews(batch.batch_id, news, random_batch(self.choice, rows=len(news))))
            self.tell(on.BatchEnded(batch.batch_id))

    def lose(self) -> None:
        if batch := self._some_batch():
            del self.running[batch.batch_id]
            self.tell(on.BatchEnded(batch.batch_id, "connection lost"))

    def tick(self) -> None:
        self.now_ms += self.choice.randint(1, 3_000)
        self.tell(on.Tick())

    def cancel(self) -> None:
        if self.waiting:
            self.tell(on.CancelWanted(self.choice.choice(list(self.waiting)), "0-1"))

    def change(self) -> None:
        self.tell(on.PolicyChanged(POLICIES[self.choice.choice(self.policies)]))

    def redeploy(self) -> None:
        """The same again, with another share, prior or plan, or without one of them."""
        changed = [DeploymentRecord.FromString(record.SerializeToString()) for record in self.records]
        for record in changed:
            record.publish_time.FromMilliseconds(self.now_ms)
            record.traffic_share = self.choice.choice([1.0, 0.5])
            record.step_time_prior.base_seconds *= self.choice.choice([1.0, 1.5])
        if self.choice.random() < 0.3:
            changed[0].plan_hash += "+"
        self.records = tuple(changed)
        self.tell(on.DeploymentsChanged(self.records[self.choice.choice([0, 0, 1]) :]))

    def take_over(self) -> None:
        self.epoch += self.choice.randint(1, 9)
        self.running.clear()
        policy = POLICIES[self.choice.choice(self.policies)]
        self.core = SchedulerCore(MODEL, self.epoch, policy, self.limits, seed=self.epoch)
        self.tell(on.DeploymentsChanged(self.records))
        self.tell(on.QueriesTaken(tuple(self.waiting.values())))

    # --- how it happens ---

    def tell(self, event: on.Event) -> None:
        """Give the core an event, and those that follow from its wishes, one after the other."""
        events = deque([event])
        while events:
            for effect in self.core.step(events.popleft(), self.now_ms):
                self.effects.append(effect)
                events.extend(self._carry_out(effect))

    def _carry_out(self, effect: do.Effect) -> list[on.Event]:
        match effect:
            case do.RecordDecision():
                # What is stored is what was serialised.
                stored = DecisionRecord.FromString(effect.record.SerializeToString())
                self.entries.append((effect.decision_id, stored))
            case do.BeginAttempts():
                for row in effect.rows:
                    self.waiting[row.name] = replace(self.waiting[row.name], attempts=row.attempts + 1)
                answers = tuple(DispatchAnswer("ok", record=QueryRecord()) for _ in effect.rows)
                return [on.AttemptsBegun(effect.batch_id, answers)]
            case do.RunBatch():
                self.running[effect.batch_id] = effect
            case do.AwaitEngine():
                return [on.EngineReady(effect.deployment.name)]
            case do.FinishQueries():
                for row in effect.rows:
                    self.waiting.pop(row.name, None)
        return []

    def _some_batch(self) -> do.RunBatch | None:
        return self.choice.choice(list(self.running.values())) if self.running else None

    def _query(self) -> on.TakenQuery:
        self.count += 1
        name = f"tenants/t{self.choice.randrange(3)}/models/{MODEL}/queries/q{self.count}"
        length = LengthDistribution.from_cdf(log_normal_cdf(self.choice.uniform(2, 5), 0.6), 256)
        profile = ResourceProfile(prompt_tokens=self.choice.randint(1, 90), output_length=length.to_proto())
        entry = ProfiledQuery(name=name, profile=profile, priority=self.choice.choice([0, 0, 10]))
        if self.choice.random() < 0.7:
            entry.slo.completion.FromMilliseconds(self.choice.choice([1_500, 8_000, 40_000]))
            entry.slo.on_miss = self.choice.choice([0, ON_MISS_CANCEL])
        if self.choice.random() < 0.2:
            entry.slo.first_token.FromMilliseconds(self.choice.choice([900, 5_000]))
        return on.TakenQuery(name, f"{self.now_ms - self.choice.randrange(500)}-{self.count}", entry)
