"""A real server with a servicer that raises: what arrives at a client?"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
import redis.exceptions
import structlog
from google.protobuf.duration_pb2 import Duration
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from prometheus_client import REGISTRY

from uellm.rpc import errors
from uellm.rpc.channel import ClientTls, open_channel
from uellm.rpc.server import AddressError, ServerConfig, serve
from uellm.rpc.status import from_rpc_error
from uellm.v1 import profiler_pb2, profiler_pb2_grpc, query_pb2

SERVICE = "uellm.v1.ProfilerService"
ROOT = Path(__file__).resolve().parents[2]
FREE = "127.0.0.1:0"
TIMEOUT = 10.0

REFUSAL = query_pb2.Refusal(
    reason=query_pb2.REFUSAL_REASON_QUEUE_FULL,
    message="the queue of m is full",
    queue_full=query_pb2.QueueFull(depth=9, limit=9, retry_after=Duration(seconds=3)),
)
RAISED: dict[str, Exception] = {
    "invalid": errors.InvalidArgumentError([errors.FieldViolation("query.prompt", "must not be empty")]),
    "many": errors.InvalidArgumentError([errors.FieldViolation(f"queries[{i}]", "ü" * 300) for i in range(1_000)]),
    "missing": errors.NotFoundError("deployment", "deployments/x"),
    "exists": errors.AlreadyExistsError("query", "tenants/a/models/b/queries/c"),
    "state": errors.FailedPreconditionError("models/b", "is draining", reason="DRAINING"),
    "conflict": errors.AbortedError("the etag has changed"),
    "down": errors.UnavailableError("Triton does not answer", retry_after_seconds=2.5),
    "memory": errors.ResourceExhaustedError("gpu0", "has 3 bytes left", reason="NO_GPU_MEMORY"),
    "who": errors.UnauthenticatedError("a token is needed"),
    "may": errors.PermissionDeniedError("not your tenant"),
    "old": errors.OutOfRangeError("not kept any more", reason="CURSOR_TOO_OLD"),
    "late": errors.DeadlineExceededError("no time left"),
    "later": errors.UnimplementedError("not in this version"),
    "refused": errors.RefusedError(REFUSAL),
    "redis": redis.exceptions.ConnectionError("Error 111 connecting to 10.0.0.7:6379"),
    "redis-slow": redis.exceptions.TimeoutError("Timeout reading from 10.0.0.7:6379"),
    "bug": ZeroDivisionError("secret internals"),
}
"""What the servicer raises for a query of this id."""

CODES = {
    "invalid": "INVALID_ARGUMENT",
    "many": "INVALID_ARGUMENT",
    "missing": "NOT_FOUND",
    "exists": "ALREADY_EXISTS",
    "state": "FAILED_PRECONDITION",
    "conflict": "ABORTED",
    "down": "UNAVAILABLE",
    "memory": "RESOURCE_EXHAUSTED",
    "who": "UNAUTHENTICATED",
    "may": "PERMISSION_DENIED",
    "old": "OUT_OF_RANGE",
    "late": "DEADLINE_EXCEEDED",
    "later": "UNIMPLEMENTED",
    "refused": "RESOURCE_EXHAUSTED",
    "redis": "UNAVAILABLE",
    "redis-slow": "UNAVAILABLE",
    "bug": "INTERNAL",
}


class Raising(profiler_pb2_grpc.ProfilerServiceServicer):
    """Answers `Submit`, unless the query's id asks for an error; waits for ever for the id `wait`."""

    def __init__(self) -> None:
        self.waiting = asyncio.Event()
        self.outages = 0

    async def Profile(self, _request: Any, _context: Any) -> Any:
        if self.outages:
            self.outages -= 1
            raise RAISED["down"]
        return profiler_pb2.ProfileResponse()

    async def Submit(self, request: Any, context: Any) -> Any:
        if request.query_id in RAISED:
            raise RAISED[request.query_id]
        if request.query_id == "wait":
            self.waiting.set()
            await asyncio.Event().wait()
        if request.query_id == "abort":
            await context.abort(grpc.StatusCode.DATA_LOSS, "by hand")
        return profiler_pb2.SubmitResponse(name=f"{request.parent}/queries/{request.query_id}")

    async def SubmitStream(self, request_iterator: Any, context: Any) -> Any:
        async for request in request_iterator:
            answer = await self.Submit(request.submit, context)
            yield profiler_pb2.SubmitStreamResponse(correlation_id=request.correlation_id, accepted=answer)


