"""Profile and Submit against the queue's semantics in memory."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest
from google.protobuf.duration_pb2 import Duration
from uellm_profiler.app.ports import EncodedPrompt, PromptError
from uellm_profiler.app.profile import Profiler
from uellm_profiler.app.submit import Submitter, body_hash
from uellm_profiler.domain import refusals
from uellm_profiler.domain.predictor import Prediction, PredictorInput, Urgency
from uellm_profiler.domain.prior import StatisticalPrior

from uellm.cost.steps import StepTime
from uellm.messaging.clock import timestamp
from uellm.messaging.memory import MemoryQueue
from uellm.messaging.queries import Accepted, Conflict, Full, Submission
from uellm.rpc.errors import AlreadyExistsError, InvalidArgumentError, RefusedError, UnavailableError
from uellm.rpc.validation import ModelName
from uellm.v1.query_pb2 import GenerationParameters, Query, Slo, TokenIds
from uellm.v1.stream_pb2 import (
    DEPLOYMENT_STATE_DRAINING,
    DEPLOYMENT_STATE_READY,
    Backlog,
    DeploymentRecord,
    EngineLimits,
    ModelFacts,
)

PARENT = ModelName("acme", "m")


@dataclass
class Deployments:
    records: list[DeploymentRecord]

    def of_model(self, model: str) -> list[DeploymentRecord]:
        return [record for record in self.records if record.model == model]

    def ready(self, model: str) -> list[DeploymentRecord]:
        return [record for record in self.of_model(model) if record.state == DEPLOYMENT_STATE_READY]


class Words:
    """Every word is a token; notes the folders it was asked for."""

    def __init__(self) -> None:
        self.folders: list[str] = []

    async def encode(self, folder: str, query: Query) -> EncodedPrompt:
        self.folders.append(folder)
        if query.prompt == "broken":
            raise UnavailableError("the tokenizer can't be read")
        if query.prompt == "refused":
            raise PromptError("prompt", "the template refuses it")
        ids = list(query.prompt_token_ids.ids) or [len(word) for word in query.prompt.split()]
        return EncodedPrompt(query.prompt, ids)


@dataclass
class Queue:
    memory: MemoryQueue = field(default_factory=MemoryQueue)
    submissions: list[Submission] = field(default_factory=list)

    async def submit(self, submission: Submission, depth_limit: int) -> Accepted | Conflict | Full:
        answer = self.memory.submit(submission, depth_limit)
        if isinstance(answer, Accepted) and answer.created:
            self.submissions.append(submission)
        return answer


@dataclass
class Backlogs:
    published: dict[str, Backlog] = field(default_factory=dict)

    async def read(self, model: str) -> Backlog | None:
        return self.published.get(model)


class Clock:
    def now_ms(self) -> int:
        return 1_000_000


def deployment(name: str = "a", share: float = 1.0, state: int = DEPLOYMENT_STATE_READY) -> DeploymentRecord:
    return DeploymentRecord(
        name=f"deployments/{name}",
        model="m",
        state=state,  # type: ignore[arg-type]
        facts=ModelFacts(context_limit_tokens=64, kv_bytes_per_token=10, vocabulary_size=1_000),
        limits=EngineLimits(context_tokens=32, max_output_tokens=16),
        tokenizer_path=f"folder-{name}",
        step_time_prior=StepTime(0.1, 0, 0, 0, 0).to_prior("measured"),
        traffic_share=share,
    )


class World:
    def __init__(self, records: Sequence[DeploymentRecord] = (), queue_limit: int = 3) -> None:
        self.deployments = Deployments(list(records) or [deployment()])
        self.tokenizer = Words()
        self.queue = Queue()
        self.backlogs = Backlogs()
        counter = itertools.count(1)
        self.profiler = Profiler(
            self.deployments, self.tokenizer, StatisticalPrior(), StatisticalPrior(), new_seed=lambda: 77
        )
        self.submitter = Submitter(
            self.profiler, self.queue, self.backlogs, Clock(), queue_limit, new_id=lambda: f"made-{next(counter)}"
        )

    async def submit(self, query: Query, query_id: str = "", trace_parent: str = "") -> Accepted:
        return (await self.submitter.submit(PARENT, query_id, query, trace_parent)).accepted


async def test_an_accepted_query_is_complete() -> None:
    world = World()
    query = Query(
        prompt="one two three",
        slo=Slo(completion=Duration(seconds=9)),
        priority=4,
        prefix_hash="h",
        generation=GenerationParameters(max_output_tokens=8),
    )
    submitted = await world.submitter.submit(PARENT, "", query, "00-trace")
    (written,) = world.queue.submissions
    assert submitted.name == written.name == "tenants/acme/models/m/queries/made-1"
    record, entry = written.record, written.entry
    assert (record.schema_version, entry.schema_version) == (1, 1)
    assert list(record.prompt_token_ids.ids) == [3, 3, 5]
    assert record.query.name == entry.name == submitted.name
    assert (record.query.generation.max_output_tokens, record.query.generation.seed) == (8, 77)
    assert entry.profile.prompt_tokens == 3
    assert entry.profile.output_length.limit_tokens == 8
    assert entry.profile.kv_cache_bytes_limit == 110
    assert entry.profile.predictor_version == "prior/1"
    assert (entry.trace_parent, entry.priority, entry.prefix_hash) == ("00-trace", 4, "h")
    assert entry.slo.completion.seconds == 9
    assert submitted.accepted.profile == entry.profile


async def test_same_id_and_body_is_the_same_query() -> None:
    world = World()
    first = await world.submit(Query(prompt="p"), "q")
    second = await world.submit(Query(prompt="p", name="ignored"), "q")
    assert (first.created, second.created) == (True, False)
    assert (first.entry_id, first.profile) == (second.entry_id, second.profile)
    assert world.queue.memory.depth == 1


async def test_same_id_and_other_body_is_a_conflict() -> None:
    world = World()
    await world.submit(Query(prompt="p"), "q")
    with pytest.raises(AlreadyExistsError, match="take another query_id"):
        await world.submit(Query(prompt="other"), "q")
    with pytest.raises(AlreadyExistsError):
        await world.submit(Query(prompt="p", generation=GenerationParameters(seed=77)), "q")
    assert world.queue.memory.depth == 1


@pytest.mark.parametrize("cause", ["queue", "model", "context"])
async def test_what_was_accepted_stays_accepted(cause: str) -> None:
    world = World(queue_limit=1)
    query = Query(prompt="one two three")
    first = await world.submit(query, "q")
    if cause == "model":
        world.deployments.records.clear()
    if cause == "context":
        world.deployments.records[0].limits.context_tokens = 2
    again = await world.submit(query, "q")
    assert (again.entry_id, again.created) == (first.entry_id, False)
    if cause != "queue":
        with pytest.raises(AlreadyExistsError):
            await world.submit(Query(prompt="one two three four"), "q")
        with pytest.raises(RefusedError):
            await world.submit(query, "another")


async def test_a_full_queue_refuses_with_numbers() -> None:
    world = World(queue_limit=2)
    for _ in range(2):
        await world.submit(Query(prompt="p"))
    with pytest.raises(RefusedError) as full:
        await world.submit(Query(prompt="p"))
    detail = full.value.refusal.queue_full
    assert (full.value.reason, detail.depth, detail.limit, detail.retry_after.seconds) == ("QUEUE_FULL", 2, 2, 1)
    world.backlogs.published["m"] = Backlog(queued=2, work_p50=Duration(seconds=14), publish_time=timestamp(999_900))
    with pytest.raises(RefusedError) as full:
        await world.submit(Query(prompt="p"))
    assert full.value.refusal.queue_full.retry_after.seconds == 7
    assert world.queue.memory.depth == 2


@pytest.mark.parametrize(
    ("query", "error", "text"),
    [
        (Query(prompt=" ".join("x" * 32)), RefusedError, "32 tokens, the model accepts 31"),
        (Query(prompt_token_ids=TokenIds(ids=[1] * 32)), RefusedError, "the model accepts 31"),
        (Query(prompt_token_ids=TokenIds(ids=[1, 1_000])), InvalidArgumentError, "must be below 1,000"),
        (Query(prompt="p", adapter="lora"), InvalidArgumentError, "query.adapter: must be empty"),
        (Query(prompt="refused"), InvalidArgumentError, "query.prompt: the template refuses it"),
        (Query(prompt="broken"), UnavailableError, "can't be read"),
    ],
    ids=["long", "long-ids", "vocabulary", "adapter", "template", "tokenizer"],
)
async def test_a_refusal_leaves_no_trace(query: Query, error: type[Exception], text: str) -> None:
    world = World()
    for query_id in ("", "q"):
        with pytest.raises(error, match=text):
            await world.submit(query, query_id)
    assert world.queue.memory == MemoryQueue()


async def test_a_prompt_of_all_but_one_token_gets_one_token() -> None:
    world = World()
    accepted = await world.submit(Query(prompt=" ".join("x" * 31)))
    assert accepted.profile.output_length.limit_tokens == 1


async def test_a_draining_deployment_takes_nothing() -> None:
    world = World([deployment(state=DEPLOYMENT_STATE_DRAINING)])
    with pytest.raises(RefusedError, match="deployments/a is DRAINING"):
        await world.submit(Query(prompt="p"))


async def test_the_tokenizer_of_the_largest_share_is_used() -> None:
    world = World([deployment("a", 0.2), deployment("b", 0.8)])
    await world.submit(Query(prompt="p"))
    assert world.tokenizer.folders == ["folder-b"]


async def test_a_batch_names_every_bad_query() -> None:
    world = World()
    queries = [Query(prompt="refused"), Query(prompt="good"), Query(prompt="refused")]
    with pytest.raises(InvalidArgumentError) as error:
        await world.profiler.profile("m", queries, ["queries[0]", "queries[1]", "queries[2]"])
    assert [violation.field for violation in error.value.violations] == ["queries[0].prompt", "queries[2].prompt"]


async def test_a_batch_is_answered_in_order() -> None:
    queries = [Query(prompt="x " * n) for n in (5, 1, 9)]
    profiled = await World().profiler.profile("m", queries, ["a", "b", "c"])
    assert [one.profile.prompt_tokens for one in profiled] == [5, 1, 9]


class Overloaded(StatisticalPrior):
    """A predictor whose queue has no room; notes how urgent its calls were."""

    version = "2"

    def __init__(self) -> None:
        self.urgencies: list[Urgency] = []

    async def predict(self, prompts: Sequence[PredictorInput], urgency: Urgency = Urgency.INTERACTIVE) -> Prediction:
        self.urgencies.append(urgency)
        raise refusals.predictor_overloaded(5, 5, 2.0)


async def test_the_prior_answers_for_an_overloaded_predictor_only_where_it_may() -> None:
    world = World()
    overloaded = Overloaded()
    profiler = replace(world.profiler, predictor=overloaded)
    submitter = replace(world.submitter, profiler=profiler)
    with pytest.raises(RefusedError) as refused:
        await submitter.submit(PARENT, "", Query(prompt="p"))
    assert refused.value.reason == "PREDICTOR_OVERLOADED"
    assert world.queue.memory == MemoryQueue()
    submitted = await submitter.submit(PARENT, "", Query(prompt="p"), allow_prior=True)
    assert submitted.accepted.profile.predictor_version == "prior/1"
    (profiled,) = await profiler.profile("m", [Query(prompt="p")], ["q"], urgency=Urgency.BULK, allow_prior=True)
    assert profiled.profile.predictor_version == "prior/1"
    assert overloaded.urgencies == [Urgency.INTERACTIVE, Urgency.INTERACTIVE, Urgency.BULK]
    with pytest.raises(RefusedError, match="Shorten it"):
        await submitter.submit(PARENT, "", Query(prompt=" ".join("x" * 32)), allow_prior=True)


async def test_parallel_submissions_of_one_id_are_one_query() -> None:
    world = World()
    accepted = await asyncio.gather(*(world.submit(Query(prompt="p"), "q") for _ in range(20)))
    assert sum(one.created for one in accepted) == 1
    assert len({one.entry_id for one in accepted}) == 1


def test_body_hash_depends_on_the_body_only() -> None:
    one, other = Query(prompt="p"), Query(prompt="p")
    for key in ("a", "b", "c"):
        one.labels[key] = key
    for key in ("c", "b", "a"):
        other.labels[key] = key
    other.name = "ignored"
    assert body_hash(one) == body_hash(other)
    other.priority = 1
    assert body_hash(one) != body_hash(other)
    assert one.name == ""
