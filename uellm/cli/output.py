"""The two consoles."""

from __future__ import annotations

import os
import sys

from rich.console import Console

WIDTH_OF_FILES = 120
"""Columns where the output is no terminal and `COLUMNS` is not set."""


def _width(*, is_terminal: bool) -> int | None:
    return None if is_terminal or "COLUMNS" in os.environ else WIDTH_OF_FILES


stdout = Console(highlight=False, width=_width(is_terminal=sys.stdout.isatty()))
stderr = Console(stderr=True, highlight=False, width=_width(is_terminal=sys.stderr.isatty()))


def print_line(console: Console, markup: str) -> None:
    """Print one line: wrapped between words on a terminal, whole elsewhere."""
    console.print(markup, soft_wrap=not console.is_terminal)
