"""Clients with windows of their own: what is drawn has the statistics that were said, and a file is read as it says."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median, stdev

import pytest
from uellm_simulator.arrivals import LogNormal
from uellm_simulator.clients import Client, Clients, ClientWindow, Drawn, Listed, read_clients
from uellm_simulator.runs import Source
from uellm_simulator.scenario import Scenario
from uellm_simulator.simulate import simulate
from uellm_simulator.traces import TraceError

WINDOW = {
    "start": 100,
    "seconds": 50,
    "rate": 2,
    "prompts": {"median": 30, "spread": 0.5, "most": 60},
    "answers": {"lengths": [7, 9]},
}
A, B = (
    Client("a", (ClientWindow(0, 100, 4.0, Listed((10,)), Listed((5,))),)),
    Client(
        "b",
        (ClientWindow(0, 50, 0.0, Listed((20,)), Listed((6,))), ClientWindow(50, 50, 2.0, Listed((20,)), Listed((6,)))),
    ),
)


def stored(path: Path, *clients: dict[str, object]) -> Path:
    path.write_text(json.dumps({"clients": clients}))
    return path


def test_a_file_of_clients(tmp_path: Path):
    path = stored(tmp_path / "c.json", {"name": "a", "windows": [{**WINDOW, "start": 0, "cv": 2}, WINDOW]})
    (client,) = read_clients(path).clients
    assert client.name == "a"
    bursty, plain = client.windows
    assert (bursty.start, bursty.seconds, bursty.rate, bursty.variation) == (0.0, 50.0, 2.0, 2.0)
    assert (plain.start, plain.variation) == (100.0, 1.0)
    assert plain.prompts == LogNormal(30, 0.5, 1, 60)
    assert plain.answers == Listed((7, 9))


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"rate": -1}, "client 'a', window 1: ValueError"),
        ({"seconds": 0}, "seconds above 0"),
        ({"cv": 0}, "cv must be above 0"),
        ({"rate": 0}, "no client ever asks"),
        ({"answers": {"lengths": []}}, "there must be one"),
        ({"answers": {"lengths": [0]}}, "at least 1"),
        ({"prompts": {"median": 3}}, "KeyError: 'spread'"),
        ({"prompts": {"median": 3, "spread": 1, "least": 9, "most": 8}}, "least <= most"),
        ({"start": "soon"}, "window 1"),
    ],
)
def test_what_is_wrong_is_told_with_its_window(tmp_path: Path, changed: dict[str, object], says: str):
    path = stored(tmp_path / "c.json", {"name": "a", "windows": [{**WINDOW, **changed}]})
    with pytest.raises(TraceError, match=says):
        read_clients(path)


def test_windows_that_overlap_and_names_that_come_twice_are_told(tmp_path: Path):
    overlapping = {"name": "a", "windows": [WINDOW, {**WINDOW, "start": 120}]}
    with pytest.raises(TraceError, match="100 and 120 overlap"):
        read_clients(stored(tmp_path / "c.json", overlapping))
    one = {"name": "a", "windows": [WINDOW]}
    with pytest.raises(TraceError, match="same name"):
        read_clients(stored(tmp_path / "c.json", one, one))
    (tmp_path / "c.json").write_text("[]")
    with pytest.raises(TraceError, match="no file of clients"):
        read_clients(tmp_path / "c.json")


def test_each_client_comes_in_its_windows_with_its_own_lengths():
    both = Clients((A, B))
    assert both.rate == pytest.approx(5.0)
    made = both.take(450, both.rate, seed=3)
    assert [one.seconds for one in made] == sorted(one.seconds for one in made)
    assert made[0].seconds == 0.0
    of_b = [one for one in made if one.tenant == "b"]
    assert {(one.prompt_tokens, one.output_tokens) for one in of_b} == {(20, 6)}
    assert min(one.seconds for one in of_b) > 49
    assert Counter(one.tenant for one in made)["a"] == pytest.approx(370, abs=40)
    # What a client sends does not depend on who else is there.
    alone = Clients((A,)).take(100, 4.0, seed=3)
    beside = [one for one in both.take(200, both.rate, seed=3) if one.tenant == "a"][:100]
    assert [one.seconds for one in beside] == pytest.approx(
        [one.seconds + beside[0].seconds - alone[0].seconds for one in alone]
    )


def test_windows_come_again_and_times_are_scaled():
    both = Clients((A, B))
    made = both.take(1_200, 2 * both.rate, seed=1)
    assert made[-1].seconds == pytest.approx(120, rel=0.1)
    first, second = ([one.seconds - low for one in made if low <= one.seconds < low + 50] for low in (0, 50))
    assert len(first) == pytest.approx(500, rel=0.15)
    assert first[:50] != pytest.approx(second[:50], abs=0.01), "the windows came again as they were"
    assert made == both.take(1_200, 2 * both.rate, seed=1) != both.take(1_200, 2 * both.rate, seed=2)


@pytest.mark.parametrize("variation", [0.5, 1.0, 3.0])
def test_rate_and_variation_are_those_of_the_window(variation: float):
    """Also in many short windows, where a burst at each beginning would add up."""
    window = ClientWindow(0, 40.0, 1.0, Listed((1,)), Listed((1,)), variation)
    counts = [len(list(Client("a", (window,)).arrivals(str(seed)))) for seed in range(1_000)]
    assert fmean(counts) == pytest.approx(40, rel=0.05)
    long = ClientWindow(0, 20_000.0, 1.0, Listed((1,)), Listed((1,)), variation)
    times = [one.seconds for one in Client("a", (long,)).arrivals("0")]
    gaps = [after - before for before, after in pairwise(times)]
    assert stdev(gaps) / fmean(gaps) == pytest.approx(variation, rel=0.08)


def test_drawn_clients_are_few_and_heavy():
    drawn = Drawn(clients=30, tail=1.5)
    made = drawn.take(4_000, 2.0, seed=5)
    assert made == drawn.take(4_000, 2.0, seed=5) != drawn.take(4_000, 2.0, seed=6)
    assert made[-1].seconds == pytest.approx(2_000, rel=0.25)
    counts = Counter(one.tenant for one in made)
    top = sum(count for _, count in counts.most_common(3)) / len(made)
    assert top > 0.6
    lengths = {
        name: median(one.output_tokens for one in made if one.tenant == name) for name, _ in counts.most_common(3)
    }
    assert max(lengths.values()) > 1.3 * min(lengths.values())
    # Within a window the sum is steadier than its heaviest client, and burstier than a Poisson process.
    windows = Counter(int(one.seconds // 100) for one in made)
    assert stdev(windows.values()) / fmean(windows.values()) > 2 / fmean(windows.values()) ** 0.5


def test_clients_are_tenants_whose_fairness_is_measured():
    window = Source(generated=Drawn(clients=5)).window(60, 1)
    result = simulate(window, Scenario(load=1.3))
    assert len({fate.request.tenant for fate in result.fates}) == 5
    assert result.fates[0].request.name.startswith(f"tenants/{window[0].tenant}/")
    assert 0 < result.metrics.jain < 1
