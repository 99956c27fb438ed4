"""The bootstrap of all three services: one gRPC server with health, reflection, metrics, TLS and graceful shutdown."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager
from typing import Any

import grpc
import prometheus_client
import structlog
import uvloop
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from uellm.rpc.config import ServerConfig, split_address
from uellm.rpc.interceptors import (
    AccessLogInterceptor,
    ErrorsInterceptor,
    MalformedRequestInterceptor,
    MetricsInterceptor,
)

__all__ = ["AddressError", "ServerConfig", "run", "serve"]

Servicer = tuple[Callable[[Any, Any], None], Any]
"""The generated `add_...Servicer_to_server` and the servicer."""

TRANSPORT_LIMIT_FACTOR = 4
"""The transport lets through this many times `max_message_bytes`, so that the excess is answered with a reason."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_READY_INTERVAL_SECONDS = 0.5
_READY_TIMEOUT_SECONDS = 5.0

_log = structlog.stdlib.get_logger(__name__)


class AddressError(OSError):
    """The server cannot listen where it should; the message says which setting to change."""


async def serve(
    config: ServerConfig,
    servicers: Sequence[Servicer],
    service_names: Sequence[str],
    *,
    lifecycle: AbstractAsyncContextManager[Any] | None = None,
    ready: Callable[[], Awaitable[bool]] | None = None,
    on_started: Callable[[int], None] | None = None,
    interceptors: Sequence[grpc.aio.ServerInterceptor[Any, Any]] = (),
    stop: asyncio.Event | None = None,
) -> None:
    """Serves until SIGTERM, SIGINT or `stop`, then shuts down gracefully.

    The port is taken first; calls wait until `lifecycle` is entered. At the end health turns NOT_SERVING, new calls are
    refused, calls in flight get `config.shutdown_grace_seconds` (a second signal ends it), and `lifecycle` is left.

    Args:
        config: where and how to listen.
        servicers: what to serve.
        service_names: full names, for health and reflection.
        lifecycle: what the servicers need while they serve.
        ready: asked twice a second whether the service can do its work; health follows. None: always.
        on_started: called with the port when calls are answered.
        interceptors: the service's own, e.g. authentication; errors that they raise in a handler become status codes.
        stop: ends the server when set.

    Raises:
        AddressError: an address is taken or is none of this machine's, or the certificate is none.
        OSError: a TLS file cannot be read.
    """
    stopping = stop or asyncio.Event()
    server = _build(config, interceptors)
    checks = health.aio.HealthServicer()  # type: ignore[attr-defined]
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    for add, servicer in servicers:
        add(servicer, server)
    if config.reflection:
        shown = (*service_names, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(shown, server)
    names = ("", *service_names)
    await _set_health(checks, names, serving=ready is None)
    async with AsyncExitStack() as stack:
        port = _bind(server, config)
        stack.enter_context(_metrics_endpoint(config.metrics_listen))
        stack.enter_context(_signals(server, stopping))
        if lifecycle is not None and not await _enter(stack, lifecycle, stopping):
            return
        await server.start()
        _log.info("started", listen=config.listen, port=port, tls=config.tls_cert is not None)
        following = asyncio.create_task(_follow(checks, names, ready))
        try:
            if on_started is not None:
                on_started(port)
            await stopping.wait()
        finally:
            _log.info("stopping", grace_seconds=config.shutdown_grace_seconds)
            following.cancel()
            await checks.enter_graceful_shutdown()
            await server.stop(config.shutdown_grace_seconds)
    _log.info("stopped")


def run(service: Coroutine[Any, Any, None]) -> int:
    """Runs what `serve` returns, on uvloop; for the composition root of a service.

    Returns:
        Exit code of the process: 0 after a graceful shutdown, 1 if an address could not be taken (said on stderr).
    """
    try:
        uvloop.run(service)
    except AddressError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _build(config: ServerConfig, interceptors: Sequence[grpc.aio.ServerInterceptor[Any, Any]]) -> grpc.aio.Server:
    return grpc.aio.server(
        interceptors=[
            MetricsInterceptor(),
            AccessLogInterceptor(),
            ErrorsInterceptor(),
            *interceptors,
            MalformedRequestInterceptor(config.max_message_bytes),
        ],
        options=[
            ("grpc.max_receive_message_length", TRANSPORT_LIMIT_FACTOR * config.max_message_bytes),
            # Else a second server would silently share the port.
            ("grpc.so_reuseport", 0),
            ("grpc.keepalive_time_ms", 60_000),
            ("grpc.keepalive_timeout_ms", 20_000),
            ("grpc.keepalive_permit_without_calls", 1),
            # Half of what `uellm.rpc.channel` sends, so that jitter never counts as an attack.
            ("grpc.http2.min_ping_interval_without_data_ms", 15_000),
            # New calls move to another connection, so that load spreads; calls in flight end where they are.
            ("grpc.max_connection_age_ms", 1_800_000),
        ],
        maximum_concurrent_rpcs=config.max_concurrent_rpcs,
    )


def _bind(server: grpc.aio.Server, config: ServerConfig) -> int:
    """Takes the port and returns its number."""
    host, _ = _probe(config.listen, "--listen", "UELLM_LISTEN")
    credentials = _credentials(config)
    if credentials is None and host not in _LOOPBACK:
        _log.warning("plain_text_beyond_loopback", listen=config.listen, remedy="set --tls-cert and --tls-key")
    try:
        if credentials is None:
            return server.add_insecure_port(config.listen)
        return server.add_secure_port(config.listen, credentials)
    except RuntimeError as error:
        if credentials is not None:  # gRPC does not tell, but the address itself was free a moment ago
            raise AddressError(
                f"cannot listen on {config.listen} with {config.tls_cert} and {config.tls_key}: they are no "
                "certificate with its key, in PEM; change --tls-cert (UELLM_TLS_CERT) and --tls-key (UELLM_TLS_KEY)"
            ) from error
        raise _address_error(config.listen, str(error), "--listen", "UELLM_LISTEN") from error


def _probe(address: str, flag: str, variable: str) -> tuple[str, int]:
    """Takes an address for a moment: gRPC itself does not say why it cannot."""
    host, port = split_address(address)
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        why = (error.strerror or str(error)).partition(" (")[0]
        raise _address_error(address, why, flag, variable) from error
    return host, port


def _address_error(address: str, why: str, flag: str, variable: str) -> AddressError:
    return AddressError(f"cannot listen on {address}: {why}; choose another address with {flag} or {variable}")


def _credentials(config: ServerConfig) -> grpc.ServerCredentials | None:
    if config.tls_cert is None or config.tls_key is None:
        return None
    clients = config.tls_client_ca.read_bytes() if config.tls_client_ca else None
    pair = (config.tls_key.read_bytes(), config.tls_cert.read_bytes())
    return grpc.ssl_server_credentials([pair], clients, require_client_auth=clients is not None)


@contextmanager
def _metrics_endpoint(address: str) -> Iterator[None]:
    if not address:
        yield
        return
    host, port = _probe(address, "--metrics-listen", "UELLM_METRICS_LISTEN")
    endpoint, thread = prometheus_client.start_http_server(port, host)
    _log.info("metrics", port=endpoint.server_port)
    try:
        yield
    finally:
        endpoint.shutdown()
        endpoint.server_close()
        thread.join()


@contextmanager
def _signals(server: grpc.aio.Server, stopping: asyncio.Event) -> Iterator[None]:
    """Lets SIGTERM and SIGINT set `stopping`; a second one cuts the grace."""
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()

    def on_signal() -> None:
        if stopping.is_set():
            tasks.add(loop.create_task(server.stop(None)))
        stopping.set()

    for number in _SIGNALS:
        loop.add_signal_handler(number, on_signal)
    try:
        yield
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)


