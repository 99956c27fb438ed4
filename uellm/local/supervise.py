"""Starts the parts of a stack, starts again what crashes, stops them in order."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from uellm.local.process import POLL_SECONDS, ManagedProcess, ProcessError

WATCH_SECONDS = 0.1

Stopping = Callable[[], bool]
"""Asked again and again whether to stop."""


class Reporter(Protocol):
    """Tells people how it goes."""

    def step(self, text: str) -> None:
        """A step of the start begins."""

    def note(self, text: str) -> None:
        """Something happened to a running stack."""


class Requests(Protocol):
    """Where others ask for parts to be started again."""

    def restarts_asked(self) -> frozenset[str]:
        """Names of parts."""

    def restart_done(self, part: str) -> None:
        """It was started again, or there is no such part."""


class StackError(RuntimeError):
    """The stack cannot go on; the message says why and what to do."""


class StoppedError(Exception):
    """Somebody asked to stop during the start."""


class CrashLimit:
    """Allows so many crashes in a while, each followed by a longer pause."""

    def __init__(self, most: int = 5, window_seconds: float = 60.0, first_pause_seconds: float = 0.5) -> None:
        self.most = most
        self.window_seconds = window_seconds
        self._first_pause_seconds = first_pause_seconds
        self._crashes: deque[float] = deque()

    def pause_after_crash(self, now: float) -> float | None:
        """Note a crash; returns how long to wait before the next start, in seconds, None to give up."""
        self._crashes.append(now)
        while self._crashes[0] <= now - self.window_seconds:
            self._crashes.popleft()
        if len(self._crashes) >= self.most:
            return None
        return self._first_pause_seconds * 2.0 ** (len(self._crashes) - 1)


@dataclass(slots=True, eq=False)
class Part:
    """A process that is kept running."""

    name: str
    process: ManagedProcess
    endpoint: str
    ready_seconds: float = 60.0
    """How long it may take to become ready."""
    crashes: CrashLimit = field(default_factory=CrashLimit)
    restarts: int = 0
    start_at: float | None = None
    """When it is started again; None unless it has crashed."""
    ready_by: float | None = None
    """When it must be ready again; None once it is."""


class Supervisor:
    """Keeps parts running. All its methods are called from one thread."""

    def __init__(
        self,
        parts: Sequence[Part],
        reporter: Reporter,
        changed: Callable[[], None],
        requests: Requests | None = None,
    ) -> None:
        """`parts` in the order in which they are stopped; `changed` is called when a part came back or went."""
        self.parts = tuple(parts)
        self._reporter = reporter
        self._changed = changed
        self._requests = requests

    def start(self, names: Sequence[str], stopping: Stopping) -> None:
        """Start some parts at once and wait until they are ready; raises ProcessError, StoppedError."""
        waiting = [part for part in self.parts if part.name in names]
        for part in waiting:
            part.process.start()
        began = time.monotonic()
        while waiting:
            waiting = [part for part in waiting if not part.process.poll_ready()]
            for part in waiting:
                if time.monotonic() - began > part.ready_seconds:
                    raise ProcessError(f"{part.name} is not ready in time; {part.process.log_tail()}")
            if stopping():
                raise StoppedError
            time.sleep(POLL_SECONDS)

    def watch(self, stopping: Stopping) -> None:
        """Start again what crashes or is asked for, until told to stop.

        Raises StackError when a part crashes too often.
        """
        while not stopping():
            self._serve_requests()
            for part in self.parts:
                self._look_after(part, time.monotonic())
            time.sleep(WATCH_SECONDS)

    def stop(self) -> None:
        """Stop all parts, in order; those that have crashed, too."""
        for part in self.parts:
            part.process.stop()

    def _serve_requests(self) -> None:
        """A part that is asked for is no crash, and is not counted as one."""
        if self._requests is None:
            return
        for name in self._requests.restarts_asked():
            for part in self.parts:
                if part.name == name:
                    self._reporter.note(f"{name} is started again: the deployer asks for it")
                    part.process.stop()
                    self._start_again(part, time.monotonic())
                    self._changed()
            self._requests.restart_done(name)

    def _look_after(self, part: Part, now: float) -> None:
        if part.start_at is not None:
            if now >= part.start_at:
                self._start_again(part, now)
        elif not part.process.running:
            self._crashed(part, now, "has crashed")
        elif part.ready_by is not None:
            self._await_ready(part, now)

    def _start_again(self, part: Part, now: float) -> None:
        part.process.start()
        part.start_at, part.ready_by = None, now + part.ready_seconds
        part.restarts += 1

    def _await_ready(self, part: Part, now: float) -> None:
        try:
            ready = part.process.poll_ready()
        except ProcessError:
            return  # the next round sees that it has ended
        if ready:
            part.ready_by = None
            self._reporter.note(f"{part.name} is ready again")
            self._changed()
        elif part.ready_by is not None and now >= part.ready_by:
            self._crashed(part, now, f"is not ready after {part.ready_seconds:g} s")

    def _crashed(self, part: Part, now: float, what: str) -> None:
        part.process.stop()  # ends its children, too
        pause = part.crashes.pause_after_crash(now)
        if pause is None:
            raise StackError(
                f"{part.name} has crashed {part.crashes.most} times in {part.crashes.window_seconds:g} s, "
                f"so the stack stops; {part.process.log_tail()}"
            )
        part.start_at, part.ready_by = now + pause, None
        self._reporter.note(f"{part.name} {what}; it is started again in {pause:g} s")
        self._changed()
