"""Micro-batches: every prompt is answered once with its own result, bounds are kept, nobody is starved."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from uellm_profiler.adapters.micro_batch import MicroBatcher
from uellm_profiler.domain.micro_batch import BatchLimits, Call, PromptQueue, Throughput, WaitingPrompt
from uellm_profiler.domain.predictor import PredictorInput, Urgency

from tests.support.length_model import HashModel, expected, prompt
from uellm.rpc.errors import RefusedError

INTERACTIVE, BULK = Urgency.INTERACTIVE, Urgency.BULK
LIMITS = BatchLimits(
    prompts=4, tokens=400, read_tokens=200, interactive_waiting=12, bulk_waiting=20, bulk_patience_seconds=5
)
MODELS = (HashModel("a"), HashModel("b"))

Step = tuple[str, int, Urgency, Sequence[int]]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["add", "add", "take", "take", "remove", "wait"]),
        st.integers(0, 30),
        st.sampled_from([INTERACTIVE, BULK]),
        st.lists(st.sampled_from([1, 20, 40, 60, 90, 130, 250, 5_000]), min_size=1, max_size=9),
    ),
    max_size=60,
)


class History:
    """Drives a queue and checks every batch."""

    def __init__(self) -> None:
        self.queue = PromptQueue(LIMITS)
        self.now = 0.0
        self.calls: list[Call] = []
        self.waiting: list[tuple[Call, int]] = []
        self.taken: list[tuple[Call, int]] = []
        self.delays: dict[tuple[Call, int], int] = {}
        """Bulk batches that ran while an interactive prompt waited."""
        self.running: Urgency | None = None

    def add(self, model: int, urgency: Urgency, tokens: Sequence[int]) -> None:
        excess = self.queue.excess(urgency, len(tokens))
        before = sum(call.urgency is urgency for call, _ in self.waiting)
        assert excess == max(0, before + len(tokens) - LIMITS.waiting(urgency))
        if excess:
            return
        call = Call(MODELS[model % 2], [prompt("p", size) for size in tokens], urgency, self.now)
        self.queue.add(call)
        self.calls.append(call)
        for index in range(len(tokens)):
            self.waiting.append((call, index))
            self.delays[call, index] = int(urgency is INTERACTIVE and self.running is BULK)

    def take(self) -> list[WaitingPrompt]:
        batch = self.queue.take(self.now)
        self.running = batch[0].call.urgency if batch else None
        if not batch:
            assert not self.waiting
            return batch
        self._check(batch)
        for one in batch:
            self.waiting.remove((one.call, one.index))
            self.taken.append((one.call, one.index))
        if self.running is BULK:
            for key in self.waiting:
                self.delays[key] += key[0].urgency is INTERACTIVE
        return batch

    def remove(self, number: int) -> None:
        if self.calls:
            call = self.calls[number % len(self.calls)]
            self.queue.remove(call)
            self.waiting = [key for key in self.waiting if key[0] is not call]

    def _check(self, batch: Sequence[WaitingPrompt]) -> None:
        assert len({(one.call.urgency, one.call.model) for one in batch}) == 1
        keys = [(one.call, one.index) for one in batch]
        assert len(set(keys)) == len(keys) <= LIMITS.prompts
        assert set(keys) <= set(self.waiting)
        oldest = next(key for key in self.waiting if key[0].urgency is batch[0].call.urgency)
        assert oldest in keys, "the one that has waited longest is part of it"
        sizes = [min(max(one.input.prompt_tokens, 32), LIMITS.read_tokens) for one in batch]
        assert max(sizes) <= 2 * min(sizes), "padding is small"
        assert len(batch) == 1 or max(sizes) * len(batch) <= LIMITS.tokens


@settings(max_examples=150, deadline=None)
@given(steps=STEPS)
def test_every_history_keeps_the_laws(steps: list[Step]) -> None:
    history = History()
    for action, number, urgency, tokens in steps:
        if action == "add":
            history.add(number, urgency, tokens)
        elif action == "take":
            history.take()
        elif action == "remove":
            history.remove(number)
        else:
            history.now += number
        for kind in Urgency:
            assert history.queue.waiting(kind) == sum(call.urgency is kind for call, _ in history.waiting)
    while history.take():
        pass
    assert history.waiting == []
    assert len(history.taken) == len(set(history.taken))
    assert max(history.delays.values(), default=0) <= 1, "an interactive prompt waits for one bulk batch at most"


def test_bulk_prompts_are_not_starved_by_interactive_ones() -> None:
    history = History()
    history.add(0, BULK, [40] * 9)
    bulk_times = []
    for _ in range(40):
        history.add(0, INTERACTIVE, [40] * 3)
        if history.take()[0].call.urgency is BULK:
            bulk_times.append(history.now)
        history.now += 1.0
    assert len(bulk_times) == 3
    assert bulk_times[0] >= LIMITS.bulk_patience_seconds
    assert all(later - sooner >= LIMITS.bulk_patience_seconds for sooner, later in itertools.pairwise(bulk_times))


def test_prompts_of_similar_length_go_together() -> None:
    queue = PromptQueue(replace(LIMITS, tokens=4_000))
    queue.add(Call(MODELS[0], [prompt("p", size) for size in (60, 200, 70, 190, 50, 180, 65)], INTERACTIVE, 0))
    batches = [[one.input.prompt_tokens for one in batch] for batch in iter(lambda: queue.take(0), [])]
    assert batches == [[50, 60, 65, 70], [180, 190, 200]]


def test_the_measured_rate() -> None:
    rate = Throughput()
    assert rate.seconds_for(10) is None
    rate.observe(10, 1.0)
    assert rate.seconds_for(20) == pytest.approx(2.0)
    for _ in range(50):
        rate.observe(4, 1.0)
    assert rate.seconds_for(20) == pytest.approx(5.0, rel=0.01)


@pytest.fixture
async def batcher() -> AsyncIterator[MicroBatcher]:
    batcher = MicroBatcher(LIMITS)
    yield batcher
    batcher.close()


async def held(batcher: MicroBatcher, model: HashModel) -> asyncio.Task[object]:
    """A batch that is being computed, and held there."""
    model.hold()
    task: asyncio.Task[object] = asyncio.create_task(batcher.predict(model, [prompt("first")], INTERACTIVE))
    await asyncio.to_thread(model.entered)
    return task


async def settle() -> None:
    """Let what was just begun get as far as it can."""
    for _ in range(5):
        await asyncio.sleep(0)


def contents(batch: Sequence[PredictorInput]) -> list[str]:
    return [one.content for one in batch]


async def test_what_comes_up_meanwhile_is_one_batch(batcher: MicroBatcher) -> None:
    model = HashModel()
    first = await held(batcher, model)
    others = [asyncio.create_task(batcher.predict(model, [prompt(f"p{i}")], INTERACTIVE)) for i in range(4)]
    await settle()
    model.release()
    for i, other in enumerate(others):
        prediction = await other
        assert (prediction.version, list(prediction.lengths)) == ("fast/1", [expected(f"p{i}", 100)])
    await first
    assert [len(batch) for batch in model.batches] == [1, 4]
    assert sorted(contents(model.batches[1])) == ["p0", "p1", "p2", "p3"]
    assert model.threads.isdisjoint({threading.get_ident()})
    assert len(model.threads) == 1


async def test_calls_of_one_turn_of_the_loop_go_together(batcher: MicroBatcher) -> None:
    model = HashModel()
    await asyncio.gather(*(batcher.predict(model, [prompt(f"p{i}")], INTERACTIVE) for i in range(4)))
    assert [len(batch) for batch in model.batches] == [4]


async def test_interactive_calls_go_before_bulk(batcher: MicroBatcher) -> None:
    model = HashModel()
    first = await held(batcher, model)
    bulk = asyncio.create_task(batcher.predict(model, [prompt(f"b{i}") for i in range(8)], BULK))
    await settle()
    submit = asyncio.create_task(batcher.predict(model, [prompt("s")], INTERACTIVE))
    await settle()
    model.release()
    await asyncio.gather(first, bulk, submit)
    assert [contents(batch)[0][0] for batch in model.batches] == ["f", "s", "b", "b"]
    assert bulk.result().lengths == [expected(f"b{i}", 100) for i in range(8)]


async def test_overload_is_refused_with_a_delay_from_the_measured_rate(batcher: MicroBatcher) -> None:
    model = HashModel()
    first = await held(batcher, model)
    waiting = [asyncio.create_task(batcher.predict(model, [prompt("w")], INTERACTIVE)) for _ in range(12)]
    await settle()
    with pytest.raises(RefusedError) as refused:
        await batcher.predict(model, [prompt("x")], INTERACTIVE)
    assert (refused.value.reason, refused.value.code) == ("PREDICTOR_OVERLOADED", "RESOURCE_EXHAUSTED")
    detail = refused.value.refusal.predictor_overloaded
    assert (detail.waiting, detail.limit, detail.retry_after.ToMilliseconds()) == (12, 12, 1_000)
    bulk = asyncio.create_task(batcher.predict(model, [prompt("b")] * 20, BULK))
    await settle()
    model.release()
    await asyncio.gather(first, bulk, *waiting)
    assert all("x" not in contents(batch) for batch in model.batches)
    for _ in range(100):
        batcher._throughput.observe(prompts=1, seconds=0.5)
    first = await held(batcher, model)
    waiting = [asyncio.create_task(batcher.predict(model, [prompt("w")], INTERACTIVE)) for _ in range(12)]
    await settle()
    for urgency, prompts, seconds in ((INTERACTIVE, 3, 1.5), (BULK, 24, 8.0)):
        with pytest.raises(RefusedError) as refused:
            await batcher.predict(model, [prompt("x")] * prompts, urgency)
        delay = refused.value.refusal.predictor_overloaded.retry_after.ToMilliseconds()
        assert delay == pytest.approx(1_000 * seconds, rel=0.01), "what must go first, at half a second each"
    model.release()
    await asyncio.gather(first, *waiting)


async def test_prompts_of_callers_that_left_are_not_computed(batcher: MicroBatcher) -> None:
    model = HashModel()
    first = await held(batcher, model)
    gone = asyncio.create_task(batcher.predict(model, [prompt("gone")] * 12, INTERACTIVE))
    await settle()
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    stays = asyncio.create_task(batcher.predict(model, [prompt("stays")] * 12, INTERACTIVE))
    await settle()
    first.cancel()
    model.release()
    assert (await stays).lengths == [expected("stays", 100)] * 12
    assert not any("gone" in contents(batch) for batch in model.batches)


async def test_a_prompt_on_which_the_model_fails_fails_alone(batcher: MicroBatcher) -> None:
    model = HashModel()
    calls = [[prompt("a")], [prompt("poison"), prompt("b")], [prompt("c")]]
    results = await asyncio.gather(
        *(batcher.predict(model, call, INTERACTIVE) for call in calls), return_exceptions=True
    )
    assert isinstance(results[1], ValueError)
    assert [getattr(results[i], "lengths", None) for i in (0, 2)] == [[expected("a", 100)], [expected("c", 100)]]
    assert (await batcher.predict(model, [prompt("d")], INTERACTIVE)).lengths == [expected("d", 100)]


async def test_a_model_that_answers_too_few_is_an_error(batcher: MicroBatcher) -> None:
    class Short(HashModel):
        def predict(self, prompts: Sequence[PredictorInput]) -> list[object]:  # type: ignore[override]
            return []

    with pytest.raises(RuntimeError, match="gave 0 lengths for 1 prompts"):
        await batcher.predict(Short(), [prompt("a")], INTERACTIVE)  # type: ignore[arg-type]


async def test_a_call_keeps_the_model_that_it_began_with(batcher: MicroBatcher) -> None:
    old, new = HashModel("old"), HashModel("new")
    first = await held(batcher, old)
    before = asyncio.create_task(batcher.predict(old, [prompt("p")] * 6, INTERACTIVE))
    await settle()
    after = asyncio.create_task(batcher.predict(new, [prompt("p")] * 2, INTERACTIVE))
    await settle()
    old.release()
    await first
    for task, version, count in ((before, "old", 6), (after, "new", 2)):
        prediction = await task
        assert prediction.version == f"fast/{version}"
        assert prediction.lengths == [expected("p", 100, version)] * count


CALLS = st.lists(
    st.tuples(
        st.integers(0, 6),  # turns of the loop before it
        st.sampled_from([INTERACTIVE, BULK]),
        st.lists(st.sampled_from([1, 40, 90, 250]), max_size=8),
        st.booleans(),  # whether its caller leaves
        st.integers(0, 1),  # model
    ),
    max_size=25,
)


@settings(max_examples=40, deadline=None)
@given(calls=CALLS)
def test_every_call_gets_its_own_answers_once(calls: list[tuple[int, Urgency, list[int], bool, int]]) -> None:
    models = (HashModel("a"), HashModel("b"))

    async def call(batcher: MicroBatcher, number: int) -> None:
        turns, urgency, tokens, _, which = calls[number]
        for _ in range(turns):
            await asyncio.sleep(0)
        prompts = [prompt(f"{number}/{index}", size, 50 + index) for index, size in enumerate(tokens)]
        prediction = await batcher.predict(models[which], prompts, urgency)
        version = models[which].version
        assert prediction.version == f"fast/{version}"
        assert prediction.lengths == [expected(one.content, one.limit_tokens, version) for one in prompts]

    async def run() -> None:
        batcher = MicroBatcher(LIMITS)
        tasks = [asyncio.create_task(call(batcher, number)) for number in range(len(calls))]
        await asyncio.sleep(0)
        for task, (_, _, _, leaves, _) in zip(tasks, calls, strict=True):
            if leaves:
                task.cancel()
        results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 30)
        for result, (_, _, _, leaves, _) in zip(results, calls, strict=True):
            assert (
                result is None
                or isinstance(result, RefusedError)
                or (leaves and result.__class__.__name__ == "CancelledError")
            )
        batcher.close()

    asyncio.run(run())
    computed = [one.content for model in models for batch in model.batches for one in batch]
    assert len(computed) == len(set(computed)), "nothing is computed twice"
    assert all(len(batch) <= LIMITS.prompts for model in models for batch in model.batches)
