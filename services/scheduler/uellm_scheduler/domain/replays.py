"""Ids of queries that are submitted again."""

from __future__ import annotations

import re
from collections.abc import Iterator

MAX_ID_CHARACTERS = 63
MOST_REPLAYS = 100
_REPLAY = re.compile(r"(?P<base>.+?)-replay(?:-(?P<number>[1-9]\d{0,8}))?")


def replay_ids(query_id: str) -> Iterator[str]:
    """Ids for another try of a query, in the order in which they are to be tried.

    Of `q`: `q-replay`, `q-replay-2`, ...; of `q-replay`, itself another try: `q-replay-2`, ... Cut to an id's length.
    """
    match = _REPLAY.fullmatch(query_id)
    base, first = (match["base"], int(match["number"] or 1) + 1) if match else (query_id, 1)
    for number in range(first, first + MOST_REPLAYS):
        suffix = "-replay" if number == 1 else f"-replay-{number}"
        yield base[: MAX_ID_CHARACTERS - len(suffix)].rstrip("-") + suffix