@dataclass
class Running:
    """A server of this process."""

    target: str
    servicer: Raising
    stop: asyncio.Event
    task: asyncio.Task[None]
    happened: list[str] = field(default_factory=list)


@contextlib.asynccontextmanager
async def running(config: ServerConfig | None = None, ready: Callable | None = None) -> AsyncIterator[Running]:
    loop = asyncio.get_running_loop()
    started: asyncio.Future[int] = loop.create_future()
    servicer, stop, happened = Raising(), asyncio.Event(), []

    @contextlib.asynccontextmanager
    async def lifecycle() -> AsyncIterator[None]:
        happened.append("enter")
        yield
        happened.append("exit")

    task = asyncio.create_task(
        serve(
            config or ServerConfig(listen=FREE, shutdown_grace_seconds=0.2),
            [(profiler_pb2_grpc.add_ProfilerServiceServicer_to_server, servicer)],
            [SERVICE],
            lifecycle=lifecycle(),
            ready=ready,
            on_started=started.set_result,
            stop=stop,
        )
    )
    await asyncio.wait({task, started}, timeout=TIMEOUT, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        await task
    try:
        yield Running(f"127.0.0.1:{started.result()}", servicer, stop, task, happened)
    finally:
        stop.set()
        await asyncio.wait_for(task, TIMEOUT)


@pytest.fixture
async def server() -> AsyncIterator[Running]:
    async with running() as started:
        yield started


@pytest.fixture
async def channel(server: Running) -> AsyncIterator[grpc.aio.Channel]:
    async with open_channel(server.target) as opened:
        yield opened


async def failure(call: Awaitable[Any]) -> errors.UellmError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)


def handled(method: str, code: str) -> float:
    labels = {"service": SERVICE, "method": method, "code": code}
    return REGISTRY.get_sample_value("grpc_server_handled_total", labels) or 0.0


@pytest.mark.parametrize("query_id", RAISED)
async def test_raised_error_arrives(channel: grpc.aio.Channel, query_id: str) -> None:
    before = handled("Submit", CODES[query_id])
    submit = profiler_pb2_grpc.ProfilerServiceStub(channel).Submit
    restored = await failure(submit(profiler_pb2.SubmitRequest(query_id=query_id), timeout=TIMEOUT))
    assert restored.code == CODES[query_id]
    raised = RAISED[query_id]
    if isinstance(raised, errors.UellmError):
        assert type(restored) is type(raised)
        assert restored.reason == raised.reason
    if query_id != "many":
        shown = {key: value for key, value in vars(raised).items() if key != "code"}
        assert not isinstance(raised, errors.UellmError) or vars(restored).items() >= shown.items()
    await until(lambda: handled("Submit", CODES[query_id]) == before + 1)


@pytest.mark.parametrize("query_id", ["invalid", "refused", "bug"])
async def test_raised_error_arrives_on_stream(channel: grpc.aio.Channel, query_id: str) -> None:
    async def requests():
        yield profiler_pb2.SubmitStreamRequest(correlation_id="1", submit={"query_id": "ok"})
        yield profiler_pb2.SubmitStreamRequest(correlation_id="2", submit={"query_id": query_id})

    before = handled("SubmitStream", CODES[query_id])
    call = profiler_pb2_grpc.ProfilerServiceStub(channel).SubmitStream(requests(), timeout=TIMEOUT)
    assert (await call.read()).correlation_id == "1"
    assert (await failure(call.read())).code == CODES[query_id]
    await until(lambda: handled("SubmitStream", CODES[query_id]) == before + 1)


