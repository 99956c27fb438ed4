"""The cost model orders what AIConfigurator estimates as it does: groups and pipelines, batches, prompts, GPUs."""

from __future__ import annotations

from itertools import combinations
from statistics import median

import pytest

from benchmarks.placement.aic import FILE, Point, estimates, predicted

CLEAR = 1.05
"""Estimates that differ by less are no order: PP2 and a single GPU are within 0.3 %."""


@pytest.fixture(scope="module")
def points() -> list[tuple[Point, Point]]:
    if not FILE.exists():
        pytest.skip("no estimates here")
    return [(point, predicted(point)) for point in estimates()]


@pytest.mark.parametrize("figure", ["first_token", "output_token", "request"])
def test_what_is_clearly_slower_there_is_slower_here(points: list[tuple[Point, Point]], figure: str) -> None:
    """Of points that differ in one respect; first tokens on one GPU, for each reaches another share of its peak."""
    compared = 0
    for (a, ours_a), (b, ours_b) in combinations(points, 2):
        respects = ("model", "system", "batch", "prompt_tokens")
        if figure == "first_token" and a.system != b.system:
            continue
        groups = (a.tensor, a.stages) != (b.tensor, b.stages)
        if sum(getattr(a, name) != getattr(b, name) for name in respects) + groups != 1:
            continue
        ratio = getattr(a, figure) / getattr(b, figure)
        if max(ratio, 1 / ratio) > CLEAR:
            compared += 1
            assert (getattr(ours_a, figure) > getattr(ours_b, figure)) == (ratio > 1), (a.name, a.load, b.name, b.load)
    assert compared > 20


def test_a_pipeline_takes_no_less_than_one_gpu_and_a_group_does(points: list[tuple[Point, Point]]) -> None:
    same = [q for p, q in points if (p.model, p.system, p.load) == ("Qwen/Qwen3-8B", "h100_sxm", "16 x 1,024")]
    ours = {(point.tensor, point.stages): point.request for point in same}
    assert ours[4, 1] < ours[2, 1] < ours[1, 1] < ours[1, 2] < 1.01 * ours[1, 1]


def test_the_errors_are_small(points: list[tuple[Point, Point]]) -> None:
    for figure in ("first_token", "output_token"):
        errors = [abs(getattr(ours, figure) / getattr(theirs, figure) - 1) for theirs, ours in points]
        assert median(errors) < 0.1
        assert max(errors) < 0.25
