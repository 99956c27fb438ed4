"""The state folder: one stack at a time, and nobody trusts what a dead one left behind."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import threading
from collections import namedtuple
from pathlib import Path

import pytest

from uellm.local.state import NotRunningError, PartInfo, StackInfo, StateError, StateFolder

INFO = StackInfo(os.getpid(), "tiny", "fifo", {"redis": PartInfo(12, "127.0.0.1:7", "redis.log", restarts=1)})


def test_what_is_written_is_read_while_the_folder_is_held(tmp_path: Path) -> None:
    with StateFolder(tmp_path).held():
        StateFolder(tmp_path).write(INFO)
        assert StateFolder(tmp_path).read() == INFO
    with pytest.raises(NotRunningError, match="start it with `uellm up`"):
        StateFolder(tmp_path).read()


def test_a_second_stack_is_refused_with_the_pid_of_the_first(tmp_path: Path) -> None:
    with StateFolder(tmp_path).held():
        StateFolder(tmp_path).write(INFO)
        with (
            pytest.raises(StateError, match=rf"runs already in .*pid {os.getpid()}.*--state"),
            StateFolder(tmp_path).held(),
        ):
            pass
        assert StateFolder(tmp_path).read() == INFO
    with StateFolder(tmp_path).held():
        pass


def test_those_who_look_whether_a_stack_runs_are_no_stack(tmp_path: Path) -> None:
    (tmp_path / "stack.lock").touch()
    with (tmp_path / "stack.lock").open("a") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        done = threading.Timer(0.1, lambda: fcntl.flock(looking, fcntl.LOCK_UN))
        done.start()
        with StateFolder(tmp_path).held():
            done.join()


def test_a_stack_that_starts_is_told_from_none(tmp_path: Path) -> None:
    with StateFolder(tmp_path).held(), pytest.raises(NotRunningError, match="starting or stopping"):
        StateFolder(tmp_path).read()


def test_a_killed_stack_is_not_running(tmp_path: Path) -> None:
    script = f"""
import os, signal
from pathlib import Path
from uellm.local.state import StackInfo, StateFolder
folder = StateFolder(Path({str(tmp_path)!r}))
with folder.held():
    folder.write(StackInfo(os.getpid(), "tiny", "fifo", {{}}))
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -9
    assert json.loads((tmp_path / "stack.json").read_text())["model"] == "tiny"
    with pytest.raises(NotRunningError, match="no stack is running"):
        StateFolder(tmp_path).read()


def test_a_missing_folder_has_no_stack_and_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(NotRunningError):
        StateFolder(tmp_path / "none").read()
    assert not (tmp_path / "none").exists()


def test_a_full_disk_is_said_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 1000, 1000))
    with (
        pytest.raises(StateError, match=r"1,000 bytes left.*free some, or choose another folder"),
        StateFolder(tmp_path).held(),
    ):
        pass


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(StateError, match="choose another folder with --state"),
        StateFolder(tmp_path / "file" / "x").held(),
    ):
        pass
