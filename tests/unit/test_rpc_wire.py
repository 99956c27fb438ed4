"""Which field is to blame for a message that cannot be read?"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from google.protobuf.message import DecodeError, Message
from google.protobuf.struct_pb2 import Value
from hypothesis import given, settings
from hypothesis import strategies as st

from uellm.rpc.wire import invalid_utf8_field, largest_field
from uellm.v1.profiler_pb2 import BatchProfileRequest, SubmitRequest

MARK = "#mark#"
BAD = [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\x80"]


def _add_message(request: SubmitRequest, content: str) -> None:
    request.query.chat.messages.add(role="user", content="x")
    request.query.chat.messages.add(role="user", content=content)


# Path, and how to put text there.
FIELDS: dict[str, Callable[[SubmitRequest, str], None]] = {
    "parent": lambda request, text: setattr(request, "parent", text),
    "query_id": lambda request, text: setattr(request, "query_id", text),
    "query.prompt": lambda request, text: setattr(request.query, "prompt", text),
    "query.adapter": lambda request, text: setattr(request.query, "adapter", text),
    "query.prefix_hash": lambda request, text: setattr(request.query, "prefix_hash", text),
    "query.chat.messages[1].content": _add_message,
    "query.generation.stop[2]": lambda request, text: request.query.generation.stop.extend(["a", "b", text]),
    "query.labels": lambda request, text: request.query.labels.update({"key": text}),
    "query.engine_parameters.fields": lambda request, text: request.query.engine_parameters.update({"a": ["x", text]}),
}

text = st.text(st.characters(exclude_characters="#", codec="utf-8"), max_size=20)


@st.composite
def requests(draw: st.DrawFn) -> SubmitRequest:
    """A request with text and numbers in many places."""
    request = SubmitRequest(parent=draw(text), query_id=draw(text))
    request.query.generation.temperature = draw(st.floats())
    request.query.slo.completion.seconds = draw(st.integers(-(2**40), 2**40))
    request.query.priority = draw(st.integers(-(2**31), 2**31 - 1))
    request.query.labels.update(draw(st.dictionaries(text, text, max_size=3)))
    return request


@settings(deadline=None)
@given(request=requests(), path=st.sampled_from(sorted(FIELDS)), before=text, after=text, bad=st.sampled_from(BAD))
def test_corrupted_field_is_found(request: SubmitRequest, path: str, before: str, after: str, bad: bytes) -> None:
    FIELDS[path](request, f"{before}{MARK}{after}")
    data = request.SerializeToString()
    assert invalid_utf8_field(SubmitRequest.DESCRIPTOR, data) is None
    assert data.count(MARK.encode()) == 1
    corrupt = data.replace(MARK.encode(), bad.ljust(len(MARK), b"x"))
    with pytest.raises(DecodeError):
        SubmitRequest.FromString(corrupt)
    assert invalid_utf8_field(SubmitRequest.DESCRIPTOR, corrupt) == path


UNKNOWN = bytes.fromhex("98 06 05")  # field 99, a varint
FIXED = bytes.fromhex("99 06 0102030405060708 9d 06 01020304")  # field 99, 64 and 32 bits
GROUP = bytes.fromhex("9b 06 98 06 05 9a 06 02 ffff 9b 06 9c 06 9c 06")  # field 99, a group in a group
BYTES = bytes.fromhex("9a 06 02 ffff")  # field 99, two bytes that are not UTF-8


@pytest.mark.parametrize("unknown", [UNKNOWN, FIXED, GROUP, BYTES])
def test_unknown_fields_are_passed_over(unknown: bytes) -> None:
    good = SubmitRequest(query={"prompt": MARK}).SerializeToString()
    data = unknown + good.replace(b"#mark#", b"mark\xff\xff") + unknown
    assert SubmitRequest.FromString(unknown + good).query.prompt == MARK
    assert invalid_utf8_field(SubmitRequest.DESCRIPTOR, data) == "query.prompt"


@pytest.mark.parametrize(
    "data",
    [
        b"\xff" * 11,  # no end to a number
        b"\x0a\x05ab",  # longer than the message
        b"\x0f",  # wire type 7
        b"\x9c\x06",  # the end of a group that did not begin
        b"\x9b\x06",  # a group without end
        b"\x9b\x06\xa4\x06",  # a group that ends as another
        b"\x9b\x06\x9a\x06\x7f",  # a field beyond the end, in a group
        b"\x9b\x06" * 200,  # groups in groups
        b"\x99\x06\x01",  # half a number
    ],
)
def test_what_is_no_message_blames_no_field(data: bytes) -> None:
    with pytest.raises(DecodeError):
        SubmitRequest.FromString(data)
    assert invalid_utf8_field(SubmitRequest.DESCRIPTOR, data) is None
    assert largest_field(SubmitRequest.DESCRIPTOR, data) == ("", len(data))


@settings(max_examples=300)
@given(st.binary(max_size=60))
def test_any_bytes_are_survived(data: bytes) -> None:
    path = invalid_utf8_field(SubmitRequest.DESCRIPTOR, data)
    if path is not None:
        with pytest.raises(DecodeError):
            SubmitRequest.FromString(data)
    assert largest_field(SubmitRequest.DESCRIPTOR, data)[1] <= len(data)


def test_deep_nesting_is_bounded() -> None:
    part = b"\x0a\x01\xff"
    for _ in range(2_000):  # ListValue in Value in ListValue ...
        part = b"\x0a" + _varint(len(part)) + part
        part = b"\x32" + _varint(len(part)) + part
    assert invalid_utf8_field(Value.DESCRIPTOR, part) is None


def test_only_so_many_fields_are_looked_at() -> None:
    bad, many = b"\x0a\x01\xff", b"\x98\x06\x05" * 30_000
    assert invalid_utf8_field(SubmitRequest.DESCRIPTOR, bad + many) == "parent"
    assert invalid_utf8_field(SubmitRequest.DESCRIPTOR, many + bad) is None


@pytest.mark.parametrize(
    ("message", "path", "size"),
    [
        (SubmitRequest(parent="ab", query={"prompt": "abcdef"}), "query.prompt", 6),
        (SubmitRequest(parent="a" * 99, query={"prompt": "abcdef"}), "parent", 99),
        (SubmitRequest(query={"prompt_token_ids": {"ids": range(100)}}), "query.prompt_token_ids.ids", 100),
        (BatchProfileRequest(parent="abcdef", queries=[{"prompt": "abc"}] * 3), "queries", 15),
        (SubmitRequest(), "", 0),
    ],
)
def test_largest_field(message: Message, path: str, size: int) -> None:
    assert largest_field(message.DESCRIPTOR, message.SerializeToString()) == (path, size)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
