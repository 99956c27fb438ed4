"""The whole stack on this machine: Redis, Triton, the three services, and a deployed model."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from uellm.local.deploy import await_served, deploy
from uellm.local.engine import BATCH_ROWS, DEFAULT_BACKEND, Backend, first_on_path
from uellm.local.model import default_model
from uellm.local.ports import Ports
from uellm.local.predictor import DEFAULT_PREDICTOR, PredictorKind
from uellm.local.process import ManagedProcess
from uellm.local.redis import EmbeddedRedis
from uellm.local.state import PartInfo, StackInfo, StateFolder
from uellm.local.supervise import Part, Reporter, StoppedError, Stopping, Supervisor
from uellm.local.triton import CONTROL_KEY, EmbeddedTriton, TritonOptions
from uellm.v1.deployer_pb2 import DeploymentSpec
from uellm.v1.query_pb2 import GenerationParameters

DEFAULT_MODEL = "smollm2-135m"
SERVICES = ("profiler", "scheduler", "deployer")
SERVICE_GRACE_SECONDS = 3
READY_SECONDS = {"profiler": 120.0, "scheduler": 60.0, "deployer": 300.0}
"""The profiler loads its predictor first; the deployer is ready once the models of its journal are loaded again."""
KEPT_VARIABLES = ("UELLM_LOG_LEVEL", "UELLM_CACHE")
"""Other variables of ours are not for the parts: they would change all of them at once."""


def default_spec(weights: Path, backend: Backend = DEFAULT_BACKEND) -> DeploymentSpec:
    """The default model. Without a repetition penalty it runs away under greedy decoding."""
    return DeploymentSpec(
        model=DEFAULT_MODEL,
        weights_path=str(weights),
        backend=backend,
        max_batch_rows=BATCH_ROWS[backend],
        context_tokens=2_048,
        default_generation=GenerationParameters(max_output_tokens=256, repetition_penalty=1.15),
    )


@dataclass(frozen=True, slots=True)
class StackOptions:
    """How a stack is run."""

    state: Path
    ports: Ports
    spec: DeploymentSpec
    policy: str = "uellm"
    predictor: PredictorKind = DEFAULT_PREDICTOR


class LocalStack:
    """Runs in one thread from start to end."""

    def __init__(self, options: StackOptions, reporter: Reporter) -> None:
        self._options = options
        self._reporter = reporter
        self._folder = StateFolder(options.state)
        self._supervisor = Supervisor(self._parts(), reporter, changed=self._write_state, requests=self._folder)

    def run(self, stopping: Stopping, on_ready: Callable[[StackInfo], None]) -> None:
        """Start, deploy, call `on_ready`, look after the parts until told to stop, and stop them.

        Raises StateError, PortTakenError, ProcessError or StackError, after everything has been stopped.
        """
        with self._folder.held():
            self._options.ports.check()
            try:
                self._start(stopping)
                self._write_state()
                on_ready(self._info())
                self._supervisor.watch(stopping)
            except StoppedError:
                pass
            finally:
                self._supervisor.stop()

    def _start(self, stopping: Stopping) -> None:
        spec, addresses = self._options.spec, self._addresses()
        for part in self._supervisor.parts:
            _keep_one_old_log(part.process.log)
        self._reporter.step("starting Redis and Triton")
        self._supervisor.start(["redis", "triton"], stopping)
        self._reporter.step("starting profiler, scheduler and deployer")
        self._supervisor.start(SERVICES, stopping)
        deploy(addresses["deployer"], spec, self._reporter, stopping)
        await_served(addresses["profiler"], addresses["scheduler"], spec.model, stopping)

    def _addresses(self) -> dict[str, str]:
        ports = self._options.ports
        return {name: f"127.0.0.1:{getattr(ports, name)}" for name in (*SERVICES, "redis", "triton")}

    def _parts(self) -> list[Part]:
        """In the order of stopping: nobody loses what it still needs."""
        folder, ports, addresses = self._folder, self._options.ports, self._addresses()
        redis = EmbeddedRedis(folder.part("redis"), ports.redis)
        triton = EmbeddedTriton(
            TritonOptions(
                folder.repository / "models",
                folder.part("triton"),
                grpc_port=ports.triton,
                first_on_path=first_on_path(self._options.spec.backend),
            )
        )
        flags = {
            "profiler": ["--predictor", self._options.predictor, *self._predictor_base()],
            "scheduler": ["--policy", self._options.policy],
            "deployer": [
                *("--repository", str(folder.repository)),
                *("--triton-endpoint", triton.address),
                *("--triton-control-key", CONTROL_KEY),
                *("--triton-host", "local", "--triton-state", str(folder.root)),
            ],
        }
        environment = {k: v for k, v in os.environ.items() if not k.startswith("UELLM_") or k in KEPT_VARIABLES}
        # By environment and not by flag: command lines can be read by everybody.
        environment["UELLM_TRITON_CONTROL_SECRET"] = triton.options.control_secret
        services = [
            Part(
                name,
                _service(name, addresses[name], [*flags[name], "--redis-url", redis.url], folder, environment),
                addresses[name],
                READY_SECONDS[name],
            )
            for name in SERVICES
        ]
        for needed in (redis.data, triton.options.repository):
            needed.mkdir(parents=True, exist_ok=True)
        return [
            *services,
            Part("triton", triton.process, addresses["triton"]),
            Part("redis", redis.process, addresses["redis"]),
        ]

    def _predictor_base(self) -> list[str]:
        """The default model is the base of adapters; it is not converted only for one that may be installed later."""
        spec = self._options.spec
        if self._options.predictor is PredictorKind.LORA:
            return ["--predictor-base", str(default_model())]
        return ["--predictor-base", spec.weights_path] if spec.model == DEFAULT_MODEL else []

    def _write_state(self) -> None:
        self._folder.write(self._info())

    def _info(self) -> StackInfo:
        parts = {
            part.name: PartInfo(part.process.pid or 0, part.endpoint, str(part.process.log), part.restarts)
            for part in self._supervisor.parts
        }
        spec = self._options.spec
        return StackInfo(os.getpid(), spec.model, self._options.policy, parts, spec.backend)


@dataclass(eq=False)
class _Background:
    """What the thread of `background_stack` leaves for the others."""

    ready: threading.Event = field(default_factory=threading.Event)
    stop: threading.Event = field(default_factory=threading.Event)
    info: StackInfo | None = None
    error: BaseException | None = None


@contextlib.contextmanager
def background_stack(options: StackOptions, reporter: Reporter) -> Iterator[StackInfo]:
    """A stack in a thread of its own while the block runs. Raises what `LocalStack.run` raises."""
    shared = _Background()

    def on_ready(info: StackInfo) -> None:
        shared.info = info
        shared.ready.set()

    def run() -> None:
        try:
            LocalStack(options, reporter).run(shared.stop.is_set, on_ready)
        except BaseException as error:  # noqa: BLE001  (raised again in the other thread)
            shared.error = error
        finally:
            shared.ready.set()

    thread = threading.Thread(target=run, name="stack")
    thread.start()
    try:
        shared.ready.wait()
        if shared.info is not None:
            yield shared.info
    finally:
        shared.stop.set()
        thread.join()
    if shared.error is not None:
        raise shared.error


def _service(name: str, address: str, flags: list[str], folder: StateFolder, env: dict[str, str]) -> ManagedProcess:
    argv = [sys.executable, "-m", f"uellm_{name}", "--listen", address, *flags]
    return ManagedProcess(
        name,
        [*argv, "--shutdown-grace-seconds", str(SERVICE_GRACE_SECONDS)],
        log=folder.part(name) / f"{name}.log",
        ready=lambda: _serves(address),
        env=env,
        grace_seconds=SERVICE_GRACE_SECONDS + 5,
    )


def _serves(address: str) -> bool:
    """Whether the standard health service says so."""
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=1)
        except grpc.RpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def _keep_one_old_log(log: Path) -> None:
    if log.exists():
        shutil.move(log, log.with_suffix(".log.1"))
