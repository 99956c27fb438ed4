"""Ctrl-C that is not lost.

The exception that it raises is dropped, with a note on stderr at most, where it strikes inside a finaliser or a
callback of a library, and may become another one where it strikes inside a call; so it is noted as well, looked for now
and then, and raised instead of what it became.
"""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any


class Interrupts:
    """Notes SIGINT while the block runs, and raises KeyboardInterrupt as usual. Of the main thread."""

    def __init__(self) -> None:
        self._noted = False
        self._before: Any = None

    def __enter__(self) -> Interrupts:
        self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        signal.signal(signal.SIGINT, self._before)
        if self._noted and isinstance(error, Exception):
            raise KeyboardInterrupt from error

    def check(self) -> None:
        """Raise KeyboardInterrupt if there was one, also where it was lost."""
        if self._noted:
            raise KeyboardInterrupt

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self._noted = True
        raise KeyboardInterrupt
