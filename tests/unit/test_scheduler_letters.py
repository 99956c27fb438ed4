"""Ids of queries that are tried again, and pages."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as some
from uellm_scheduler.app.pages import PAGE_BYTES, page_of
from uellm_scheduler.domain.replays import replay_ids

from uellm.rpc.errors import InvalidArgumentError
from uellm.rpc.names import QueryName
from uellm.rpc.paging import MAX_SIZE, page_size, page_token, read_page_token
from uellm.v1.stream_pb2 import DeadLetter

IDS = some.from_regex(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True)


@pytest.mark.parametrize(
    ("query_id", "expected"),
    [
        ("q", ["q-replay", "q-replay-2", "q-replay-3"]),
        ("q-replay", ["q-replay-2", "q-replay-3", "q-replay-4"]),
        ("q-replay-9", ["q-replay-10", "q-replay-11", "q-replay-12"]),
        ("replay", ["replay-replay", "replay-replay-2", "replay-replay-3"]),
        ("x" * 63, ["x" * 56 + "-replay", "x" * 54 + "-replay-2", "x" * 54 + "-replay-3"]),
        ("x" * 55 + "-" + "x" * 7, ["x" * 55 + "-replay", "x" * 54 + "-replay-2", "x" * 54 + "-replay-3"]),
    ],
)
def test_ids_of_further_tries(query_id: str, expected: list[str]):
    assert list(itertools.islice(replay_ids(query_id), 3)) == expected


@given(IDS)
def test_ids_of_further_tries_are_ids_that_differ(query_id: str):
    ids = list(replay_ids(query_id))
    assert len(set(ids)) == len(ids)
    assert query_id not in ids
    for one in ids:
        QueryName.parse(f"tenants/t/models/m/queries/{one}")


async def items(sizes: list[int]) -> AsyncIterator[tuple[str, DeadLetter]]:
    for number, size in enumerate(sizes):
        letter = DeadLetter(name=str(number))
        letter.record.query.prompt = "x" * size
        yield f"{number}-0", letter


@pytest.mark.parametrize(
    ("sizes", "size", "expected", "position"),
    [
        ([], 3, [], ""),
        ([1, 1, 1], 3, ["0", "1", "2"], ""),
        ([1, 1, 1, 1], 3, ["0", "1", "2"], "2-0"),
        ([PAGE_BYTES, PAGE_BYTES, 1], 3, ["0"], "0-0"),
        ([1, PAGE_BYTES - 100, 200, 1], 4, ["0", "1"], "1-0"),
    ],
)
async def test_a_page_is_full_by_count_or_by_bytes(sizes: list[int], size: int, expected: list[str], position: str):
    page, after = await page_of(items(sizes), size)
    assert ([letter.name for letter in page], after) == (expected, position)


def test_tokens_are_of_one_list():
    token = page_token("dead-letters/m", "17-3")
    assert read_page_token("dead-letters/m", token) == "17-3"
    assert (page_token("dead-letters/m", ""), read_page_token("dead-letters/m", "")) == ("", "")
    for of, wrong in (("dead-letters/other", token), ("dead-letters/m", token[:-4]), ("dead-letters/m", "é")):
        with pytest.raises(InvalidArgumentError):
            read_page_token(of, wrong)


@given(some.text())
def test_no_token_that_nobody_gave_out_is_taken(token: str):
    if token:
        with pytest.raises(InvalidArgumentError):
            read_page_token("m", token)


def test_sizes_of_pages():
    assert (page_size(0), page_size(7), page_size(10**6)) == (50, 7, MAX_SIZE)
    with pytest.raises(InvalidArgumentError):
        page_size(-1)