async def test_internal_error_leaks_nothing_and_is_in_the_log(channel: grpc.aio.Channel) -> None:
    with structlog.testing.capture_logs() as lines:
        submit = profiler_pb2_grpc.ProfilerServiceStub(channel).Submit
        restored = await failure(submit(profiler_pb2.SubmitRequest(query_id="bug"), timeout=TIMEOUT))
    assert "secret" not in restored.message
    (line,) = [line for line in lines if line["event"] == "internal_error"]
    assert line["error_id"] == restored.metadata["error_id"]
    assert restored.metadata["error_id"] in restored.message
    assert line["exc_info"] is RAISED["bug"]


async def test_redis_error_names_no_host(channel: grpc.aio.Channel) -> None:
    submit = profiler_pb2_grpc.ProfilerServiceStub(channel).Submit
    restored = await failure(submit(profiler_pb2.SubmitRequest(query_id="redis"), timeout=TIMEOUT))
    assert isinstance(restored, errors.UnavailableError)
    assert restored.message == "the queue's Redis does not answer"
    assert restored.retry_after_seconds > 0


async def test_handler_may_abort_by_itself(channel: grpc.aio.Channel) -> None:
    submit = profiler_pb2_grpc.ProfilerServiceStub(channel).Submit
    restored = await failure(submit(profiler_pb2.SubmitRequest(query_id="abort"), timeout=TIMEOUT))
    assert (restored.code, restored.message) == ("DATA_LOSS", "by hand")


async def test_method_that_the_servicer_lacks_is_unimplemented(channel: grpc.aio.Channel) -> None:
    describe = profiler_pb2_grpc.ProfilerServiceStub(channel).DescribePredictor
    restored = await failure(describe(profiler_pb2.DescribePredictorRequest(), timeout=TIMEOUT))
    assert isinstance(restored, errors.UnimplementedError)
    assert "DescribePredictor" in restored.message


async def test_cancelled_and_expired_calls_are_told_apart(server: Running, channel: grpc.aio.Channel) -> None:
    submit = profiler_pb2_grpc.ProfilerServiceStub(channel).Submit
    with structlog.testing.capture_logs() as lines:
        call = submit(profiler_pb2.SubmitRequest(query_id="wait"))
        await asyncio.wait_for(server.servicer.waiting.wait(), TIMEOUT)
        call.cancel()
        await until(lambda: "CANCELLED" in [line.get("code") for line in lines])
        assert (await failure(submit(profiler_pb2.SubmitRequest(query_id="wait"), timeout=0.2))).code == (
            "DEADLINE_EXCEEDED"
        )
        await until(lambda: "DEADLINE_EXCEEDED" in [line.get("code") for line in lines])


async def test_access_log_has_no_payload(channel: grpc.aio.Channel) -> None:
    submit = profiler_pb2_grpc.ProfilerServiceStub(channel).Submit
    with structlog.testing.capture_logs() as lines:
        await submit(profiler_pb2.SubmitRequest(query_id="ok", query={"prompt": "private"}), timeout=TIMEOUT)
        await failure(submit(profiler_pb2.SubmitRequest(query_id="missing"), timeout=TIMEOUT))
        await until(lambda: len([line for line in lines if line["event"] == "call"]) == 2)
    first, second = (line for line in lines if line["event"] == "call")
    assert (first["log_level"], first["code"]) == ("debug", "OK")
    assert (second["log_level"], second["code"]) == ("info", "NOT_FOUND")
    assert first["method"] == f"{SERVICE}/Submit"
    assert 0 <= first["seconds"] < TIMEOUT
    assert "private" not in str(lines)


# Malformed requests.


