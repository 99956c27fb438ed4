"""Pages that fit into one message."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TypeVar

from google.protobuf.message import Message

PAGE_BYTES = 1 << 20
"""A page ends early above this; its token goes on. Clients accept 4 MiB."""

M = TypeVar("M", bound=Message)


async def page_of(items: AsyncIterator[tuple[str, M]], size: int) -> tuple[list[M], str]:
    """At most `size` of the items (position, item), and the position that the next page begins after; "" at the end."""
    page: list[M] = []
    used, last = 0, ""
    async for position, item in items:
        used += item.ByteSize()
        if len(page) == size or (page and used > PAGE_BYTES):
            return page, last
        page.append(item)
        last = position
    return page, ""
