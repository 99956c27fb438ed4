"""Triton: restricted model control in explicit mode, and the engine's own answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from uellm.rpc.errors import FailedPreconditionError, PermissionDeniedError, UellmError, UnavailableError
from uellm_deployer.adapters.engine_client import describe, infer
from uellm_deployer.adapters.entries import PLAN_HASH
from uellm_deployer.app.ports import UNLOAD_TIMEOUT, EngineReport
from uellm_deployer.backends.vllm.contract import NOT_INSTALLED
from uellm_deployer.domain.names import engine_model, is_engine_model

T = TypeVar("T")
_GONE = ("", "UNAVAILABLE")
_PROCESS_ENDED = "is not healthy"
"""In what Triton says of the process of a Python-backend model."""
_FRAMES = "\n\nAt:\n"
"""Before the calls that led to an exception of a Python-backend model; they are in Triton's log."""


@dataclass(frozen=True, slots=True)
class ControlTimes:
    """Limits, in seconds."""

    call: float = 10.0
    """One call that should be answered at once."""
    load_call: float = 60.0
    """How long a load is waited for by its own call; then the index is polled."""
    load: float = 1800.0
    unload: float = 120.0
    inference: float = 120.0
    poll: float = 0.1


class TritonControl:
    """One Triton server, reached by gRPC."""

    def __init__(self, channel: grpc.aio.Channel, control_key: str, control_secret: str, times: ControlTimes) -> None:
        """`control_key` and `control_secret` as in Triton's `--grpc-restricted-protocol=...:<key>=<secret>`."""
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        self._metadata = ((f"triton-grpc-protocol-{control_key}", control_secret),) if control_key else ()
        self._key = control_key
        self._times = times

    async def ready_models(self) -> frozenset[str]:
        """The models that answer now."""
        index = await self._index()
        ready = {name for name, (state, _) in index.items() if state == "READY"}
        behind = {name for name in index if is_engine_model(name)}  # nobody's own: they go with their fronts
        loaded = sorted(name for name in ready - behind if engine_model(name) not in behind - ready)
        alive = await asyncio.gather(*(self._lives(name) for name in loaded))
        return frozenset(name for name, lives in zip(loaded, alive, strict=True) if lives)

    async def load(self, name: str) -> None:
        """Load a model and wait until it is ready; FailedPreconditionError with Triton's reason otherwise."""
        if engine_model(name) in await self._index():
            await self._load(engine_model(name))
        await self._load(name)

    async def _load(self, name: str) -> None:
        request = service_pb2.RepositoryModelLoadRequest(model_name=name)
        deadline = time.monotonic() + self._times.load
        try:
            limit = min(self._times.load_call, self._times.load)
            await self._control(self._stub.RepositoryModelLoad, request, limit)
        except (UnavailableError, TimeoutError):
            await self._await_load(name, deadline)  # the call ended, the load may go on: only the index knows
        except FailedPreconditionError as error:
            _, reason = (await self._index()).get(name, ("", ""))
            raise _not_loaded(name, reason or error.message) from None

    async def unload(self, name: str) -> None:
        """Unload a model and wait until it is gone; nothing if it is not loaded."""
        for model in (name, engine_model(name)):
            await self._unload(model)

    async def _unload(self, name: str) -> None:
        state, _ = (await self._index()).get(name, ("", ""))
        if state in _GONE:
            return
        try:
            request = service_pb2.RepositoryModelUnloadRequest(model_name=name)
            await self._control(self._stub.RepositoryModelUnload, request, self._times.call)
        except TimeoutError:
            pass  # as for a load
        deadline = time.monotonic() + self._times.unload
        while (state := (await self._index()).get(name, ("", ""))[0]) not in _GONE:
            if time.monotonic() >= deadline:
                why = "it still loads it" if state == "LOADING" else "a request still holds it"
                raise UnavailableError(
                    f"Triton has not unloaded {name} within {self._times.unload:g} s: {why}. "
                    "It is tried again; restarting Triton frees it for certain.",
                    reason=UNLOAD_TIMEOUT,
                )
            await asyncio.sleep(self._times.poll)

    async def verify(self, name: str, plan_hash: str) -> EngineReport:
        """Compare the plan hash and run a first inference; FailedPreconditionError says what is wrong."""
        request = service_pb2.ModelConfigRequest(name=name)
        answer = await self._inference(self._control(self._stub.ModelConfig, request, self._times.call))
        parameters = answer.config.parameters
        found = parameters[PLAN_HASH].string_value if PLAN_HASH in parameters else ""
        if found != plan_hash:
            raise FailedPreconditionError(
                name,
                f"Triton has {name} loaded with the plan hash {found or 'none'} instead of {plan_hash}",
                reason="PLAN_MISMATCH",
            )
        await self._inference(infer(self._stub, name, self._times.inference))
        step_seconds = await self._inference(infer(self._stub, name, self._times.inference))  # warm now
        description = await self._inference(describe(self._stub, name, self._times.call))
        return EngineReport(
            weight_bytes=description["weight_bytes"],
            kv_bytes_per_token=description["kv_bytes_per_token"],
            step_seconds=step_seconds,
            kv_budget_bytes=description.get("kv_budget_bytes", 0),
        )

    async def batches_running(self, name: str) -> int:
        """Batches on the engine; 0 if the model is not loaded."""
        if name not in await self.ready_models():
            return 0
        return int((await self._inference(describe(self._stub, name, self._times.call)))["batches_running"])

    async def _lives(self, name: str) -> bool:
        """False where the process of the model has ended: the index goes on to call it ready."""
        try:
            await self._plain(describe(self._stub, name, self._times.call))
        except FailedPreconditionError as error:
            return _PROCESS_ENDED not in error.message
        except TimeoutError:
            return True  # busy
        return True

    async def _await_load(self, name: str, deadline: float) -> None:
        while time.monotonic() < deadline:
            state, reason = (await self._index()).get(name, ("", ""))
            if state == "READY":
                return
            if state in _GONE:
                raise _not_loaded(name, reason or "Triton knows nothing of the load: it was restarted meanwhile")
            await asyncio.sleep(self._times.poll)
        raise FailedPreconditionError(
            name, f"Triton is still loading {name} after {self._times.load:g} s", reason="LOAD_TIMEOUT"
        )

    async def _index(self) -> dict[str, tuple[str, str]]:
        """State and reason of every model that Triton knows, by name."""
        try:
            index = await self._control(
                self._stub.RepositoryIndex, service_pb2.RepositoryIndexRequest(), self._times.call
            )
        except TimeoutError:
            raise UnavailableError("Triton does not answer in time", reason="TRITON_UNAVAILABLE") from None
        return {model.name: (model.state, model.reason) for model in index.models}

    async def _control(self, method: Any, request: Any, limit_seconds: float) -> Any:
        """A restricted call; TimeoutError if its time is up."""
        return await self._plain(method(request, metadata=self._metadata, timeout=limit_seconds))

    async def _plain(self, call: Awaitable[T]) -> T:
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise TimeoutError from None
            raise self._translated(error) from None

    async def _inference(self, call: Awaitable[T]) -> T:
        try:
            return await self._plain(call)
        except TimeoutError:
            raise FailedPreconditionError(
                "engine", "the engine does not answer in time", reason="ENGINE_ERROR"
            ) from None

    def _translated(self, error: grpc.aio.AioRpcError) -> UellmError:
        message = error.details() or error.code().name
        if "restricted" in message:
            return PermissionDeniedError(
                "Triton refuses model control: key or secret do not match its --grpc-restricted-protocol "
                f"(key in use: {self._key or 'none'}). Check --triton-control-key and --triton-control-secret.",
                reason="TRITON_CONTROL_DENIED",
            )
        if error.code() is grpc.StatusCode.UNAVAILABLE:
            return UnavailableError(f"Triton cannot be reached: {message}", reason="TRITON_UNAVAILABLE")
        return FailedPreconditionError("triton", message, reason="TRITON_REFUSED")


def _not_loaded(name: str, reason: str) -> FailedPreconditionError:
    _, missing, what = reason.partition(NOT_INSTALLED)
    if missing:
        return FailedPreconditionError(name, missing + what.splitlines()[0], reason="ENGINE_NOT_INSTALLED")
    said = reason.partition(_FRAMES)[0].strip()
    return FailedPreconditionError(name, f"Triton could not load {name}: {said}", reason="LOAD_FAILED")