async def send_bytes(channel: grpc.aio.Channel, data: bytes, method: str = "Submit") -> errors.InvalidArgumentError:
    if method == "Submit":
        restored = await failure(channel.unary_unary(f"/{SERVICE}/{method}")(data, timeout=TIMEOUT))
    else:
        call = channel.stream_stream(f"/{SERVICE}/{method}")(timeout=TIMEOUT)
        await call.write(data)
        restored = await failure(call.read())
    assert isinstance(restored, errors.InvalidArgumentError)
    return restored


async def test_invalid_utf8_names_the_field(channel: grpc.aio.Channel) -> None:
    good = profiler_pb2.SubmitRequest(query_id="q", query={"prompt": "abc#def"}).SerializeToString()
    restored = await send_bytes(channel, good.replace(b"#", b"\xff"))
    assert restored.violations == (errors.FieldViolation("query.prompt", "is not valid UTF-8"),)


async def test_invalid_utf8_on_a_stream_names_the_field(channel: grpc.aio.Channel) -> None:
    request = profiler_pb2.SubmitStreamRequest(
        submit={"query": {"chat": {"messages": [{"role": "user", "content": "a"}, {"role": "#"}]}}}
    )
    data = request.SerializeToString().replace(b"#", b"\xff")
    restored = await send_bytes(channel, data, "SubmitStream")
    assert [violation.field for violation in restored.violations] == ["submit.query.chat.messages[1].role"]


async def test_bytes_that_are_no_message(channel: grpc.aio.Channel) -> None:
    restored = await send_bytes(channel, b"\xff\xff\xff")
    assert restored.violations == (errors.FieldViolation("", "is not a uellm.v1.SubmitRequest message"),)


async def test_oversize_names_the_largest_field() -> None:
    config = ServerConfig(listen=FREE, max_message_bytes=2_048, shutdown_grace_seconds=0.2)
    async with running(config) as server, open_channel(server.target) as channel:
        submit = profiler_pb2_grpc.ProfilerServiceStub(channel).Submit
        await submit(profiler_pb2.SubmitRequest(query={"prompt": "a" * 2_000}), timeout=TIMEOUT)
        request = profiler_pb2.SubmitRequest(parent="p" * 50, query={"prompt": "a" * 3_000})
        restored = await failure(submit(request, timeout=TIMEOUT))
        assert isinstance(restored, errors.InvalidArgumentError)
        (violation,) = restored.violations
        assert violation.field == "query.prompt"
        assert "3,000" in violation.description
        assert "2,048" in violation.description
        # Beyond the transport's own limit only the code is ours to expect.
        request = profiler_pb2.SubmitRequest(query={"prompt": "a" * 9_000})
        assert (await failure(submit(request, timeout=TIMEOUT))).code == "RESOURCE_EXHAUSTED"


# The bootstrap.


async def until(condition: Callable[[], bool]) -> None:
    end = asyncio.get_running_loop().time() + TIMEOUT
    while not condition():
        assert asyncio.get_running_loop().time() < end
        await asyncio.sleep(0.01)


async def health_of(channel: grpc.aio.Channel, name: str) -> int:
    check = health_pb2_grpc.HealthStub(channel).Check
    return (await check(health_pb2.HealthCheckRequest(service=name), timeout=TIMEOUT)).status


async def test_health_follows_readiness_and_shutdown() -> None:
    kind = health_pb2.HealthCheckResponse
    able: list[bool | Exception] = [False]

    async def ready() -> bool:
        if isinstance(able[0], Exception):
            raise able[0]
        return able[0]

    async with running(ready=ready) as server, open_channel(server.target) as channel:
        assert [await health_of(channel, name) for name in ("", SERVICE)] == [kind.NOT_SERVING] * 2
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=TIMEOUT)
        assert (await watch.read()).status == kind.NOT_SERVING
        able[0] = True
        assert (await watch.read()).status == kind.SERVING
        able[0] = OSError("gone")
        assert (await watch.read()).status == kind.NOT_SERVING
        able[0] = True
        assert (await watch.read()).status == kind.SERVING
        server.stop.set()
        assert (await watch.read()).status == kind.NOT_SERVING
        await asyncio.wait_for(server.task, TIMEOUT)
        assert server.happened == ["enter", "exit"]


