"""Nonsense in requests and in Redis: answered precisely, or put aside; the services go on."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import grpc
import pytest
import redis as redis_py
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.support.faults import Service, scheduler, service
from tests.support.nonsense import entries, raw_entries, raw_requests, with_unknown_field
from tests.support.stack import MODEL, make_submission, record_of
from tests.support.tiny_model import make_tokenizer
from uellm.local.process import free_port
from uellm.local.redis import EmbeddedRedis
from uellm.messaging.clock import timestamp
from uellm.messaging.keys import DEPLOYMENTS, GROUP, MODELS, QUEUES, ModelKeys, query_keys, tenant_of
from uellm.messaging.queries import Submission
from uellm.v1 import profiler_pb2, query_pb2, scheduler_pb2, stream_pb2
from uellm.v1.profiler_pb2_grpc import ProfilerServiceStub
from uellm.v1.scheduler_pb2_grpc import SchedulerServiceStub

KEYS = ModelKeys(MODEL)
FUZZ = settings(
    max_examples=50,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    phases=[
        Phase.explicit,
        Phase.generate,
    ],  # an example that is smaller says no more: the service is what it is by then
)
LIMIT_SECONDS = 20.0
CALLERS_FAULT = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
}


@dataclass
class Fuzzed:
    """Real services on a real Redis; the model's engine is away."""

    redis: Any
    scheduler: Service
    profiler: Service
    record: stream_pb2.DeploymentRecord
    canaries: int = 0

    def publish(self) -> None:
        seconds, microseconds = self.redis.time()
        self.record.publish_time.CopyFrom(timestamp(seconds * 1000 + microseconds // 1000))
        self.redis.sadd(MODELS, MODEL)
        self.redis.sadd(QUEUES, MODEL)
        self.redis.hset(DEPLOYMENTS, self.record.name, self.record.SerializeToString())

    def put(self, made: Submission) -> str:
        """A query as the profiler writes it; returns its name."""
        keys = query_keys(made.name)
        parts = (made.record.SerializeToString(), b"", made.entry.SerializeToString(), b"")
        script = self.redis.register_script((files("uellm.messaging.scripts") / "submit.lua").read_text("utf-8"))
        tenant, query = tenant_of(made.name), made.name.rpartition("/")[2]
        answer = script(
            [keys.record, KEYS.queue, KEYS.depth, keys.events, KEYS.queries(tenant), KEYS.outcomes(tenant)],
            [made.body_hash, *parts, 10_000, 1, query, 1_000, MODEL],
        )
        assert answer[0] == b"created"
        return made.name

    def outcome(self, name: str) -> query_pb2.Outcome:
        """The query's outcome, which must come."""
        until(lambda: self.redis.hexists(query_keys(name).record, "outcome"))
        return query_pb2.Outcome.FromString(self.redis.hget(query_keys(name).record, "outcome"))

    def check_alive(self) -> None:
        """A good query goes its way through the same owner; nothing of the nonsense is left on the queue."""
        self.canaries += 1
        name = self.put(make_submission(f"canary-{self.canaries}", tokens=3))
        with grpc.insecure_channel(self.scheduler.address) as channel:
            SchedulerServiceStub(channel).CancelQuery(scheduler_pb2.CancelQueryRequest(name=name), timeout=5)
        assert self.outcome(name).state == query_pb2.QUERY_STATE_CANCELLED
        until(lambda: self.redis.xpending(KEYS.queue, GROUP)["pending"] == 0)
        assert self.redis.xlen(KEYS.queue) == 0
        assert int(self.redis.get(KEYS.depth)) == 0
        assert "Traceback" not in self.scheduler.process.log.read_text(errors="replace")


def until(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + LIMIT_SECONDS
    while not condition():
        assert time.monotonic() < end, "the condition did not come true in time"
        time.sleep(0.005)


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fuzzed]:
    folder = tmp_path_factory.mktemp("fuzz")
    make_tokenizer().save_pretrained(folder / "tokenizer")
    server = EmbeddedRedis(folder / "redis", free_port())
    one = scheduler(server.url, folder, "one")
    profiler = service("profiler", server.url, folder, "", "--predictor", "prior")
    record = record_of(f"127.0.0.1:{free_port()}")
    record.tokenizer_path = str(folder / "tokenizer")
    record.facts.vocabulary_size = 264
    record.state = stream_pb2.DEPLOYMENT_STATE_DRAINING  # queries wait
    server.start()
    try:
        server.wait_ready()
        with redis_py.Redis(port=server.port) as client:
            made = Fuzzed(client, one, profiler, record)
            made.publish()
            one.start()
            profiler.start()
            one.process.wait_ready(60)
            profiler.process.wait_ready(60)
            until(lambda: client.get(KEYS.owner) == b"one")
            yield made
    finally:
        one.process.stop()
        profiler.process.stop()
        server.stop()


@FUZZ
@given(batch=st.lists(raw_entries(), min_size=1, max_size=20))
def test_nonsense_on_the_queue_is_put_aside(fuzzed: Fuzzed, batch: list[dict[bytes, bytes]]) -> None:
    fuzzed.publish()
    for fields in batch:
        fuzzed.redis.xadd(KEYS.queue, fields)
    fuzzed.check_alive()


@FUZZ
@given(entry=entries(), number=st.integers(0, 2**62))
def test_a_query_whose_entry_makes_no_sense_has_an_outcome_all_the_same(
    fuzzed: Fuzzed, entry: stream_pb2.ProfiledQuery, number: int
) -> None:
    fuzzed.publish()
    made = make_submission(f"odd-{number}-{fuzzed.canaries}", tokens=3)
    entry.name = made.name
    name = fuzzed.put(Submission(made.name, made.body_hash, made.record, entry))
    with grpc.insecure_channel(fuzzed.scheduler.address) as channel:
        SchedulerServiceStub(channel).CancelQuery(scheduler_pb2.CancelQueryRequest(name=name), timeout=5)
    outcome = fuzzed.outcome(name)
    if outcome.state == query_pb2.QUERY_STATE_FAILED:
        assert outcome.failure.reason == "ENTRY_INVALID"
        assert outcome.failure.message
    else:
        assert outcome.state == query_pb2.QUERY_STATE_CANCELLED
    fuzzed.check_alive()


def test_fields_of_a_later_version_change_nothing(fuzzed: Fuzzed) -> None:
    made = make_submission("unknown-field", tokens=3)
    entry = stream_pb2.ProfiledQuery.FromString(with_unknown_field(made.entry))
    name = fuzzed.put(Submission(made.name, made.body_hash, made.record, entry))
    with grpc.insecure_channel(fuzzed.scheduler.address) as channel:
        SchedulerServiceStub(channel).CancelQuery(scheduler_pb2.CancelQueryRequest(name=name), timeout=5)
    assert fuzzed.outcome(name).state == query_pb2.QUERY_STATE_CANCELLED


@FUZZ
@given(name=st.binary(max_size=20), value=st.binary(max_size=64), model=st.binary(min_size=1, max_size=20))
def test_nonsense_among_deployments_and_models_changes_nothing(
    fuzzed: Fuzzed, name: bytes, value: bytes, model: bytes
) -> None:
    fuzzed.publish()
    fuzzed.redis.hset(DEPLOYMENTS, name, value)
    fuzzed.redis.sadd(QUEUES, model)
    try:
        # The followers' next round, and the one after it.
        epoch = fuzzed.redis.get(KEYS.owner_epoch)
        fuzzed.check_alive()
        assert fuzzed.redis.get(KEYS.owner_epoch) == epoch
    finally:
        fuzzed.redis.hdel(DEPLOYMENTS, name)
        fuzzed.redis.srem(QUEUES, model)


def test_the_followers_still_follow(fuzzed: Fuzzed) -> None:
    """After all of that: a bad name, and then a change that must be seen."""
    fuzzed.redis.hset(DEPLOYMENTS, b"\xff\xfe", b"\xff")
    fuzzed.redis.sadd(QUEUES, b"\xff\xfe")
    fuzzed.redis.delete(KEYS.owner)
    until(lambda: fuzzed.redis.get(KEYS.owner) == b"one")
    fuzzed.record.state = stream_pb2.DEPLOYMENT_STATE_DELETING
    fuzzed.publish()
    acknowledged = f"{stream_pb2.DEPLOYMENT_STATE_DELETING}:0".encode()
    until(lambda: fuzzed.redis.hget(KEYS.running, fuzzed.record.name) == acknowledged)
    fuzzed.record.state = stream_pb2.DEPLOYMENT_STATE_DRAINING
    fuzzed.publish()


def test_an_entry_that_somebody_else_read_is_not_lost(fuzzed: Fuzzed) -> None:
    """As a former owner does whose blocked read is answered after the takeover."""

    def nobody_reads() -> bool:
        return not any("b" in client["flags"] for client in fuzzed.redis.client_list())

    fuzzed.scheduler.signal(signal.SIGSTOP)
    try:
        until(nobody_reads)
        name = fuzzed.put(make_submission("stolen", tokens=3))
        assert fuzzed.redis.xreadgroup(GROUP, "former", {KEYS.queue: ">"})
    finally:
        fuzzed.scheduler.signal(signal.SIGCONT)
    until(lambda: fuzzed.redis.xpending(KEYS.queue, GROUP)["consumers"] == [{"name": b"one", "pending": 1}])
    with grpc.insecure_channel(fuzzed.scheduler.address) as channel:
        SchedulerServiceStub(channel).CancelQuery(scheduler_pb2.CancelQueryRequest(name=name), timeout=10)
    assert fuzzed.outcome(name).state == query_pb2.QUERY_STATE_CANCELLED


@FUZZ
@given(fields=st.dictionaries(st.sampled_from([b"e", b"x"]), st.binary(max_size=40), min_size=1))
def test_nonsense_in_an_event_stream_ends_only_its_own_watch(fuzzed: Fuzzed, fields: dict[bytes, bytes]) -> None:
    fuzzed.canaries += 1
    name = fuzzed.put(make_submission(f"watched-{fuzzed.canaries}", tokens=3))
    fuzzed.redis.xadd(query_keys(name).events, fields)
    with grpc.insecure_channel(fuzzed.scheduler.address) as channel:
        stub = SchedulerServiceStub(channel)
        stub.CancelQuery(scheduler_pb2.CancelQueryRequest(name=name), timeout=5)
        request = scheduler_pb2.WatchRequest(targets=[scheduler_pb2.WatchTarget(name=name)])
        responses = list(stub.Watch(request, timeout=10))
    assert responses[-1].event.outcome.state == query_pb2.QUERY_STATE_CANCELLED
    fuzzed.check_alive()


SCHEDULER_METHODS = ["GetQuery", "CancelQuery", "GetQueue", "ListPolicies", "ListQueries", "ExplainQuery"]
SCHEDULER_METHODS += ["ListDeadLetters", "ReplayDeadLetter", "SetPolicy", "Watch"]
PROFILER_METHODS = ["Profile", "BatchProfile", "Submit", "DescribePredictor", "SubmitStream"]


@settings(parent=FUZZ, max_examples=60)
@given(raw=raw_requests(), methods=st.tuples(st.sampled_from(SCHEDULER_METHODS), st.sampled_from(PROFILER_METHODS)))
def test_nonsense_in_requests_is_the_callers_fault(fuzzed: Fuzzed, raw: bytes, methods: tuple[str, str]) -> None:
    fuzzed.publish()
    sides = [(fuzzed.scheduler, f"/uellm.v1.SchedulerService/{methods[0]}")]
    sides += [(fuzzed.profiler, f"/uellm.v1.ProfilerService/{methods[1]}")]
    for where, method in sides:
        with grpc.insecure_channel(where.address) as channel:
            code, details = _call(channel, method, raw)
        assert code in CALLERS_FAULT, f"{method}: {code} {details}"


def _call(channel: grpc.Channel, method: str, raw: bytes) -> tuple[grpc.StatusCode, str]:
    many = method.endswith("SubmitStream")
    call = channel.stream_stream(method) if many else channel.unary_stream(method)
    responses = call(iter([raw]) if many else raw, timeout=5)  # type: ignore[arg-type]
    try:
        for _ in responses:
            pass
    except grpc.RpcError as error:
        return error.code(), error.details()
    return grpc.StatusCode.OK, ""


def test_both_services_have_outlived_it(fuzzed: Fuzzed) -> None:
    for one in (fuzzed.scheduler, fuzzed.profiler):
        assert one.process.running
        assert "Traceback" not in one.process.log.read_text(errors="replace")
    with grpc.insecure_channel(fuzzed.profiler.address) as channel:
        request = profiler_pb2.DescribePredictorRequest()
        assert ProfilerServiceStub(channel).DescribePredictor(request, timeout=5).kind == "prior"
