"""A row while it runs, and the news of it that are sent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .detokenize import Detokenizer
from .request import Row

GATHERED_TOKENS = 16  # news of a row are sent at the latest when they hold this many tokens


@dataclass(frozen=True, slots=True)
class RowDelta:
    """The news of one row: one element of every output tensor."""

    row_id: str
    text: str = ""
    token_ids: tuple[int, ...] = ()
    first_token_index: int = 0
    finish_reason: str = ""
    error: str = ""
    input_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Limits:
    """What ends a row besides its own parameters."""

    end_tokens: frozenset[int]
    context_limit: int


class LiveRow:
    """State of a row from its arrival to its end."""

    def __init__(self, row: Row, limits: Limits, decode: Callable[[Sequence[int]], str]) -> None:
        """Goes through the resumed tokens, whose text an earlier attempt has sent."""
        self.row = row
        self.cancel_requested = False
        self.finish_reason = ""
        self.error = ""
        self.outcome = ""  # the finish reason that the tokens themselves call for
        self.length = 0  # tokens of the answer, resumed ones included
        self._ends = frozenset() if row.sampling.ignore_eos else limits.end_tokens
        self._most_tokens = min(row.sampling.max_tokens, limits.context_limit - len(row.prompt))
        self._text = Detokenizer(decode, row.sampling.stop)
        self._news: list[int] = []
        self._first_sent = self._end_sent = False
        for token in row.resume:
            if not self.outcome:
                self._advance(token)
        if self.length >= self._most_tokens and not self.outcome:
            self.outcome = "length"
        self._text.take()

    def accept(self, token: int) -> None:
        """Add a token that was drawn for this row; `outcome` tells afterwards whether it ends the row."""
        self._news.append(token)
        self._advance(token)

    def fail(self, message: str) -> None:
        """Let the row end as an error; text that is held back stays unsent."""
        self.outcome, self.error = "error", message

    @property
    def tokens_left(self) -> int:
        """Most tokens that may still come."""
        return self._most_tokens - self.length

    @property
    def urgent(self) -> bool:
        """Whether there are news that must not wait: the first token, the end, or many tokens."""
        unsent_end = bool(self.finish_reason) and not self._end_sent
        return unsent_end or len(self._news) >= (GATHERED_TOKENS if self._first_sent else 1)

    def take_delta(self) -> RowDelta | None:
        """What is new since the last call; None if nothing is."""
        text = self._text.take()
        if not (text or self._news or (self.finish_reason and not self._end_sent)):
            return None
        tokens, self._news = tuple(self._news), []
        self._first_sent = self._first_sent or bool(tokens)
        self._end_sent = bool(self.finish_reason)
        first = self.length - len(tokens)
        return RowDelta(self.row.row_id, text, tokens, first, self.finish_reason, self.error, len(self.row.prompt))

    def _advance(self, token: int) -> None:
        """Text given out is a function of the tokens alone, so that a resumed row sends just what is missing."""
        self.length += 1
        if token in self._ends:
            self.outcome = "stop"
        else:
            self._text.push(token)
            if self._text.stopped:
                self.outcome = "stop"
            elif self.length >= self._most_tokens:
                self.outcome = "length"
        if self.outcome:
            self._text.finish()
            self.outcome = "stop" if self._text.stopped else self.outcome
