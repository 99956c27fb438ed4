"""How `uellm bench` goes, on stderr: a bar on a terminal, a line a run elsewhere."""

from __future__ import annotations

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from uellm.bench.runs import Run
from uellm.cli.output import print_line, stderr


class Board:
    """Reporter of the stack and watcher of the runs. Use it as a context manager."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal)
        self._task = self._progress.add_task("", total=None)

    def __enter__(self) -> Board:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def step(self, text: str, queries: int = 0) -> None:
        """Something begins; queries of it are counted if there are any."""
        self._progress.reset(self._task, total=queries or None, description=escape(text))
        if not stderr.is_terminal:
            print_line(stderr, escape(text))

    def ended(self) -> None:
        """A query has ended."""
        self._progress.advance(self._task)

    def note(self, text: str) -> None:
        """Something happened to the stack."""
        print_line(stderr, f"[dim]{escape(text)}[/]")

    def run(self, run: Run) -> None:
        """A run is complete."""
        share = run.metrics.attainment
        where = f"round {run.round + 1}, " + (f"load {run.load:g}, " if run.load else "") + run.server
        kept = f"{share.in_time:.0%} in time, {share.late:.0%} late, {share.refused:.0%} refused"
        print_line(
            stderr, escape(f"{where}: {kept}, {run.metrics.useful_tokens:.1f} useful tokens/s, {run.seconds:.0f} s")
        )
