"""Supervision, with real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from uellm.local.process import ManagedProcess, ProcessError
from uellm.local.state import StateFolder
from uellm.local.supervise import CrashLimit, Part, StackError, StoppedError, Supervisor

BOUND_SECONDS = 20.0


class Notes(list[str]):
    """A reporter that remembers."""

    def step(self, text: str) -> None:
        self.append(text)

    def note(self, text: str) -> None:
        self.append(text)


def make_part(folder: Path, code: str, ready: Callable[[], bool] = lambda: True, name: str = "part") -> Part:
    argv = [sys.executable, "-I", "-S", "-c", code]
    process = ManagedProcess(name, argv, log=folder / f"{name}.log", ready=ready, grace_seconds=1)
    return Part(name, process, "127.0.0.1:1", crashes=CrashLimit(first_pause_seconds=0.01))


def until(condition: Callable[[], bool]) -> Callable[[], bool]:
    """Stops when the condition holds; fails if it does not come true."""
    deadline = time.monotonic() + BOUND_SECONDS

    def stopping() -> bool:
        assert time.monotonic() < deadline, "waited too long"
        return condition()

    return stopping


def test_pauses_grow_until_the_limit() -> None:
    limit = CrashLimit()
    assert [limit.pause_after_crash(now) for now in range(5)] == [0.5, 1, 2, 4, None]


def test_old_crashes_are_forgotten() -> None:
    limit = CrashLimit()
    assert [limit.pause_after_crash(now * 61) for now in range(20)] == [0.5] * 20


def test_a_killed_part_is_started_again(tmp_path: Path) -> None:
    notes, changes = Notes(), []
    part = make_part(tmp_path, "import time; time.sleep(60)")
    supervisor = Supervisor([part], notes, lambda: changes.append(part.process.pid))
    supervisor.start(["part"], until(lambda: False))
    first = part.process.pid
    assert first is not None
    try:
        os.kill(first, signal.SIGKILL)
        supervisor.watch(until(lambda: "part is ready again" in notes))
        assert part.restarts == 1
        assert part.process.running
        assert part.process.pid != first
        assert changes == [None, part.process.pid]
    finally:
        supervisor.stop()
    assert not part.process.running


def test_a_part_that_is_asked_for_is_started_again_and_that_is_no_crash(tmp_path: Path) -> None:
    notes, folder = Notes(), StateFolder(tmp_path / "state")
    part = make_part(tmp_path, "import time; time.sleep(60)")
    part.crashes = CrashLimit(most=1)
    supervisor = Supervisor([part], notes, lambda: None, folder)
    with folder.held():
        supervisor.start(["part"], until(lambda: False))
        first = part.process.pid
        for name in ("part", "none"):
            folder.ask_restart(name)
        try:
            supervisor.watch(until(lambda: "part is ready again" in notes))
            assert part.restarts == 1
            assert part.process.pid != first
            assert folder.restarts_asked() == frozenset()
        finally:
            supervisor.stop()
        folder.ask_restart("part")
    with folder.held():
        assert folder.restarts_asked() == frozenset(), "asked of a stack that is gone"


def test_a_part_that_always_crashes_is_given_up_with_its_log(tmp_path: Path) -> None:
    part = make_part(tmp_path, "print('the reason why'); raise SystemExit(3)")
    supervisor = Supervisor([part], Notes(), lambda: None)
    part.process.start()
    with pytest.raises(StackError, match=r"part has crashed 5 times in 60 s(.|\n)*the reason why"):
        supervisor.watch(until(lambda: False))
    supervisor.stop()


def test_a_part_that_ends_while_it_starts_is_an_error(tmp_path: Path) -> None:
    part = make_part(tmp_path, "raise SystemExit('no such thing')", ready=lambda: False)
    supervisor = Supervisor([part], Notes(), lambda: None)
    with pytest.raises(ProcessError, match=r"part ended \(status 1\)(.|\n)*no such thing"):
        supervisor.start(["part"], until(lambda: False))
    supervisor.stop()


def test_a_start_can_be_stopped(tmp_path: Path) -> None:
    part = make_part(tmp_path, "import time; time.sleep(60)", ready=lambda: False)
    supervisor = Supervisor([part], Notes(), lambda: None)
    with pytest.raises(StoppedError):
        supervisor.start(["part"], lambda: True)
    supervisor.stop()
    assert part.process.pid is None


def test_parts_and_their_children_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = f"""
import os, signal, sys
from pathlib import Path
from uellm.local.process import ManagedProcess
code = "import os, time; print(os.fork(), flush=True); time.sleep(60)"
log = Path({str(tmp_path / "part.log")!r})
ready = lambda: log.exists() and log.read_text().count("\\n") == 2
part = ManagedProcess("part", [sys.executable, "-c", code], log=log, ready=ready)
part.start()
part.wait_ready(20)
print(part.pid, *log.read_text().split(), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    printed = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True).stdout
    orphans = {int(word) for word in printed.split()} - {0}
    assert len(orphans) == 2
    deadline = time.monotonic() + BOUND_SECONDS
    while not all(gone(pid) for pid in orphans):
        assert time.monotonic() < deadline, "it outlived its parent"


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
