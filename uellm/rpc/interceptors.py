"""What happens around every call: metrics, access log, errors as status codes, requests that cannot be read.

Order, outermost first: metrics, access log, errors, a service's own, malformed requests.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
import structlog
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError
from grpc_status import rpc_status
from prometheus_client import Counter, Histogram

from uellm.rpc.errors import FieldViolation, InvalidArgumentError
from uellm.rpc.status import to_status, unimplemented
from uellm.rpc.wire import invalid_utf8_field, largest_field

if TYPE_CHECKING:  # generic only in the type stubs
    _Interceptor = grpc.aio.ServerInterceptor[Any, Any]
else:
    _Interceptor = grpc.aio.ServerInterceptor

Handler = Any
"""A `grpc.RpcMethodHandler`."""
Context = Any
"""A `grpc.aio.ServicerContext`; the type stubs of grpc lack `abort_with_status`."""
Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[Handler]]
Behaviour = Callable[[Any, Context], Any]
"""A servicer's method: coroutine function or asynchronous generator function."""

HANDLED = Counter("grpc_server_handled", "Calls that ended, by status code.", ["service", "method", "code"])
HANDLING_SECONDS = Histogram(
    "grpc_server_handling_seconds",
    "Time from the start of a call to its end, in seconds.",
    ["service", "method"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
)

_CODE_NAMES: dict[int, str] = {code.value[0]: code.name for code in grpc.StatusCode}

_log = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Call:
    """A call to a method of this server."""

    service: str
    """Full name of the service, e.g. `uellm.v1.ProfilerService`."""
    method: str
    context: Context

    def code(self, error: BaseException | None = None) -> str:
        """Returns the name of the status code with which the call ends if its handler raised `error`."""
        if isinstance(error, asyncio.CancelledError):
            remaining = self.context.time_remaining()
            return "CANCELLED" if remaining is None or remaining > 0 else "DEADLINE_EXCEEDED"
        code = self.context.code() or 0
        name = code.name if isinstance(code, grpc.StatusCode) else _CODE_NAMES.get(code, "UNKNOWN")
        return "UNKNOWN" if error is not None and name == "OK" else name


class AroundInterceptor(_Interceptor, ABC):
    """Base of interceptors that do something before and after a handler, whichever of the four kinds it is."""

    @abstractmethod
    def around(self, call: Call) -> AbstractAsyncContextManager[None]:
        """Returns the context in which the handler runs; what the handler raises comes out at its `yield`."""

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler:
        """Wraps the method's handler."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        service, method = split_method(handler_call_details.method)
        behaviour = _behaviour(handler)

        async def run(request: Any, context: Context) -> Any:
            async with self.around(Call(service, method, context)):
                return await _complete(behaviour(request, context), context)

        return _rebuild(handler, run, handler.request_deserializer)


class MetricsInterceptor(AroundInterceptor):
    """Counts calls by status code and measures how long they take."""

    @asynccontextmanager
    async def around(self, call: Call) -> AsyncIterator[None]:
        """Counts and measures one call."""
        start = time.perf_counter()
        error: BaseException | None = None
        try:
            yield
        except BaseException as caught:
            error = caught
            raise
        finally:
            HANDLED.labels(call.service, call.method, call.code(error)).inc()
            HANDLING_SECONDS.labels(call.service, call.method).observe(time.perf_counter() - start)


class AccessLogInterceptor(AroundInterceptor):
    """Writes a line for every call: at DEBUG if it went well, else at INFO. Never a payload."""

    @asynccontextmanager
    async def around(self, call: Call) -> AsyncIterator[None]:
        """Logs one call."""
        start = time.perf_counter()
        error: BaseException | None = None
        try:
            yield
        except BaseException as caught:
            error = caught
            raise
        finally:
            code = call.code(error)
            write = _log.debug if code == "OK" else _log.info
            seconds = round(time.perf_counter() - start, 6)
            write("call", method=f"{call.service}/{call.method}", code=code, seconds=seconds)


class ErrorsInterceptor(AroundInterceptor):
    """The one place where exceptions become status codes."""

    @asynccontextmanager
    async def around(self, call: Call) -> AsyncIterator[None]:
        """Ends a call whose handler raised with the status that stands for the exception."""
        try:
            yield
        except grpc.aio.AbortError:
            raise  # the handler has ended the call itself
        except Exception as error:
            if isinstance(error, NotImplementedError) and call.code() == "UNIMPLEMENTED":
                error = unimplemented(call.method)  # what the generated base class of a servicer does
            status = to_status(error)
            if call.context.done():
                raise
            await call.context.abort_with_status(rpc_status.to_status(status))


class MalformedRequestInterceptor(_Interceptor):
    """Answers requests that are too large or cannot be parsed with INVALID_ARGUMENT and the field to blame.

    gRPC itself would answer INTERNAL. Must be inside `ErrorsInterceptor`. Streams are checked as they are iterated;
    handlers that call `context.read()` are not covered.
    """

    def __init__(self, max_message_bytes: int) -> None:
        self._max_bytes = max_message_bytes

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler:
        """Replaces the deserializer by one that does not raise, and raises in the handler instead."""
        handler = await continuation(handler_call_details)
        if handler is None or handler.request_deserializer is None:
            return handler
        name = ".".join(split_method(handler_call_details.method))
        descriptor = descriptor_pool.Default().FindMethodByName(name).input_type
        behaviour = _behaviour(handler)
        guard = _guard_stream if handler.request_streaming else _guard

        def deserialize(data: bytes) -> Any:
            if len(data) > self._max_bytes:
                return _Malformed(_oversize(descriptor, data, self._max_bytes))
            try:
                return handler.request_deserializer(data)
            except DecodeError:
                return _Malformed(_unreadable(descriptor, data))

        async def run(request: Any, context: Context) -> Any:
            return await _complete(behaviour(guard(request), context), context)

        return _rebuild(handler, run, deserialize)


@dataclass(frozen=True, slots=True)
class _Malformed:
    """Stands for a request that could not be deserialized."""

    violation: FieldViolation


def _guard(request: Any) -> Any:
    if isinstance(request, _Malformed):
        raise InvalidArgumentError([request.violation])
    return request


async def _guard_stream(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield _guard(request)


def _oversize(descriptor: Descriptor, data: bytes, limit: int) -> FieldViolation:
    field, size = largest_field(descriptor, data)
    share = f", {size:,} of them in this field" if field else ""
    return FieldViolation(field, f"the request has {len(data):,} bytes{share}; at most {limit:,} are accepted")


def _unreadable(descriptor: Descriptor, data: bytes) -> FieldViolation:
    field = invalid_utf8_field(descriptor, data)
    if field is None:
        return FieldViolation("", f"is not a {descriptor.full_name} message")
    return FieldViolation(field, "is not valid UTF-8")


def split_method(path: str) -> tuple[str, str]:
    """Takes `/{service}/{method}` apart."""
    service, _, method = path.removeprefix("/").rpartition("/")
    return service, method


def _behaviour(handler: Handler) -> Behaviour:
    behaviour: Behaviour = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    return behaviour


async def _complete(result: Any, context: Context) -> Any:
    """Waits for a handler's coroutine, or sends what its generator yields."""
    if not isinstance(result, AsyncGenerator):
        return await result
    async with aclosing(result) as responses:
        async for response in responses:
            await context.write(response)
    return None


def _rebuild(handler: Handler, behaviour: Behaviour, deserialize: Callable[[bytes], Any] | None) -> Handler:
    """Returns a handler of the same kind with another behaviour and deserializer."""
    make = _MAKERS[handler.request_streaming, handler.response_streaming]
    return make(behaviour, request_deserializer=deserialize, response_serializer=handler.response_serializer)


_MAKERS: dict[tuple[bool, bool], Callable[..., Handler]] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}
