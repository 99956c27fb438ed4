"""A deployer that is killed at chosen effects of its operations and started again, and what must hold afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import psutil
import redis
from google.longrunning.operations_pb2 import Operation
from tritonclient.grpc import service_pb2
from uellm_deployer.adapters.journal import decode
from uellm_deployer.app.book import Book
from uellm_deployer.app.ports import JournalEntry
from uellm_deployer.domain.deployment import Deployment, State
from uellm_deployer.domain.deployment import Operation as JournalOperation

from tests.support.triton import StaticEngineClient, control_call
from uellm.local.process import free_port, guarded
from uellm.local.redis import EmbeddedRedis
from uellm.local.triton import CONTROL_KEY, EmbeddedTriton
from uellm.messaging.keys import DEPLOYMENTS
from uellm.v1 import deployer_pb2 as pb
from uellm.v1.deployer_pb2_grpc import DeployerServiceStub
from uellm.v1.stream_pb2 import DEPLOYMENT_STATE_READY, DeploymentRecord

LIMIT_SECONDS = 60.0
LOAD_SECONDS = 8.0
"""After this the deployer gives a load up."""
POLL_SECONDS = 0.01
ROOT = Path(__file__).resolve().parents[2]
SETTLED = (State.READY, State.FAILED)


class OnDisk:
    """The journal as it lies there."""

    def __init__(self, file: Path) -> None:
        content = file.read_bytes()
        self._entries, whole = decode(content)
        self.torn = whole < len(content)

    def entries(self) -> Sequence[JournalEntry]:
        return self._entries

    async def append(self, entry: JournalEntry) -> None:
        raise AssertionError("what a killed process left is only read")


class KilledDeployer:
    """Around one repository, one Triton and one Redis."""

    def __init__(self, folder: Path, triton: EmbeddedTriton, redis_server: EmbeddedRedis, weights: Path) -> None:
        self.folder, self.triton, self.weights = folder, triton, weights
        self.redis = redis.Redis(port=redis_server.port)
        self._orders = folder / "orders"
        self._orders.write_text("")
        self._address = f"127.0.0.1:{free_port()}"
        flags = {
            "listen": self._address,
            "redis-url": redis_server.url,
            "repository": str(folder),
            "triton-endpoint": triton.address,
            "triton-control-key": CONTROL_KEY,
            "load-timeout-seconds": str(LOAD_SECONDS),
        }
        self._arguments = json.dumps([word for key, value in flags.items() for word in (f"--{key}", value)])
        paths = [str(ROOT), *(str(ROOT / "services" / name) for name in ("profiler", "scheduler", "deployer"))]
        self._process = subprocess.Popen(
            guarded([sys.executable, "-m", "tests.support.mortal_deployer", str(self._orders)]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(folder / "deployer.log").open("ab"),
            text=True,
            start_new_session=True,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(paths),
                "OMP_NUM_THREADS": "1",
                "UELLM_TRITON_CONTROL_SECRET": triton.options.control_secret,
            },
        )
        options = [("grpc.initial_reconnect_backoff_ms", 20), ("grpc.max_reconnect_backoff_ms", 100)]
        self._channel = grpc.insecure_channel(self._address, options)
        self.stub = DeployerServiceStub(self._channel)
        self.names = 0

    def __enter__(self) -> KilledDeployer:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._channel.close()
        self.redis.close()
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()

    def start(self) -> None:
        """Start a deployer; it may not answer yet."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{self._arguments}\n")
        self._process.stdin.flush()

    # --- operations ---

    def create(self, strategy: str = "BLUE_GREEN") -> Operation:
        """Begin one with a plan of its own, over what serves."""
        self.names += 1
        spec = pb.DeploymentSpec(model="light", weights_path=str(self.weights), max_batch_rows=self.names + 1)
        request = pb.CreateDeploymentRequest(
            deployment_id=f"d{self.names}", spec=spec, strategy=f"DEPLOYMENT_STRATEGY_{strategy}"
        )
        return self.stub.CreateDeployment(request, timeout=LIMIT_SECONDS, wait_for_ready=True)

    def recreate(self) -> Operation:
        return self.create("RECREATE")

    def delete(self) -> Operation:
        [serving] = self.serving()
        request = pb.DeleteDeploymentRequest(name=serving)
        return self.stub.DeleteDeployment(request, timeout=LIMIT_SECONDS, wait_for_ready=True)

    def roll_back(self) -> Operation:
        request = pb.RollbackDeploymentRequest(model="light")
        return self.stub.RollbackDeployment(request, timeout=LIMIT_SECONDS, wait_for_ready=True)

    def finish(self, operation: Operation) -> Operation:
        """Wait for the end of an operation that nobody kills."""
        request = pb.GetOperationRequest(name=operation.name)
        wait_for(lambda: self.stub.GetOperation(request, timeout=LIMIT_SECONDS).done)
        return self.stub.GetOperation(request)

    def killed_in(self, begin: Callable[[], Operation], point: int) -> tuple[str, JournalOperation | None]:
        """Begin an operation and have it killed; where (empty: it ended first), and its entry in the journal."""
        told = self._orders.with_suffix(".told")
        told.unlink(missing_ok=True)
        before = set(self.book().operations)
        self._orders.write_text(str(point))
        try:
            operation = begin()
            while not self._has_ended() and not self._is_done(operation.name):
                time.sleep(POLL_SECONDS)
        except grpc.RpcError as error:
            wait_for(told.exists)
            assert error.code() is grpc.StatusCode.UNAVAILABLE, error  # noqa: PT017
        self._orders.write_text("")
        if told.exists():
            assert self._process.stdout is not None
            assert int(self._process.stdout.readline()) == -signal.SIGKILL
        begun = [one for name, one in self.book().operations.items() if name not in before]
        return told.read_text() if told.exists() else "", begun[0] if begun else None

    def _has_ended(self) -> bool:
        assert self._process.stdout is not None
        return bool(select.select([self._process.stdout], [], [], 0)[0])

    def _is_done(self, name: str) -> bool:
        try:
            return bool(self.stub.GetOperation(pb.GetOperationRequest(name=name), timeout=LIMIT_SECONDS).done)
        except grpc.RpcError:
            return False

    # --- what there is ---

    def book(self) -> Book:
        """The journal on disk."""
        return Book(OnDisk(self.folder / "journal" / "journal"))

    def serving(self) -> dict[str, Deployment]:
        """By name, what the journal says is to serve."""
        return {name: one for name, one in self.book().deployments.items() if one.state is State.READY}

    def differences(self) -> list[str]:
        """In how far journal, disk, Triton and Redis do not say the same; empty: all is as it should be."""
        journal = OnDisk(self.folder / "journal" / "journal")
        book, found = Book(journal), []
        if journal.torn:
            found.append("the journal ends in a torn line")
        found += [f"{one.name} is {one.state}" for one in book.deployments.values() if one.state not in SETTLED]
        found += [f"{one.name} runs" for one in book.operations.values() if not one.done]
        serving = {one.plan.triton_model for one in self.serving().values()}
        places = {
            "models": {path.name for path in (self.folder / "models").iterdir()},
            "Triton": self._loaded(),
            "Redis": self._published(),
        }
        found += [f"{place} has {names}, not {serving}" for place, names in places.items() if names != serving]
        if (running := stubs(self.triton)) != len(serving):
            found.append(f"{running} processes of models run, not {len(serving)}")
        found += [f"{path} is left over" for path in (self.folder / "staging").iterdir()]
        found += [f"{path} is left over" for path in (self.folder / "journal").iterdir() if path.name != "journal"]
        return found

    def check(self) -> None:
        """Wait until all is as it should be; then what serves answers."""
        request = pb.ListDeploymentsRequest()
        wait_for(lambda: self.stub.ListDeployments(request, timeout=LIMIT_SECONDS, wait_for_ready=True))
        try:
            wait_for(lambda: not self.differences())
        except AssertionError:
            raise AssertionError("; ".join(self.differences())) from None
        for one in self.serving().values():
            client = StaticEngineClient(self.triton, one.plan.triton_model)
            answer = client.run({"r": {"prompt": "abc", "max_tokens": 4, "raw_prompt": True}})
            assert answer.rows["r"].text == "abca"

    def _loaded(self) -> set[str]:
        """Whatever Triton has begun with."""
        index = control_call(self.triton, "RepositoryIndex", service_pb2.RepositoryIndexRequest())
        return {one.name for one in index.models if one.state not in ("", "UNAVAILABLE")}

    def _published(self) -> set[str]:
        values: Any = self.redis.hvals(DEPLOYMENTS)
        records = [DeploymentRecord.FromString(value) for value in values]
        return {
            record.triton_model if record.state == DEPLOYMENT_STATE_READY else f"{record.triton_model} in another state"
            for record in records
            if record.triton_endpoint == self.triton.address
        }


def stubs(triton: EmbeddedTriton) -> int:
    """Processes that models run in."""
    count = 0
    for child in psutil.Process(triton.process.pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):  # ended meanwhile
            count += "backend_stub" in child.name()
    return count


def wait_for(condition: Callable[[], object]) -> None:
    """Wait until a condition holds; an error of a deployer that is not there yet is none."""
    end = time.monotonic() + LIMIT_SECONDS
    while not _holds(condition):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(POLL_SECONDS)


def _holds(condition: Callable[[], object]) -> bool:
    try:
        return bool(condition())
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.UNAVAILABLE:
            raise
        return False
