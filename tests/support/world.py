"""A seeded virtual world around the scheduler's core: replicas, an engine and a queue, in any order that can happen."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field

from uellm_scheduler.app import effects as do
from uellm_scheduler.app import events as on
from uellm_scheduler.app.core import CoreLimits, SchedulerCore
from uellm_scheduler.app.recovery import attempts_of, progress_of
from uellm_scheduler.policies import POLICIES

from uellm.messaging.memory import MemoryQueue
from uellm.messaging.queries import FencedError, Submission
from uellm.v1.query_pb2 import LengthDistribution, Query, ResourceProfile
from uellm.v1.stream_pb2 import (
    DEPLOYMENT_STATE_READY,
    ENGINE_KIND_STATIC,
    DeploymentRecord,
    EngineLimits,
    ModelFacts,
    ProfiledQuery,
    QueryRecord,
)

MODEL = "tiny"


def deployment(name: str = "deployments/a", *, resumable: bool = True, rows: int = 4) -> DeploymentRecord:
    return DeploymentRecord(
        name=name,
        model=MODEL,
        state=DEPLOYMENT_STATE_READY,
        engine_kind=ENGINE_KIND_STATIC,
        facts=ModelFacts(kv_bytes_per_token=100),
        limits=EngineLimits(
            context_tokens=512,
            max_output_tokens=256,
            max_batch_rows=rows,
            max_concurrent_batches=1,
            kv_budget_bytes=10**9,
            resumable=resumable,
        ),
        traffic_share=1.0,
    )


def submission(
    identifier: str, *, slo_seconds: float = 0, p50: float = 20, limit: int = 64, tenant: str = "t"
) -> Submission:
    name = f"tenants/{tenant}/models/{MODEL}/queries/{identifier}"
    length = LengthDistribution(p50_tokens=p50, p90_tokens=2 * p50, p99_tokens=3 * p50, limit_tokens=limit)
    entry = ProfiledQuery(name=name, profile=ResourceProfile(prompt_tokens=8, output_length=length))
    if slo_seconds:
        entry.slo.completion.FromMilliseconds(int(slo_seconds * 1000))
    return Submission(name, f"hash-{identifier}", QueryRecord(query=Query(name=name, prompt="p")), entry)


def answer_of(name: str) -> list[int]:
    """The tokens that every engine produces for a query."""
    stream = random.Random(name)
    return [stream.randrange(1000) for _ in range(stream.randint(1, 9))]


def text_of(tokens: list[int]) -> str:
    return "".join(f"<{token}>" for token in tokens)


def shown(tokens: list[int], count: int) -> str:
    """Text that may be shown after `count` tokens: it lags behind, as incomplete characters do."""
    return text_of(tokens[: count if count == len(tokens) else count - count % 2])


@dataclass
class EngineBatch:
    replica: Replica
    batch: do.RunBatch
    left: dict[str, int]
    """Tokens produced, of each row that runs."""


@dataclass
class Engine:
    """Produces tokens in any interleaving; honours cancellations; may die."""

    batches: dict[str, EngineBatch] = field(default_factory=dict)

    def run(self, replica: Replica, batch: do.RunBatch) -> None:
        rows = {row.name: len(row.resume_token_ids) for row in batch.rows}
        self.batches[batch.batch_id] = EngineBatch(replica, batch, rows)

    def cancel(self, batch_id: str, names: tuple[str, ...]) -> None:
        running = self.batches.get(batch_id)
        for name in (names or list(running.left)) if running else ():
            if running.left.pop(name, None) is not None:
                self._tell(running, on.RowNews(name, 0, (), "", "cancelled"))
        self._end_if_empty(batch_id)

    def advance(self, batch_id: str, choice: random.Random) -> None:
        running = self.batches[batch_id]
        news = []
        for name in [name for name in running.left if choice.random() < 0.7]:
            tokens, done = answer_of(name), running.left[name]
            count = min(len(tokens), done + choice.randint(1, 3))
            finish = "stop" if count == len(tokens) else ""
            text = shown(tokens, count).removeprefix(shown(tokens, done))
            news.append(on.RowNews(name, done, tuple(tokens[done:count]), text, finish))
            running.left[name] = count
            if finish:
                del running.left[name]
        if news:
            self._tell(running, *news)
        self._end_if_empty(batch_id)

    def poison(self, batch_id: str, choice: random.Random) -> None:
        """One row fails for good, the others run on."""
        running = self.batches[batch_id]
        if running.left:
            name = choice.choice(list(running.left))
            del running.left[name]
            self._tell(running, on.RowNews(name, 0, (), "", "error", "can't be served"))
        self._end_if_empty(batch_id)

    def die(self) -> None:
        for batch_id, running in list(self.batches.items()):
            running.replica.inbox.append(on.BatchEnded(batch_id, "connection lost"))
        self.batches.clear()

    def _tell(self, running: EngineBatch, *news: on.RowNews) -> None:
        running.replica.inbox.append(on.EngineNews(running.batch.batch_id, news))

    def _end_if_empty(self, batch_id: str) -> None:
        running = self.batches.get(batch_id)
        if running is not None and not running.left:
            del self.batches[batch_id]
            running.replica.inbox.append(on.BatchEnded(batch_id))


@dataclass
class Replica:
    """A core with its shell: store effects in order, engine effects at once, events in order of arrival."""

    core: SchedulerCore
    inbox: deque[on.Event] = field(default_factory=deque)
    writes: deque[do.StoreEffect] = field(default_factory=deque)
    seen: set[str] = field(default_factory=set)
    fenced: bool = False


class World:
    def __init__(self, seed: int, *, policy: str = "fifo", resumable: bool = True, max_attempts: int = 1000) -> None:
        self.choice = random.Random(seed)
        self.queue = MemoryQueue(now_ms=1_000)
        self.engine = Engine()
        self.replicas: list[Replica] = []
        self.submitted: dict[str, Submission] = {}
        self.outcomes_written: dict[str, int] = {}
        self.deployment = deployment(resumable=resumable)
        self.policy = policy
        self.limits = CoreLimits(max_attempts=max_attempts, engine_stall_ms=5_000)
        self.take_over()

    @property
    def owner(self) -> Replica:
        return self.replicas[-1]

    # --- what can happen ---

    def submit(self) -> None:
        made = submission(f"q{len(self.submitted)}", slo_seconds=self.choice.choice([0, 5, 20]))
        self.queue.submit(made, depth_limit=1_000)
        self.submitted[made.name] = made

    def cancel(self) -> None:
        if self.submitted:
            self.queue.cancel(self.choice.choice(list(self.submitted)))

    def take(self) -> None:
        self._take(self.owner)

    def write(self) -> None:
        busy = [replica for replica in self.replicas if replica.writes and not replica.fenced]
        if busy:
            self._write(self.choice.choice(busy))

    def hear(self) -> None:
        busy = [replica for replica in self.replicas if replica.inbox and not replica.fenced]
        if busy:
            replica = self.choice.choice(busy)
            self._step(replica, replica.inbox.popleft())

    def produce(self) -> None:
        if self.engine.batches:
            self.engine.advance(self.choice.choice(list(self.engine.batches)), self.choice)

    def tick(self) -> None:
        self.queue.now_ms += self.choice.randint(1, 400)
        for replica in self.replicas:
            if not replica.fenced:
                self._step(replica, on.Tick())

    def engine_dies(self) -> None:
        self.engine.die()

    def poison(self) -> None:
        if self.engine.batches:
            self.engine.poison(self.choice.choice(list(self.engine.batches)), self.choice)

    def engine_lets_go(self) -> None:
        """The engine ends rows that nobody asked it to end."""
        if self.engine.batches:
            batch_id = self.choice.choice(list(self.engine.batches))
            self.engine.cancel(batch_id, tuple(list(self.engine.batches[batch_id].left)[:1]))

    def crash(self) -> None:
        """The owner is killed: nothing that it had in mind happens any more."""
        self.owner.fenced = True
        for batch_id in [b for b, running in self.engine.batches.items() if running.replica is self.owner]:
            del self.engine.batches[batch_id]
        self.take_over()

    def hand_over(self) -> None:
        """The owner is told to stop; it goes on for a while, then another one takes over."""
        self._step(self.owner, on.HandOver())
        for _ in range(self.choice.randint(0, 20)):
            self.choice.choice([self.write, self.hear, self.produce, self.tick, self.submit, self.take])()
        self.take_over()

    def take_over(self) -> None:
        """Another replica becomes owner; the old one, paused, may revive and go on with what it had in mind."""
        epoch = self.queue.acquire()
        core = SchedulerCore(MODEL, epoch, POLICIES[self.policy], self.limits, seed=self.choice.randrange(10**6))
        replica = Replica(core)
        self.replicas.append(replica)
        self._step(replica, on.DeploymentsChanged((self.deployment,)))
        self._take(replica)

    # --- how it happens ---

    def _take(self, replica: Replica) -> None:
        for entry_id, (kind, name) in list(self.queue.entries.items()):
            if entry_id in replica.seen:
                continue
            replica.seen.add(entry_id)
            if kind == "cancel":
                replica.inbox.append(on.CancelWanted(name, entry_id))
                continue
            record = self.queue.records[name]
            progress = progress_of(record.events)
            attempts = attempts_of(record.events)
            taken = on.TakenQuery(name, entry_id, record.entry, record.attempts, progress, record.cancel, attempts)
            replica.inbox.append(on.QueriesTaken((taken,)))

    def _step(self, replica: Replica, event: on.Event) -> None:
        for effect in replica.core.step(event, self.queue.now_ms):
            match effect:
                case do.RunBatch():
                    self.engine.run(replica, effect)
                case do.CancelRows():
                    self.engine.cancel(effect.batch_id, effect.names)
                case do.AbandonBatch():
                    self.engine.batches.pop(effect.batch_id, None)
                case do.AwaitEngine():
                    replica.inbox.append(on.EngineReady(effect.deployment.name))
                case _:
                    replica.writes.append(effect)

    def _write(self, replica: Replica) -> None:
        effect, epoch = replica.writes.popleft(), replica.core.epoch
        try:
            match effect:
                case do.RecordDecision():
                    self.queue.record(epoch, effect.decision_id, effect.record)
                case do.BeginAttempts():
                    answers = self.queue.dispatch(epoch, effect.rows)
                    replica.inbox.append(on.AttemptsBegun(effect.batch_id, tuple(answers)))
                case do.AppendEvents():
                    assert all(self.queue.append(epoch, effect.rows)), "an owner's event was not taken"
                case do.FinishQueries():
                    for row, answer in zip(effect.rows, self.queue.finish(epoch, effect.rows), strict=True):
                        assert answer == "ok", answer
                        self.outcomes_written[row.name] = self.outcomes_written.get(row.name, 0) + 1
                case do.AcknowledgeEntry():
                    self.queue.acknowledge(effect.entry_id)
        except FencedError:
            replica.fenced = True

    # --- the end ---

    def settle(self, rounds: int = 20_000) -> None:
        """Let everything happen fairly, without further mishaps, until nothing is left to do."""
        for _ in range(rounds):
            self.take()
            for replica in self.replicas:
                while replica.writes and not replica.fenced:
                    self._write(replica)
                while replica.inbox and not replica.fenced:
                    self._step(replica, replica.inbox.popleft())
            self.produce()
            self.tick()
            if not self.queue.entries and not self.owner.writes and not self.owner.inbox:
                return
        raise AssertionError(f"not settled: {self.queue.entries}")

    def check(self) -> None:
        """Every query one outcome, none lost, none twice; concatenated deltas equal the outcome's text.

        Every query that failed has one dead letter with all its attempts and its payload, no other query has any.
        """
        from uellm.v1.query_pb2 import QUERY_STATE_COMPLETED, QUERY_STATE_FAILED

        letters = {letter.name: letter for letter in self.queue.dead_letters}
        assert len(letters) == len(self.queue.dead_letters), "a query has two dead letters"
        failed = {name for name, record in self.queue.records.items() if record.state == QUERY_STATE_FAILED}
        assert set(letters) == failed
        for name, letter in letters.items():
            outcome = self.queue.records[name].outcome
            assert [attempt.attempt for attempt in letter.attempts] == list(range(1, outcome.dispatch_count + 1))
            assert all(attempt.failure.reason and attempt.batch_id for attempt in letter.attempts)
            assert letter.failure == outcome.failure
            assert (letter.record, letter.entry) == (self.submitted[name].record, self.submitted[name].entry)
        assert self.queue.depth == 0
        assert not self.queue.entries
        for name in self.submitted:
            record = self.queue.records[name]
            assert record.outcome is not None, f"{name} was lost"
            assert self.outcomes_written[name] == 1
            delivered = progress_of(record.events)
            assert delivered.text == record.outcome.text
            assert len(delivered.token_ids) == record.outcome.output_tokens
            expected = answer_of(name)
            if record.outcome.state == QUERY_STATE_COMPLETED:
                assert list(delivered.token_ids) == expected
                assert record.outcome.text == text_of(expected)
            else:
                assert list(delivered.token_ids) == expected[: len(delivered.token_ids)]