async def test_call_in_flight_ends_within_grace(server: Running, channel: grpc.aio.Channel) -> None:
    submit = profiler_pb2_grpc.ProfilerServiceStub(channel).Submit
    call = submit(profiler_pb2.SubmitRequest(query_id="wait"), timeout=TIMEOUT)
    await asyncio.wait_for(server.servicer.waiting.wait(), TIMEOUT)
    server.stop.set()
    await asyncio.wait_for(server.task, TIMEOUT)
    assert (await failure(call)).code in ("UNAVAILABLE", "CANCELLED")


@pytest.mark.parametrize("on", [True, False])
async def test_reflection_lists_services(on: bool) -> None:
    config = ServerConfig(listen=FREE, reflection=on, shutdown_grace_seconds=0.2)
    async with running(config) as server, open_channel(server.target) as channel:
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(timeout=TIMEOUT)
        if on:
            await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
            listed = {service.name for service in (await call.read()).list_services_response.service}
            assert listed >= {SERVICE, "grpc.health.v1.Health"}
            await call.done_writing()
        else:
            assert (await failure(call.read())).code == "UNIMPLEMENTED"


async def test_address_in_use_names_the_setting() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(AddressError, match=rf"127.0.0.1:{port}.*in use.*--listen or UELLM_LISTEN"):
            async with running(ServerConfig(listen=f"127.0.0.1:{port}")):
                pass
        with pytest.raises(AddressError, match=rf"127.0.0.1:{port}.*in use.*--metrics-listen or UELLM_METRICS"):
            async with running(ServerConfig(listen=FREE, metrics_listen=f"127.0.0.1:{port}")):
                pass


async def test_two_servers_do_not_share_a_port(server: Running) -> None:
    with pytest.raises(AddressError):
        async with running(ServerConfig(listen=server.target)):
            pass


async def test_metrics_endpoint_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    config = ServerConfig(listen=FREE, metrics_listen=address, shutdown_grace_seconds=0.2)
    async with running(config) as server, open_channel(server.target) as channel:
        submit = profiler_pb2_grpc.ProfilerServiceStub(channel).Submit
        await submit(profiler_pb2.SubmitRequest(query_id="ok"), timeout=TIMEOUT)
        host, port = address.split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
        page = (await asyncio.wait_for(reader.read(), TIMEOUT)).decode()
        writer.close()
    assert f'grpc_server_handled_total{{code="OK",method="Submit",service="{SERVICE}"}}' in page


async def test_surplus_calls_are_refused() -> None:
    config = ServerConfig(listen=FREE, max_concurrent_rpcs=1, shutdown_grace_seconds=0.2)
    async with running(config) as server, open_channel(server.target) as channel:
        submit = profiler_pb2_grpc.ProfilerServiceStub(channel).Submit
        first = submit(profiler_pb2.SubmitRequest(query_id="wait"))
        await asyncio.wait_for(server.servicer.waiting.wait(), TIMEOUT)
        restored = await failure(submit(profiler_pb2.SubmitRequest(query_id="ok"), timeout=TIMEOUT))
        assert restored.code == "RESOURCE_EXHAUSTED"
        first.cancel()


