"""Pages of what is listed in the order of stream ids (AIP-158)."""

from __future__ import annotations

import base64
import re

from uellm.rpc.errors import FieldViolation, InvalidArgumentError

DEFAULT_SIZE = 50
MAX_SIZE = 1_000
_POSITION = re.compile(r"\d{1,19}-\d{1,19}", re.ASCII)


def page_size(asked: int) -> int:
    """The size of a page; raises InvalidArgumentError if it is negative."""
    if asked < 0:
        raise InvalidArgumentError([FieldViolation("page_size", "must not be negative")])
    return min(asked or DEFAULT_SIZE, MAX_SIZE)


def page_token(of: str, position: str) -> str:
    """Says where the next page of a list begins; empty at the end. `of` says which list."""
    return base64.urlsafe_b64encode(f"{of} {position}".encode()).decode() if position else ""


def read_page_token(of: str, token: str) -> str:
    """The stream id behind which a page begins, empty at the beginning.

    Raises:
        InvalidArgumentError: the token is of another list, or none.
    """
    if not token:
        return ""
    try:
        named, _, position = base64.b64decode(token, altchars=b"-_", validate=True).decode().rpartition(" ")
    except ValueError:
        named = position = ""
    if named != of or not _POSITION.fullmatch(position):
        raise InvalidArgumentError(
            [FieldViolation("page_token", "must be `next_page_token` of an earlier response to the same request")]
        )
    return position
