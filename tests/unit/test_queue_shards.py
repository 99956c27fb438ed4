"""Which shard of a model's queue a query is put on, and what its keys are."""

from __future__ import annotations

from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as some

from uellm.messaging.deployments import queue_for, queue_of
from uellm.messaging.keys import ModelKeys, is_queue_name, queue_name
from uellm.v1.stream_pb2 import DeploymentRecord

OF_A_SHARD = ("queue", "depth", "owner", "owner_epoch", "backlog", "running", "decisions")
OF_THE_MODEL = ("policy", "cost", "observations", "calibration", "calibrator", "dead_letters")


def record(name: str, shard: int, share: float) -> DeploymentRecord:
    return DeploymentRecord(name=f"deployments/{name}", model="m.1", queue_shard=shard, traffic_share=share)


shares = some.lists(some.tuples(some.integers(0, 5), some.sampled_from([0.0, 0.25, 1.0])), min_size=1, max_size=6)


@given(shares=shares, name=some.text(max_size=30))
def test_a_query_goes_where_somebody_serves(shares: list[tuple[int, float]], name: str) -> None:
    ready = [record(str(number), shard, share) for number, (shard, share) in enumerate(shares)]
    queue = queue_for(name, ready)
    serving = [one for one in ready if queue_of(one) == queue]
    assert serving
    assert any(one.traffic_share for one in serving) or not any(one.traffic_share for one in ready)
    assert queue_for(name, ready[::-1]) == queue, "whatever the order in which they are told"


def test_queries_are_spread_by_the_traffic_shares() -> None:
    ready = [record("a", 0, 0.25), record("b", 0, 0.25), record("c", 1, 1.5)]
    drawn = [queue_for(f"tenants/t/models/m.1/queries/{number}", ready) for number in range(4_000)]
    assert set(drawn) == {"m.1", "m.1/1"}
    assert drawn.count("m.1/1") / len(drawn) == pytest.approx(0.75, abs=0.03)
    with pytest.raises(ValueError, match="no deployment"):
        queue_for("q", [])


def test_shards_share_what_is_the_models() -> None:
    first, second = ModelKeys.of("m.1"), ModelKeys.of("m.1/2")
    assert {one.name for one in fields(ModelKeys)} == {"model", "shard"}
    assert all(getattr(first, key) != getattr(second, key) for key in OF_A_SHARD)
    assert all(getattr(first, key) == getattr(second, key) for key in OF_THE_MODEL)
    assert first.query("t", "q") == second.query("t", "q")
    assert all("{m.1}" in getattr(second, key) for key in (*OF_A_SHARD, *OF_THE_MODEL)), "one slot of a cluster"


@given(shard=some.integers(0, 63))
def test_names_of_queues_are_read_back(shard: int) -> None:
    name = queue_name("m.1", shard)
    assert is_queue_name(name)
    assert ModelKeys.of(name) == ModelKeys("m.1", shard)


@pytest.mark.parametrize("name", ["", "/1", "m/", "m/0", "m/01", "m/x", "m/1/2", "M", "a:b", "m/-1", "m/\u0661"])
def test_what_is_no_queue_is_told(name: str) -> None:
    assert not is_queue_name(name)
