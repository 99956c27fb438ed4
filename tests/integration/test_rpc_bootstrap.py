"""How a service starts, says that it is ready, serves within bounds, and stops."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.support.rpc import (
    FREE,
    ROOT,
    SERVICE,
    TIMEOUT,
    Running,
    failure,
    handled,
    running,
    until,
)
from uellm.rpc.channel import ClientTls, open_channel
from uellm.rpc.server import AddressError, ServerConfig
from uellm.v1 import profiler_pb2, profiler_pb2_grpc


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
