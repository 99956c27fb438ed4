"""A real server with a servicer that raises: what arrives at a client?"""

from __future__ import annotations

import asyncio

import grpc
import pytest
import structlog

from tests.support.rpc import (
    CODES,
    FREE,
    RAISED,
    SERVICE,
    TIMEOUT,
    Running,
    failure,
    handled,
    running,
    until,
)
from uellm.rpc import errors
from uellm.rpc.channel import open_channel
from uellm.rpc.server import ServerConfig
from uellm.v1 import profiler_pb2, profiler_pb2_grpc


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
