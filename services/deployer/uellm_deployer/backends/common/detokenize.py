"""Incremental detokenization: whole characters only, stop strings held back."""

from __future__ import annotations

from collections.abc import Callable, Sequence

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Detokenizer:
    """Text of one row, token by token.

    The text that `take` has given out after a prefix of tokens is a function of that prefix alone, however the
    calls were spread, so a row resumed after the same tokens goes on with exactly the text that is missing.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str] = ()) -> None:
        self._decode = decode
        self._stop = tuple(stop)
        self._window: list[int] = []  # the tokens of the last piece, as left context, and the ones after it
        self._context = 0  # how many of the window are left context
        self._context_text = ""
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> None:
        """Add a token that carries text (anything but the end of sequence that ends the row)."""
        self._window.append(token)
        text = self._decode(self._window)
        # A decoder shows bytes of an unfinished character as U+FFFD: wait for the rest.
        if len(text) <= len(self._context_text) or text.endswith(REPLACEMENT):
            return
        piece = text[len(self._context_text) :]
        del self._window[: self._context]
        self._context = len(self._window)
        self._context_text = self._decode(self._window)
        self._append(piece)

    def take(self) -> str:
        """The text that may be sent by now and was not taken yet."""
        ready = len(self._held) - self._possible_stop()
        text, self._held = self._held[:ready], self._held[ready:]
        return text

    def finish(self) -> None:
        """Release what was held back: nothing follows."""
        if not self.stopped:
            self._append(self._decode(self._window)[len(self._context_text) :])
            self._stop = ()

    def _append(self, piece: str) -> None:
        self._held += piece
        found = [at for at in map(self._held.find, self._stop) if at >= 0]
        if found:
            self._held = self._held[: min(found)]
            self._stop = ()
            self.stopped = True

    def _possible_stop(self) -> int:
        """Length of the longest end of the held text that may be the beginning of a stop string."""
        longest = max(map(len, self._stop), default=0) - 1
        for size in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-size:]) for stop in self._stop):
                return size
        return 0