async def _enter(stack: AsyncExitStack, lifecycle: AbstractAsyncContextManager[Any], stopping: asyncio.Event) -> bool:
    """Enters the lifecycle; returns False if `stopping` was set meanwhile, which breaks it off."""
    entering = asyncio.current_task()
    assert entering is not None
    entered = False

    def break_off(watching: asyncio.Task[Any]) -> None:
        if not entered and not watching.cancelled():
            entering.cancel()

    # Entered in this task and not in one of its own: task groups must be left in the task that entered them.
    watching = asyncio.create_task(stopping.wait())
    watching.add_done_callback(break_off)
    try:
        await stack.enter_async_context(lifecycle)
        entered = True
    except asyncio.CancelledError:
        if not stopping.is_set():
            raise
    finally:
        watching.cancel()
    return entered


async def _follow(checks: Any, names: Sequence[str], ready: Callable[[], Awaitable[bool]] | None) -> None:
    """Keeps health as `ready` says."""
    serving = False
    while ready is not None:
        before, (serving, why) = serving, await _ask(ready)
        if serving != before:
            _log.info("health", serving=serving, why=why)
        await _set_health(checks, names, serving=serving)
        await asyncio.sleep(_READY_INTERVAL_SECONDS)


async def _ask(ready: Callable[[], Awaitable[bool]]) -> tuple[bool, str]:
    """Returns what `ready` says, and the error if it could not say it."""
    try:
        return await asyncio.wait_for(ready(), _READY_TIMEOUT_SECONDS), ""
    except Exception as error:  # noqa: BLE001 - whatever keeps it from answering, it is not ready
        return False, repr(error)


async def _set_health(checks: Any, names: Sequence[str], *, serving: bool) -> None:
    kind = health_pb2.HealthCheckResponse
    for name in names:
        await checks.set(name, kind.SERVING if serving else kind.NOT_SERVING)
