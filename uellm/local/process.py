"""Child processes of the embedded stack: start, wait until ready, stop for good."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

GUARD = Path(__file__).with_name("guard.py")
LOG_TAIL_LINES = 30
POLL_SECONDS = 0.02


class ProcessError(RuntimeError):
    """A child process ended, or did not become ready in time; the message holds the end of its log."""


def free_port() -> int:
    """A TCP port that is free on the loopback interface now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def guarded(argv: Sequence[str]) -> list[str]:
    """The same command, so that it and its children end with this process.

    It begins with a path, and is to be started in a session of its own.
    """
    return [sys.executable, "-I", "-S", str(GUARD), str(os.getpid()), *argv]


class ManagedProcess:
    """A server process in a process group of its own, whose output goes to a log file.

    It and its children end with the process that started it, however that ends.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        *,
        log: Path,
        ready: Callable[[], bool],
        env: Mapping[str, str] | None = None,
        grace_seconds: float = 10.0,
    ) -> None:
        """`ready` is asked until it is true; `grace_seconds` lie between SIGTERM and SIGKILL."""
        self.name = name
        self.log = log
        self._argv = list(argv)
        self._env = dict(env) if env is not None else None
        self._ready = ready
        self._grace_seconds = grace_seconds
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Process id, None before the start and after the stop."""
        return self._process.pid if self._process else None

    @property
    def running(self) -> bool:
        """Whether the process was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the process; raises ProcessError if its program cannot be run."""
        if self._process is not None:
            raise ProcessError(f"{self.name} was started already")
        program = shutil.which(self._argv[0])
        if program is None:
            raise ProcessError(f"{self.name} cannot be started: {self._argv[0]} is no program that can be run")
        argv = guarded([program, *self._argv[1:]])
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as output:
            try:
                self._process = subprocess.Popen(
                    argv,
                    env=self._env,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError as error:
                raise ProcessError(f"{self.name} cannot be started: {error}") from error

    def wait_ready(self, timeout_seconds: float) -> None:
        """Wait until the process is ready; raises ProcessError if it ends or the time is up."""
        deadline = time.monotonic() + timeout_seconds
        while not self.poll_ready():
            if time.monotonic() >= deadline:
                raise ProcessError(f"{self.name} is not ready after {timeout_seconds:g} s; {self.log_tail()}")
            time.sleep(POLL_SECONDS)

    def poll_ready(self) -> bool:
        """Whether the process is ready now; raises ProcessError if it has ended."""
        if self._ready():
            return True
        if not self.running:
            status = self._process.returncode if self._process else "not started"
            raise ProcessError(f"{self.name} ended (status {status}); {self.log_tail()}")
        return False

    def stop(self) -> None:
        """End the process and all of its children; a no-op if it does not run."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(self._grace_seconds)
        # Children (Triton's stubs) may outlive a parent that ended badly: the group goes as a whole.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None

    def log_tail(self) -> str:
        """The last lines of its log, with a heading."""
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return f"the end of {self.log}:\n" + "\n".join(lines[-LOG_TAIL_LINES:])
