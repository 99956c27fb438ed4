"""`uellm up` as a process of its own, as a user starts it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from uellm.client import Endpoints
from uellm.local.state import NotRunningError, StackInfo, StateFolder

START_SECONDS = 150.0  # the first start converts the model
BOUND_SECONDS = 60.0


class LocalUp:
    """One stack in one state folder."""

    def __init__(self, state: Path, *flags: str) -> None:
        self.state = state
        self.log = state / "up.log"
        self._flags = flags
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it is ready."""
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                self.command("up", "--port-base", "0", *self._flags),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        wait_for(self._is_ready, START_SECONDS, self.log.read_text)

    def command(self, *arguments: str) -> list[str]:
        """A command line of `uellm` for this stack."""
        return [sys.executable, "-m", "uellm.cli.main", *arguments, "--state", str(self.state)]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command against this stack."""
        return subprocess.run(
            self.command(*arguments),
            check=False,
            capture_output=True,
            text=True,
            timeout=BOUND_SECONDS,
            env={**os.environ, "COLUMNS": "200"},
        )

    def info(self) -> StackInfo:
        return StateFolder(self.state).read()

    def endpoints(self) -> Endpoints:
        parts = self.info().parts
        return Endpoints(parts["profiler"].endpoint, parts["scheduler"].endpoint, parts["deployer"].endpoint)

    def tree(self) -> list[psutil.Process]:
        """The process and all below it."""
        assert self._process is not None
        root = psutil.Process(self._process.pid)
        return [root, *root.children(recursive=True)]

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def wait(self) -> int:
        """The exit status of `uellm up`."""
        assert self._process is not None
        return self._process.wait(BOUND_SECONDS)

    def end(self) -> None:
        """End it, whatever state it is in."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(BOUND_SECONDS)

    def _is_ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log.read_text()
        try:
            self.info()
        except NotRunningError:
            return False
        return True


def wait_for(
    condition: Callable[[], bool], seconds: float = BOUND_SECONDS, said: Callable[[], str] = lambda: ""
) -> None:
    """Wait until the condition holds; fails with what was said when the time is up."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited too long; {said()}"
        time.sleep(0.05)


def gone(process: psutil.Process) -> bool:
    """Whether a process has ended; one that nobody has waited for yet counts."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