async def test_mutual_tls(tmp_path: Path) -> None:
    openssl = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    for name in ("server", "client"):
        made = await asyncio.create_subprocess_exec(
            *openssl, "-days", "1", "-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1",
            "-keyout", f"{tmp_path}/{name}.key", "-out", f"{tmp_path}/{name}.pem",
            stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        assert await made.wait() == 0
    config = ServerConfig(
        listen=FREE,
        tls_cert=tmp_path / "server.pem",
        tls_key=tmp_path / "server.key",
        tls_client_ca=tmp_path / "client.pem",
        shutdown_grace_seconds=0.2,
    )
    ca = tmp_path / "server.pem"
    known = ClientTls(ca=ca, cert=tmp_path / "client.pem", key=tmp_path / "client.key")
    async with running(config) as server:
        async with open_channel(server.target, known) as channel:
            assert await health_of(channel, SERVICE) == health_pb2.HealthCheckResponse.SERVING
        for stranger in (None, ClientTls(ca=ca)):
            async with open_channel(server.target, stranger) as channel:
                submit = profiler_pb2_grpc.ProfilerServiceStub(channel).Submit
                restored = await failure(submit(profiler_pb2.SubmitRequest(query_id="ok"), timeout=TIMEOUT))
                assert restored.code == "UNAVAILABLE"


async def test_certificate_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.pem").write_text("no certificate")
    config = ServerConfig(listen=FREE, tls_cert=tmp_path / "a.pem", tls_key=tmp_path / "a.pem")
    with pytest.raises(AddressError, match=r"a.pem.*--tls-cert .UELLM_TLS_CERT.*--tls-key .UELLM_TLS_KEY"):
        async with running(config):
            pass


SCRIPT = f"""
import asyncio, contextlib, sys
from uellm.rpc.logging import configure_logging
from uellm.rpc.server import ServerConfig, run, serve

@contextlib.asynccontextmanager
async def lifecycle():
    print("entering", flush=True)
    if "slow" in sys.argv:
        await asyncio.Event().wait()
    yield
    print("left", flush=True)

configure_logging("test", "debug", "json")
config = ServerConfig(listen="127.0.0.1:0", shutdown_grace_seconds=30)
sys.exit(run(serve(config, [], ["{SERVICE}"], lifecycle=lifecycle(), on_started=lambda port: print(port, flush=True))))
"""


@contextlib.asynccontextmanager
async def process(*arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    started = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SCRIPT, *arguments, cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert started.stdout is not None
        assert await asyncio.wait_for(started.stdout.readline(), TIMEOUT * 3) == b"entering\n"
        yield started
    finally:
        if started.returncode is None:
            started.kill()
            await started.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signal_ends_the_process_with_zero(number: signal.Signals) -> None:
    async with process() as started:
        port = int(await asyncio.wait_for(started.stdout.readline(), TIMEOUT))
        async with open_channel(f"127.0.0.1:{port}") as channel:
            assert await health_of(channel, SERVICE) == health_pb2.HealthCheckResponse.SERVING
            started.send_signal(number)
            assert await asyncio.wait_for(started.wait(), TIMEOUT) == 0
            assert await started.stdout.read() == b"left\n"


async def test_second_signal_cuts_the_grace() -> None:
    async with process() as started:
        port = int(await asyncio.wait_for(started.stdout.readline(), TIMEOUT))
        async with open_channel(f"127.0.0.1:{port}") as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            await watch.read()
            started.send_signal(signal.SIGTERM)
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            started.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(started.wait(), TIMEOUT) == 0


async def test_signal_while_starting_ends_the_process_with_zero() -> None:
    async with process("slow") as started:
        started.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(started.wait(), TIMEOUT) == 0


async def test_only_methods_that_may_be_repeated_are_retried(server: Running, channel: grpc.aio.Channel) -> None:
    stub = profiler_pb2_grpc.ProfilerServiceStub(channel)
    server.servicer.outages = 2
    assert await stub.Profile(profiler_pb2.ProfileRequest(), timeout=TIMEOUT) == profiler_pb2.ProfileResponse()
    assert server.servicer.outages == 0
    before = handled("Submit", "UNAVAILABLE")
    assert (await failure(stub.Submit(profiler_pb2.SubmitRequest(query_id="down"), timeout=TIMEOUT))).code == (
        "UNAVAILABLE"
    )
    await until(lambda: handled("Submit", "UNAVAILABLE") > before)
    assert handled("Submit", "UNAVAILABLE") == before + 1
