"""The choice among candidates: against all choices one by one, to the byte, and what is said where nothing fits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from uellm_deployer.domain.fleet.choice import (
    Candidate,
    Chosen,
    NoRoomError,
    Party,
    UndecidedError,
    lacking,
    load,
    needs,
)
from uellm_deployer.domain.fleet.programme import STANDBY, choose, least_load

from tests.support.deployer import a_spec

SLACK = 0.0613
DEVICES = "abc"


def candidate(name: str, needs: dict[str, int], *, time: float = 1.0, latency: float = 1.0, **busy: float) -> Candidate:
    return Candidate(a_spec(model=name), needs, busy or dict.fromkeys(needs, time), time, latency)


def alone(name: str, size: int, devices: str = DEVICES, **times: float) -> list[Candidate]:
    """On each device by itself."""
    return [candidate(f"{name}-on-{d}", {d: size}, time=times.get(d, 1.0), latency=times.get(d, 1.0)) for d in devices]


def latency(parties: Sequence[Party], chosen: Chosen) -> float:
    weights = [max(party.each, STANDBY / len(parties)) for party in parties]
    return sum(weight * one.latency for weight, taken in zip(weights, chosen, strict=True) for one in taken)


def no_slower(chosen: Chosen, than: Chosen) -> bool:
    """Of every member the slowest copy, and all together."""
    times = [[[one.latency for one in taken] for taken in choice] for choice in (chosen, than)]
    return all(max(a) <= max(b) and sum(a) <= sum(b) for a, b in zip(*times, strict=True))


def every(parties: Sequence[Party], free: dict[str, int]) -> Iterator[Chosen]:
    """All choices that fit."""
    for chosen in product(*(combinations(party.candidates, party.copies) for party in parties)):
        specs = [one.spec for taken in chosen for one in taken]
        if len(set(specs)) == len(specs) and not lacking(chosen, free):
            yield chosen


@st.composite
def fleets(draw: st.DrawFn) -> tuple[list[Party], dict[str, int]]:
    """Up to four members with up to two copies on three devices, alone or on two; equal numbers are frequent."""
    free = {device: draw(st.integers(5, 12)) for device in DEVICES}
    shares = draw(st.lists(st.integers(0, 4), min_size=1, max_size=4).filter(any))
    parties = []
    for number, share in enumerate(shares):
        found = []
        for place in range(draw(st.integers(1, 5))):
            on = draw(st.sampled_from(["a", "b", "c", "ab", "bc", "ac"]))
            sizes = {device: draw(st.integers(1, 7)) for device in on}
            busy = {device: float(draw(st.integers(1, 6))) for device in on}
            time = sum(busy.values()) + draw(st.integers(0, 2))
            name = draw(st.sampled_from([f"m{number}-{place}", f"shared-{place}"]))
            quick = float(draw(st.integers(1, 9)))
            found.append(Candidate(a_spec(model=name), sizes, busy, time, quick))
        copies = draw(st.integers(1, min(2, len(found))))
        parties.append(Party(found, share / sum(shares), copies))
    return parties, free


@settings(max_examples=250, deadline=None)
@given(fleets())
def test_no_choice_is_better(fleet: tuple[list[Party], dict[str, int]]) -> None:
    parties, free = fleet
    choices = list(every(parties, free))
    if not choices:
        with pytest.raises(NoRoomError) as caught:
            choose(parties, free, slack=SLACK)
        assert caught.value.lacking == lacking(caught.value.chosen, free)
        return
    found = choose(parties, free, slack=SLACK)
    assert found.chosen in choices
    least = min(load(parties, one) for one in choices)
    assert found.least == pytest.approx(least, rel=1e-4)
    assert found.bound <= least * (1 + 1e-6)
    within = [one for one in choices if load(parties, one) <= (1 + SLACK) * least]
    quickest = min(latency(parties, one) for one in within)
    assert latency(parties, found.chosen) <= quickest * (1 + 1e-3)
    assert found.load <= (1 + SLACK) * least * (1 + 1e-4)
    assert len(needs(found.chosen)) == min(len(needs(one)) for one in within if no_slower(one, found.chosen))
    assert least_load(parties, free) == pytest.approx(least, rel=1e-4)
    assert choose(parties, free, slack=SLACK) == found


def test_a_byte_too_much_is_too_much() -> None:
    """Of 80 GB, of which a float of the solver knows no single byte."""
    room = 80_000_000_000
    both = [Party(alone("one", room // 2, "a"), 0.5), Party(alone("two", room // 2, "a"), 0.5)]
    assert len(choose(both, {"a": room}, slack=SLACK).chosen) == 2
    with pytest.raises(NoRoomError) as caught:
        choose(both, {"a": room - 1}, slack=SLACK)
    assert caught.value.lacking == {"a": 1}
    assert len(choose(both, {"a": room, "b": 1}, slack=SLACK).chosen) == 2


def test_copies_never_take_the_same_even_where_that_is_all_that_fits() -> None:
    pair = [Party(alone("m", 1, "ab", b=9.0), 1.0, copies=2)]
    assert needs(choose(pair, {"a": 9, "b": 9}, slack=SLACK).chosen) == {"a": 1, "b": 1}
    with pytest.raises(NoRoomError) as caught:
        choose([Party(alone("m", 1, "a"), 1.0, copies=2)], {"a": 9}, slack=SLACK)
    assert caught.value.lacking == {}
    twice = [Party(alone("m", 1, "ab", b=9.0), 0.5), Party(alone("m", 1, "ab", b=9.0), 0.5)]
    assert needs(choose(twice, {"a": 9, "b": 9}, slack=SLACK).chosen) == {"a": 1, "b": 1}


def test_what_is_missing_is_the_least_in_sum() -> None:
    parties = [Party(alone(name, 7), 0.25) for name in "wxyz"]
    with pytest.raises(NoRoomError) as caught:
        choose(parties, {"a": 9, "b": 13, "c": 8}, slack=SLACK)
    assert caught.value.lacking == {"b": 1}
    assert len(caught.value.chosen) == 4


def test_a_pipeline_counts_on_all_its_devices_and_its_engine() -> None:
    spread = candidate("m", {"a": 1, "b": 1}, time=6.0, a=3.0, b=2.0)
    found = choose([Party([spread], 0.5), Party(alone("n", 1, "a", a=5.0), 0.5)], {"a": 9, "b": 9}, slack=0.0)
    assert found.load == pytest.approx(0.5 * (3 + 5)), "the first device"
    found = choose([Party([spread], 0.9), Party(alone("n", 1, "a", a=1.0), 0.1)], {"a": 9, "b": 9}, slack=0.0)
    assert found.load == pytest.approx(0.9 * 6), "the engine"


def test_a_member_without_traffic_is_still_quick() -> None:
    standby = Party(alone("s", 1, "ab", a=5.0, b=1.0), 0.0)
    found = choose([standby, Party(alone("m", 1, "a"), 1.0)], {"a": 9, "b": 9}, slack=SLACK)
    assert found.chosen[0][0].needs == {"b": 1}


def test_alike_devices_are_taken_from_the_first_on() -> None:
    parties = [Party(alone(name, 4), share) for name, share in (("x", 0.6), ("y", 0.2), ("z", 0.2))]
    found = choose(parties, {"a": 9, "b": 9, "c": 9}, slack=SLACK)
    assert needs(found.chosen) == {"a": 4, "b": 8}


def test_a_search_that_ends_says_how_good_its_answer_is_at_least() -> None:
    """Nine equal jobs on two devices that are never even: the least is 5/9."""
    parties = [Party(alone(f"m{n}", 1, "ab"), 1 / 9) for n in range(9)]
    found = choose(parties, {"a": 9, "b": 9}, slack=0.0, effort=0)
    assert found.bound <= 5 / 9 * (1 + 1e-6)
    assert found.least >= 5 / 9 * (1 - 1e-6)


def test_a_search_that_ends_without_an_answer_does_not_say_that_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    import scipy.optimize

    def limited(*arguments: object, **options: object) -> scipy.optimize.OptimizeResult:
        return scipy.optimize.OptimizeResult(x=None, status=1)

    monkeypatch.setattr(scipy.optimize, "milp", limited)
    with pytest.raises(UndecidedError):
        choose([Party(alone("m", 1), 1.0)], dict.fromkeys(DEVICES, 9), slack=SLACK)
