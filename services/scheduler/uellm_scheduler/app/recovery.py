"""What an earlier owner delivered of an answer, read back from its event stream."""

from __future__ import annotations

from collections.abc import Iterable

from uellm.v1.stream_pb2 import QueryEvent

from ..domain.pending import Progress


def progress_of(events: Iterable[tuple[int, QueryEvent]]) -> Progress:
    """Fold a query's events (time in ms, event; oldest first) into what was delivered."""
    token_ids: list[int] = []
    text: list[str] = []
    first_token_ms = 0
    for time_ms, event in events:
        kind = event.WhichOneof("event")
        if kind == "restarted":
            token_ids, text = [], []
        elif kind == "token_delta":
            first_token_ms = first_token_ms or time_ms
            token_ids += event.token_delta.token_ids
            text.append(event.token_delta.text)
    return Progress(tuple(token_ids), "".join(text), first_token_ms)
