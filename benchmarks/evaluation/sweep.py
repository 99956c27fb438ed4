"""Plays a grid over the cores, keeps each result as it comes, and goes on where it was stopped."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from uellm_simulator.runs import Source
from uellm_simulator.scenario import Scenario

from benchmarks.evaluation.cache import Cache
from benchmarks.evaluation.grid import OURS, Point, Size
from benchmarks.evaluation.playing import TASKS

_sources: Mapping[str, Source] = {}
"""Of a worker: sent once, not with each task."""


@dataclass(frozen=True, slots=True)
class Job:
    """A task that may be in the cache."""

    task: str
    point: Point
    key: str
    scenario: Scenario
    full: float = 0.0


@dataclass(frozen=True, slots=True)
class Played:
    """All that was measured."""

    size: Size
    capacities: Mapping[Point, float]
    """Requests a second, by `Point.machine`."""
    runs: Mapping[Point, Any]
    timelines: Mapping[Point, Any]


class Sweep:
    """Of some sources, by name; `code` is the digest of what determines a result."""

    def __init__(self, sources: Mapping[str, Source], cache: Cache, code: str, jobs: int = 0) -> None:
        self._sources = sources
        self._cache = cache
        self._content = {name: f"{source.digest}/{code}" for name, source in sources.items()}
        self._jobs = jobs or os.cpu_count() or 1
        self.console = Console(stderr=True)

    def play(self, points: Sequence[Point], size: Size) -> Played:
        """Everything that is not in the cache.

        Raises KeyboardInterrupt after ending the workers; what has ended by then is kept.
        """
        machines = sorted({point.machine for point in points})
        capacities = self._run("capacities", [self._job("capacity", one, size) for one in machines])
        full = {point: capacities[point.machine] for point in points}
        runs = self._run("runs", [self._job("run", one, size, full[one]) for one in points])
        shown = [one for one in points if is_shown(one)]
        timelines = self._run("timelines", [self._job("timeline", one, size, full[one]) for one in shown])
        return Played(size, capacities, runs, timelines)

    def _job(self, task: str, point: Point, size: Size, full: float = 0.0) -> Job:
        scenario = point.scenario(size)
        key = scenario.digest(f"{task}/{self._content[point.trace]}/{full!r}")
        return Job(task, point, key, scenario, full)

    def _run(self, title: str, jobs: Sequence[Job]) -> dict[Point, Any]:
        found = {job.point: self._cache.find(job.key) for job in jobs}
        missing = [job for job in jobs if found[job.point] is None]
        quiet = not self.console.is_terminal
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        times = (TimeElapsedColumn(), TimeRemainingColumn())
        with Progress(*columns, *times, console=self.console, transient=True, disable=quiet) as progress:
            shown = progress.add_task(title, total=len(jobs), completed=len(jobs) - len(missing))
            for job, result in self._results(missing):
                self._cache.keep(job.key, result)
                # As it will be found the next time.
                found[job.point] = self._cache.find(job.key)
                progress.advance(shown)
        return found

    def _results(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Any]]:
        if not jobs:
            return
        if self._jobs == 1:
            yield from ((job, TASKS[job.task](self._sources[job.point.trace], job.scenario, job.full)) for job in jobs)
            return
        with _workers(min(self._jobs, len(jobs)), self._sources) as submit:
            running = {submit(job): job for job in jobs}
            for future in as_completed(running):
                yield running.pop(future), future.result()


def is_shown(point: Point) -> bool:
    """Whether its timeline is drawn."""
    return point.policy in (OURS, "fifo") and point == Point(load=1.2, policy=point.policy)


class _workers:  # noqa: N801  (a context manager, used as a function)
    """Processes that end with the block, however it ends."""

    def __init__(self, count: int, sources: Mapping[str, Source]) -> None:
        self._pool = ProcessPoolExecutor(count, initializer=_begin, initargs=(sources,))

    def __enter__(self) -> Callable[[Job], Future[Any]]:
        return lambda job: self._pool.submit(_work, job)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            for process in multiprocessing.active_children():
                process.terminate()
        self._pool.shutdown(cancel_futures=True)


def _begin(sources: Mapping[str, Source]) -> None:
    # Ctrl-C goes to the whole group; the parent ends its workers itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    global _sources  # noqa: PLW0603  (a worker's own)
    _sources = sources


def _work(job: Job) -> Any:
    return TASKS[job.task](_sources[job.point.trace], job.scenario, job.full)
