"""The pending table holds a query as a row of numbers, gives it back as it came, and takes little memory for it."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some
from uellm_scheduler.domain.pending import PendingTable
from uellm_scheduler.domain.pending_query import Needs, PendingQuery, Progress

from tests.support.world import submission
from uellm.v1.query_pb2 import ON_MISS_CANCEL
from uellm.v1.stream_pb2 import Attempt, ProfiledQuery

MAX_BYTES = 512


@some.composite
def queries(draw: some.DrawFn) -> PendingQuery:
    made = submission(draw(some.uuids()).hex)
    entry = made.entry
    entry.priority = draw(some.integers(-(2**15) + 1, 2**15 - 1))
    entry.profile.prompt_tokens = draw(some.integers(0, 2**31 - 1))
    entry.profile.kv_cache_bytes_limit = draw(some.integers(0, 2**62))
    entry.profile.service_time_p50.FromMilliseconds(draw(some.integers(0, 10**9)))
    if draw(some.booleans()):
        entry.slo.completion.FromMilliseconds(draw(some.integers(1, 10**10)))
        entry.slo.confidence = draw(some.floats(0.0625, 0.9375, width=32))
        entry.slo.on_miss = ON_MISS_CANCEL if draw(some.booleans()) else 0
    if draw(some.booleans()):
        entry.slo.first_token.FromMilliseconds(draw(some.integers(1, 10**10)))
    entry_id = f"{draw(some.integers(0, 253_402_300_799_999))}-{draw(some.integers(0, 2**64 - 1))}"
    tokens = tuple(draw(some.lists(some.integers(0, 50_000), max_size=3)))
    attempts = draw(some.integers(0, 3))
    history = tuple(Attempt(attempt=number + 1) for number in range(attempts))
    query = PendingQuery.of(made.name, entry_id, entry, attempts, Progress(tokens, "text", 7), history)
    return replace(query, not_before_ms=draw(some.integers(0, 2**62)))


@given(some.lists(queries(), min_size=1, max_size=5))
def test_a_query_leaves_as_it_came(made: list[PendingQuery]) -> None:
    table = PendingTable(capacity=1)
    for query in made:
        table.add(query)
    for query in made:
        found = table.get(query.name)
        assert found is not None
        assert replace(found, needs=query.needs) == query
        rounded = replace(query.needs, **_single(query.needs))
        assert found.needs == rounded
        assert table.remove(query.name) == found
        assert table.get(query.name) is None
    assert len(table) == 0


def _single(needs: Needs) -> dict[str, object]:
    """Its real numbers as a column holds them."""
    single = {name: float(np.float32(getattr(needs, name))) for name in ("confidence", "p50_tokens", "p90_tokens")}
    lengths = {name: tuple(np.float32(getattr(needs, name)).tolist()) for name in ("length_points", "length_tail")}
    return {**single, "p99_tokens": float(np.float32(needs.p99_tokens)), **lengths}


@pytest.mark.parametrize("count", [2_000, 10_000])
def test_a_waiting_query_takes_few_bytes(count: int) -> None:
    entries = [
        (submission(f"{number:032x}").entry.SerializeToString(), f"{1_700_000_000_000 + number}-0")
        for number in range(count)
    ]
    tracemalloc.start()
    try:
        table = PendingTable()
        for data, entry_id in entries:
            entry = ProfiledQuery.FromString(data)
            table.add(PendingQuery.of(entry.name, entry_id, entry))
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(table) == count
    assert used / count <= MAX_BYTES
