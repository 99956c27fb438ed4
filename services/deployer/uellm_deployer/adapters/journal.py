"""The journal: one line an entry, `{length} {checksum} {JSON}`, appended and synchronised.

Lines are readable by eye; length and checksum tell a line that was torn by a crash.
"""

from __future__ import annotations

import asyncio
import os
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog
from pydantic import TypeAdapter, ValidationError

from uellm_deployer.adapters.files import sync_folder, write_file
from uellm_deployer.app.ports import JournalEntry

log = structlog.get_logger(__name__)

_ENTRY = TypeAdapter(JournalEntry)
_HEAD = len("00000000 00000000 ")
_MODE = 0o600


class JournalError(RuntimeError):
    """The journal is damaged before its end, which no crash does."""


class FileJournal:
    """A journal in a folder. At the start it is read, cut behind its last whole entry, and rewritten short."""

    def __init__(self, folder: Path, compact: Callable[[Sequence[JournalEntry]], Sequence[JournalEntry]]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / "journal"
        self._entries = list(compact(self._read()))
        self._rewrite(folder)

    def entries(self) -> Sequence[JournalEntry]:
        """What was there at the start, oldest first."""
        return tuple(self._entries)

    async def append(self, entry: JournalEntry) -> None:
        """Returns when the entry is on disk."""
        await asyncio.to_thread(self._append, encode(entry))

    def _read(self) -> list[JournalEntry]:
        content = self._file.read_bytes() if self._file.exists() else b""
        entries, whole = decode(content)
        if whole < len(content):
            log.warning("journal ended in a torn entry, which is dropped", bytes=len(content) - whole)
        return entries

    def _rewrite(self, folder: Path) -> None:
        fresh = folder / "journal.new"
        fresh.unlink(missing_ok=True)
        write_file(fresh, b"".join(map(encode, self._entries)), _MODE)
        fresh.rename(self._file)
        sync_folder(folder)

    def _append(self, line: bytes) -> None:
        with self._file.open("ab") as stream:
            before = stream.tell()
            try:
                stream.write(line)
                stream.flush()
                os.fsync(stream.fileno())
            except OSError:
                os.ftruncate(stream.fileno(), before)  # a full disk must not leave half a line before the next one
                raise


def encode(entry: JournalEntry) -> bytes:
    """An entry's line."""
    body = _ENTRY.dump_json(entry) + b"\n"
    return f"{len(body):08x} {zlib.crc32(body):08x} ".encode() + body


def decode(content: bytes) -> tuple[list[JournalEntry], int]:
    """The whole entries, and where the last of them ends.

    Raises JournalError if something whole comes after something that is not: that is damage, not a torn end.
    """
    entries: list[JournalEntry] = []
    position = 0
    while position < len(content):
        body = _body(content, position)
        if body is None:
            break
        try:
            entries.append(_ENTRY.validate_json(body))
        except ValidationError as error:
            raise JournalError(f"entry {len(entries) + 1} cannot be understood: {error}") from None
        position += _HEAD + len(body)
    _check_rest(content[position:], len(entries))
    return entries, position


def _body(content: bytes, position: int) -> bytes | None:
    """The body of the entry that begins there; None if it is not whole."""
    head = content[position : position + _HEAD]
    try:
        length, checksum = int(head[:8], 16), int(head[9:17], 16)
    except ValueError:
        return None
    body = content[position + _HEAD : position + _HEAD + length]
    whole = len(head) == _HEAD and len(body) == length and zlib.crc32(body) == checksum
    return body if whole else None


def _check_rest(rest: bytes, read: int) -> None:
    for start, line_end in enumerate(rest):
        if line_end == ord("\n") and _body(rest, start + 1):
            raise JournalError(
                f"entry {read + 1} is damaged, but whole entries follow: restore the journal from a copy"
            )
