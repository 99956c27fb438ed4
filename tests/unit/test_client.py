"""The client against an in-process server that loses connections."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from tests.support.client_peer import NAME, STORED, Server, delta
from uellm.client import (
    Answered,
    AsyncClient,
    Client,
    Ended,
    Endpoints,
    Event,
    Restarted,
    Submitted,
    Transcript,
)
from uellm.client.following import Patience
from uellm.client.requests import Defaults, submit_request
from uellm.client.submitting import WINDOW
from uellm.local.process import free_port
from uellm.rpc.errors import (
    InvalidArgumentError,
    NotFoundError,
    OutOfRangeError,
    ResourceExhaustedError,
    UellmError,
    UnavailableError,
)
from uellm.v1 import query_pb2, stream_pb2
from uellm.v1.profiler_pb2_grpc import add_ProfilerServiceServicer_to_server
from uellm.v1.scheduler_pb2_grpc import add_SchedulerServiceServicer_to_server


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def endpoints(server: Server) -> Iterator[Endpoints]:
    grpc_server = grpc.server(ThreadPoolExecutor(4))
    add_SchedulerServiceServicer_to_server(server, grpc_server)
    add_ProfilerServiceServicer_to_server(server, grpc_server)
    port = grpc_server.add_insecure_port("127.0.0.1:0")
    grpc_server.start()
    address = f"127.0.0.1:{port}"
    yield Endpoints(address, address, address)
    grpc_server.stop(None).wait()


@pytest.fixture
def client(endpoints: Endpoints) -> Iterator[Client]:
    with Client(endpoints, model="tiny") as client:
        yield client


@pytest.fixture
async def async_client(endpoints: Endpoints) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(endpoints, model="tiny") as client:
        yield client


def inner(event: stream_pb2.QueryEvent) -> Event:
    found: Event = getattr(event, str(event.WhichOneof("event")))
    return found


LOSSES = [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, None]


def test_a_stream_goes_on_where_it_was(client: Client, server: Server) -> None:
    server.per_connection, server.losses = 2, LOSSES
    assert list(client.stream(NAME)) == [inner(event) for event in STORED]
    assert server.cursors == ["", "2", "4"]


async def test_an_async_stream_goes_on_where_it_was(async_client: AsyncClient, server: Server) -> None:
    server.per_connection, server.losses = 1, LOSSES
    assert [event async for event in async_client.stream(NAME)] == [inner(event) for event in STORED]
    assert server.cursors == ["", "1", "2", "3", "4", "5"]


def test_patience_ends(endpoints: Endpoints, server: Server) -> None:
    server.per_connection, server.losses = 0, [grpc.StatusCode.UNAVAILABLE]
    with Client(endpoints, reconnect_seconds=0.3) as client, pytest.raises(UnavailableError):
        list(client.stream(NAME))
    assert len(server.cursors) > 1


def test_other_errors_are_raised_at_once(client: Client, server: Server) -> None:
    server.per_connection, server.losses = 1, [grpc.StatusCode.PERMISSION_DENIED]
    with pytest.raises(UellmError) as caught:
        list(client.stream(NAME))
    assert caught.value.code == "PERMISSION_DENIED"
    with pytest.raises(NotFoundError):
        list(client.stream(NAME + "x"))
    assert server.cursors == [""]


def test_submit_repeats_with_the_same_id(client: Client, server: Server) -> None:
    server.refusals = 2
    assert client.submit("hi").name == NAME
    assert len(server.submitted) == 3
    assert len(set(server.submitted)) == 1
    assert server.submitted[0]


def many(count: int) -> list[tuple[str, Any]]:
    return [("refuse" if number % 4 == 3 else "hi", {"query_id": f"q{number}"}) for number in range(count)]


def check_many(answers: list[Answered], count: int) -> None:
    assert sorted(answered.index for answered in answers) == list(range(count))
    for answered in answers:
        if answered.index % 4 == 3:
            assert isinstance(answered.result, ResourceExhaustedError)
            assert answered.result.reason == "FULL"
        else:
            assert isinstance(answered.result, Submitted)
            assert answered.result.name == f"q{answered.index}"


LOST = [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED]


@pytest.mark.parametrize("answers", [1_000_000, 20], ids=["whole", "lost"])
def test_many_are_submitted_once_each(answers: int, client: Client, server: Server) -> None:
    server.stream_answers, server.losses = answers, LOST  # type: ignore[assignment]
    check_many(list(client.submit_many(many(70))), 70)
    assert len(server.stored) == 70 - 70 // 4
    assert (len(server.streamed) > 1) == (answers < 70)


@pytest.mark.parametrize("answers", [1_000_000, 20], ids=["whole", "lost"])
async def test_many_are_submitted_once_each_async(answers: int, async_client: AsyncClient, server: Server) -> None:
    server.stream_answers, server.losses = answers, LOST  # type: ignore[assignment]

    async def given() -> AsyncIterator[tuple[str, Any]]:
        for one in many(70):
            await asyncio.sleep(0)
            yield one

    check_many([answered async for answered in async_client.submit_many(given())], 70)
    check_many([answered async for answered in async_client.submit_many(many(7))], 7)
    assert len(server.stored) == 70 - 70 // 4
    assert (len(server.streamed) > 2) == (answers < 70)


async def test_what_is_given_is_drawn_as_answers_come(client: Client, async_client: AsyncClient) -> None:
    drawn = 0

    def given() -> Iterator[tuple[str, Any]]:
        nonlocal drawn
        for one in many(2_000):
            drawn += 1
            yield one
        raise ValueError("no more")

    answers = client.submit_many(given())
    for count in range(1, 200):
        next(answers)
        assert drawn <= WINDOW + count + 1
    with pytest.raises(ValueError, match="no more"):
        list(answers)
    drawn = 0
    async_answers = async_client.submit_many(given())
    for _ in range(2_000):
        await anext(async_answers)
    with pytest.raises(ValueError, match="no more"):
        await anext(async_answers)
    assert drawn == 2_000


def test_leaving_early_ends_the_stream(client: Client) -> None:
    answers = client.submit_many(iter(many(2_000)))
    next(answers)
    answers.close()
    assert client.submit("hi").name == NAME


def test_many_give_up_after_a_while(endpoints: Endpoints, server: Server) -> None:
    server.stream_answers, server.losses = 1, [grpc.StatusCode.UNAVAILABLE]
    with Client(endpoints, submit_seconds=0.3) as client, pytest.raises(UnavailableError):
        list(client.submit_many(many(5)))
    assert len(server.streamed) > 1


def check_outcomes(ended: list[Ended], server: Server) -> None:
    assert [(one.name, one.outcome.text, one.cursor) for one in ended] == [
        (f"q{n}", str(n), str(n)) for n in range(1, 8)
    ]
    assert server.cursors == ["", "3", "6"]


def test_a_tenant_s_outcomes_go_on_where_they_were(client: Client, server: Server) -> None:
    server.per_connection, server.losses = 3, LOST
    outcomes = client.outcomes()
    check_outcomes([next(outcomes) for _ in range(7)], server)
    with pytest.raises(OutOfRangeError, match="an hour"):
        next(client.outcomes(cursor="old"))


async def test_a_tenant_s_async_outcomes_go_on_where_they_were(async_client: AsyncClient, server: Server) -> None:
    server.per_connection, server.losses = 3, LOST
    outcomes = async_client.outcomes()
    check_outcomes([await anext(outcomes) for _ in range(7)], server)
    with pytest.raises(OutOfRangeError, match="an hour"):
        await anext(async_client.outcomes(cursor="old"))


async def test_lists_are_read_page_by_page(client: Client, async_client: AsyncClient) -> None:
    queries = [f"tenants/acme/models/m/queries/{number}" for number in range(6)]
    assert [status.name for status in client.queries(model="m", tenant="acme")] == queries
    assert [status.name async for status in async_client.queries(model="m", tenant="acme")] == queries
    assert [letter.name for letter in client.dead_letters("m")] == ["m/0", "m/2"]
    assert [letter.name async for letter in async_client.dead_letters("m")] == ["m/0", "m/2"]
    assert client.replay(NAME) == await async_client.replay(NAME) == f"{NAME}-replay"


def test_generate_returns_the_outcome(client: Client, server: Server) -> None:
    assert client.generate("hi").text == "the answer"
    assert server.cancelled == []


async def test_a_cancelled_generate_cancels_its_query(async_client: AsyncClient, server: Server) -> None:
    server.per_connection, server.losses = 0, [grpc.StatusCode.UNAVAILABLE]
    task = asyncio.create_task(async_client.generate("hi"))
    assert await asyncio.to_thread(server.watched.wait, 20)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert server.cancelled == [NAME]


async def test_field_violations_arrive(client: Client, async_client: AsyncClient) -> None:
    for call in (lambda: client.profile(""), None):
        with pytest.raises(InvalidArgumentError) as caught:
            call() if call else await async_client.profile("")
        assert [violation.field for violation in caught.value.violations] == ["query.prompt"]


def test_nobody_there_is_said_soon() -> None:
    nobody = f"127.0.0.1:{free_port()}"
    with Client(Endpoints(nobody, nobody, nobody), submit_seconds=0.2) as client, pytest.raises(UnavailableError):
        client.submit("hi")


def test_patience_is_renewed_by_success() -> None:
    now = [0.0]
    patience = Patience(1.0, clock=lambda: now[0])
    lost = UnavailableError("gone")
    assert [patience.pause_after(lost), patience.pause_after(lost)] == [0.1, 0.2]
    now[0] = 0.9
    with pytest.raises(UnavailableError):
        patience.pause_after(lost)
    patience.renew()
    assert patience.pause_after(lost) == 0.1


def test_a_transcript_drops_what_is_void() -> None:
    transcript = Transcript()
    for event in [delta(0, "a"), delta(1, "b"), delta(2, "c")]:
        transcript.add(inner(event))
    transcript.add(Restarted(attempt=2, resume_index=2))
    assert transcript.text == "ab"
    assert transcript.add(inner(delta(2, "d", 2))) == "d"
    assert transcript.text == "abd"


def test_prompts_of_all_kinds_and_options_reach_the_request() -> None:
    defaults = Defaults("tiny", "local")
    options: Any = {
        "tenant": "acme",
        "slo_seconds": 1.5,
        "first_token_slo_seconds": 0.25,
        "on_miss": "cancel",
        "max_output_tokens": 9,
        "temperature": 0.0,
        "stop": ["\n"],
        "labels": {"a": "b"},
    }
    request = submit_request("hi", options, defaults)
    assert request.parent == "tenants/acme/models/tiny"
    assert request.query.prompt == "hi"
    assert request.query.slo.completion.ToMilliseconds() == 1500
    assert request.query.slo.first_token.ToMilliseconds() == 250
    assert request.query.slo.on_miss == query_pb2.ON_MISS_CANCEL
    assert request.query.generation.HasField("temperature")
    assert not request.query.generation.HasField("seed")
    assert list(request.query.generation.stop) == ["\n"]
    assert dict(request.query.labels) == {"a": "b"}
    assert not submit_request("hi", {}, defaults).query.HasField("slo")
    assert list(submit_request([1, 2], {}, defaults).query.prompt_token_ids.ids) == [1, 2]
    chat = submit_request([{"role": "user", "content": "hi"}], {}, defaults).query.chat
    assert [(message.role, message.content) for message in chat.messages] == [("user", "hi")]


def test_endpoints_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UELLM_SCHEDULER", "elsewhere:1")
    monkeypatch.delenv("UELLM_PROFILER", raising=False)
    monkeypatch.setenv("UELLM_DEPLOYER", "")
    assert Endpoints.from_environment() == Endpoints("127.0.0.1:50051", "elsewhere:1", "127.0.0.1:50053")


def test_the_client_needs_no_heavy_packages() -> None:
    code = "import sys, uellm.client; print([m for m in ('torch', 'numpy', 'redis') if m in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert printed.strip() == "[]"
