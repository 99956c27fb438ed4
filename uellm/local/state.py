"""The state folder of a local stack: who runs there, and where it answers."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

NEEDED_BYTES = 100_000_000
"""Room for a while of queues, outcomes and logs."""
LOOK_SECONDS = 0.5
"""Far longer than a look at the lock takes."""


class StateError(RuntimeError):
    """The state folder cannot be used; the message says what to do."""


class NotRunningError(StateError):
    """No stack runs in the folder, or it does not answer yet."""


@dataclass(frozen=True, slots=True)
class PartInfo:
    """A running part."""

    pid: int
    """Process id; 0 while it is being started again."""
    endpoint: str
    """`host:port`."""
    log: str
    restarts: int = 0


@dataclass(frozen=True, slots=True)
class StackInfo:
    """Content of `stack.json`: a stack that is ready."""

    pid: int
    """Of the process that supervises."""
    model: str
    policy: str
    parts: Mapping[str, PartInfo]
    backend: str = ""
    """Of the engine that serves the model."""


def default_folder() -> Path:
    """`$UELLM_STATE`, else `.uellm` in the working directory."""
    return Path(os.environ.get("UELLM_STATE") or ".uellm")


class StateFolder:
    """Paths, the lock and `stack.json` of one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.repository = self.root / "repository"
        """Of which `models/` is Triton's."""
        self._file = self.root / "stack.json"
        self._lock = self.root / "stack.lock"
        self._restarts = self.root / "restart"

    def part(self, name: str) -> Path:
        """Folder of a part; its log is `{name}.log` in it."""
        return self.root / name

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder. Raises StateError if a stack runs in it, it cannot be written to, or the disk is full."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            available = shutil.disk_usage(self.root).free
            lock = self._lock.open("a")
        except OSError as error:
            raise StateError(
                f"{self.root} cannot be used ({error.strerror}): choose another folder with --state"
            ) from error
        if available < NEEDED_BYTES:
            raise StateError(
                f"{self.root} has {available:,} bytes left, {NEEDED_BYTES:,} are needed: "
                "free some, or choose another folder with --state"
            )
        with lock:
            if not _lock_within(lock.fileno(), LOOK_SECONDS):
                raise StateError(self._busy())
            self._file.unlink(missing_ok=True)
            shutil.rmtree(self._restarts, ignore_errors=True)  # asked of a stack that is gone
            try:
                yield
            finally:
                self._file.unlink(missing_ok=True)

    def write(self, info: StackInfo) -> None:
        """Say where the stack answers."""
        draft = self._file.with_suffix(".tmp")
        draft.write_text(json.dumps(asdict(info), indent=2) + "\n")
        draft.replace(self._file)

    def read(self) -> StackInfo:
        """Where the running stack answers; raises NotRunningError."""
        if not self.is_held():
            raise NotRunningError(f"no stack is running in {self.root}: start it with `uellm up`")
        try:
            fields = json.loads(self._file.read_text())
        except FileNotFoundError:
            raise NotRunningError(f"the stack in {self.root} is starting or stopping: try again in a moment") from None
        parts = {name: PartInfo(**part) for name, part in fields.pop("parts").items()}
        return StackInfo(**fields, parts=parts)

    def ask_restart(self, part: str) -> None:
        """Ask the stack to start a part again. May be repeated; the stack looks ten times a second."""
        self._restarts.mkdir(exist_ok=True)
        (self._restarts / part).touch()

    def restarts_asked(self) -> frozenset[str]:
        """The parts that somebody asked to be started again."""
        try:
            return frozenset(path.name for path in self._restarts.iterdir())
        except FileNotFoundError:
            return frozenset()

    def restart_done(self, part: str) -> None:
        """Take back that somebody asks; nothing if nobody does."""
        (self._restarts / part).unlink(missing_ok=True)

    def is_held(self) -> bool:
        """Whether a stack is starting, running or stopping in the folder. The lock goes with its process."""
        try:
            with self._lock.open("a") as lock:
                return not _try_lock(lock.fileno(), fcntl.LOCK_SH)
        except OSError:
            return False

    def _busy(self) -> str:
        try:
            pid = f" (pid {json.loads(self._file.read_text())['pid']})"
        except (OSError, ValueError):
            pid = ""
        return f"a stack runs already in {self.root}{pid}: use it, end it with `uellm down`, or choose another --state"


def _lock_within(descriptor: int, seconds: float) -> bool:
    """Who looks whether a stack runs holds the lock, too, for a moment: it is tried until the time is up."""
    deadline = time.monotonic() + seconds
    while not (locked := _try_lock(descriptor, fcntl.LOCK_EX)) and time.monotonic() < deadline:
        time.sleep(0.01)
    return locked


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
