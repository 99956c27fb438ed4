"""What is shown while the demo runs: a live table on a terminal, a line per answer elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from rich.console import Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from uellm.cli.ask import summary
from uellm.cli.demo.serving import Phase, Request
from uellm.cli.output import print_line, stdout
from uellm.cli.values import show_seconds

REFRESH_PER_SECOND = 4
LINES_AROUND = 8


@contextlib.contextmanager
def showing(requests: Sequence[Request]) -> Iterator[Callable[[Request], None]]:
    """Show the requests while the block runs; yields what to call with each that ends."""
    if not stdout.is_terminal:
        yield _print_end
        return
    board = _Board(requests)
    with Live(board, console=stdout, refresh_per_second=REFRESH_PER_SECOND, transient=True):
        yield lambda request: None  # noqa: ARG005  (the board sees it by itself)


def _print_end(request: Request) -> None:
    name = request.arrival.id
    if request.outcome is None:
        print_line(stdout, f"{name}: {escape(request.refusal or request.error)}")
    else:
        print_line(stdout, f"{name}: {summary(request.outcome, request.arrival.slo_seconds)}")


class _Board:
    """Rendered anew several times a second."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self._requests = requests
        self._began = time.monotonic()

    def __rich__(self) -> Group:
        order = (Phase.RUNNING, Phase.WAITING)
        active = sorted((r for r in self._requests if r.phase in order), key=lambda r: order.index(r.phase))
        room = max(stdout.height - LINES_AROUND, 3)
        hidden = len(active) - room
        more = Text(f"and {hidden} more" if hidden > 0 else "", style="dim")
        return Group(self._headline(), "", _table(active[:room]), more)

    def _headline(self) -> Text:
        count = Counter(request.phase for request in self._requests)
        tokens = sum(request.tokens for request in self._requests)
        seconds = time.monotonic() - self._began
        return Text.assemble(
            (f"{seconds:4.0f} s  ", "bold"),
            f"{count[Phase.DUE]} to come, {count[Phase.WAITING]} waiting, {count[Phase.RUNNING]} running, ",
            (f"{count[Phase.ENDED]} of {len(self._requests)} answered", "bold green"),
            f"  {tokens / max(seconds, 1):.0f} tokens/s",
        )


def _table(active: Sequence[Request]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold dim", expand=True)
    for column in ("query", "class", "state"):
        table.add_column(column, no_wrap=True)
    table.add_column("tokens / predicted", justify="right", no_wrap=True)
    table.add_column("deadline", justify="right", no_wrap=True)
    table.add_column("answer", no_wrap=True, overflow="ellipsis", ratio=1)
    for request in active:
        running = request.phase is Phase.RUNNING
        predicted = request.query.profile.output_length.p50_tokens if request.query else 0
        left = request.submitted_at + request.arrival.slo_seconds - time.monotonic()
        table.add_row(
            request.arrival.id,
            request.arrival.prompt.service_class,
            f"[green]{request.phase}[/]" if running else f"[yellow]{request.phase}[/]",
            f"{request.tokens} / {predicted:.0f}",
            f"in {left:.0f} s" if left > 0 else f"[red]{show_seconds(-left)} ago[/]",
            escape(" ".join(request.transcript.text.split())[-60:]),
        )
    return table
