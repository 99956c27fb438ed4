"""Looks into protobuf messages that could not be read, to say which field is to blame.

It walks the wire format against the message's descriptor: https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from google.protobuf.descriptor import Descriptor, FieldDescriptor

_VARINT, _FIXED64, _LENGTH, _START_GROUP, _END_GROUP, _FIXED32 = range(6)
_MAX_VARINT_BYTES = 10
_MAX_DEPTH = 100
# Bounds the time that a hostile message can cost: the walk runs on the event loop.
_MAX_FIELDS = 20_000


class UnreadableError(ValueError):
    """The bytes are no protobuf message, or one of more fields than are looked at."""


def invalid_utf8_field(descriptor: Descriptor, data: bytes) -> str | None:
    """Finds the first string field whose bytes are not UTF-8.

    Args:
        descriptor: type of the message.
        data: the message on the wire.

    Returns:
        Path of the field, e.g. `query.chat.messages[3].content`; the path of a map stands for its keys and values, too.
        None if there is none, or if the message cannot be read at all.
    """
    try:
        return _Walk().invalid_utf8(descriptor, memoryview(data), 0)
    except UnreadableError:
        return None


def largest_field(descriptor: Descriptor, data: bytes) -> tuple[str, int]:
    """Finds what makes a message large.

    Args:
        descriptor: type of the message.
        data: the message on the wire.

    Returns:
        Path and size in bytes of the largest field, followed from message to message down to a field that is no
        message or is repeated; all entries of a repeated field count together. `("", len(data))` if the message
        cannot be read.
    """
    path: list[str] = []
    size = len(data)
    view = memoryview(data)
    walk = _Walk()
    try:
        while True:
            parts = [(field, part) for field, part in walk.fields(descriptor, view) if field is not None]
            sizes: Counter[int] = Counter()
            for field, part in parts:
                sizes[field.number] += len(part)
            if not sizes:
                break
            number, size = sizes.most_common(1)[0]
            field, view = next((field, part) for field, part in parts if field.number == number)
            path.append(field.name)
            if field.message_type is None or field.is_repeated:
                break
            descriptor = field.message_type
    except UnreadableError:
        return "", len(data)
    return ".".join(path), size


class _Walk:
    """One walk over a message, within one budget of fields."""

    def __init__(self) -> None:
        self._budget = _MAX_FIELDS

    def invalid_utf8(self, descriptor: Descriptor, data: memoryview, depth: int) -> str | None:
        if depth > _MAX_DEPTH:
            raise UnreadableError
        seen: Counter[int] = Counter()
        for field, part in self.fields(descriptor, data):
            if field is None:
                continue
            path = f"{field.name}[{seen[field.number]}]" if _is_list(field) else field.name
            seen[field.number] += 1
            if field.type == FieldDescriptor.TYPE_STRING and not _is_utf8(part):
                return path
            if field.message_type is not None:
                inner = self.invalid_utf8(field.message_type, part, depth + 1)
                if inner is not None:
                    return path if _is_map(field) else f"{path}.{inner}"
        return None

    def fields(self, descriptor: Descriptor, data: memoryview) -> Iterator[tuple[FieldDescriptor | None, memoryview]]:
        """Yields the length-delimited fields of a message; None as field for those that it does not know."""
        position = 0
        while position < len(data):
            tag, position = self._tag(data, position)
            number, wire_type = tag >> 3, tag & 7
            if wire_type == _LENGTH:
                size, position = _varint(data, position)
                end = position + size
                if end > len(data):
                    raise UnreadableError
                yield descriptor.fields_by_number.get(number), data[position:end]
                position = end
            else:
                position = self._skip(data, position, number, wire_type, 0)

    def _tag(self, data: memoryview, position: int) -> tuple[int, int]:
        self._budget -= 1
        if self._budget < 0:
            raise UnreadableError
        return _varint(data, position)

    def _skip(self, data: memoryview, position: int, number: int, wire_type: int, depth: int) -> int:
        """Returns the position after a field that is not length-delimited."""
        if wire_type == _VARINT:
            return _varint(data, position)[1]
        if wire_type == _START_GROUP and depth < _MAX_DEPTH:
            return self._skip_group(data, position, number, depth)
        if wire_type not in (_FIXED64, _FIXED32):
            raise UnreadableError
        position += 8 if wire_type == _FIXED64 else 4
        if position > len(data):
            raise UnreadableError
        return position

    def _skip_group(self, data: memoryview, position: int, number: int, depth: int) -> int:
        while True:
            tag, position = self._tag(data, position)
            inner, wire_type = tag >> 3, tag & 7
            if wire_type == _END_GROUP:
                if inner != number:
                    raise UnreadableError
                return position
            if wire_type == _LENGTH:
                size, position = _varint(data, position)
                position += size
            else:
                position = self._skip(data, position, inner, wire_type, depth + 1)


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    """Returns a number and the position after it."""
    value = 0
    for index, byte in enumerate(data[position : position + _MAX_VARINT_BYTES]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, position + index + 1
    raise UnreadableError


def _is_utf8(data: memoryview) -> bool:
    try:
        str(data, "utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)


def _is_list(field: FieldDescriptor) -> bool:
    return field.is_repeated and not _is_map(field)
