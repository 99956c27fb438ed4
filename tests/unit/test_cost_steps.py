"""The closed forms of the step-time model against the loop over steps."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uellm.cost.steps import StepTime

coefficients = st.floats(0, 1)
step_times = st.builds(StepTime, *[coefficients] * 5)
batches = st.lists(st.tuples(st.integers(1, 200), st.integers(1, 60)), min_size=1, max_size=12)
"""Prompt and output tokens of each row."""


def loop(steps: StepTime, rows: list[tuple[int, int]], *, padded: bool) -> float:
    """Sum of the steps, one by one, as the engine goes."""
    seconds, k = 0.0, 1
    while alive := [prompt for prompt, output in rows if output - 1 >= k]:
        context = len(alive) * (max(alive) + k) if padded else sum(prompt + k for prompt in alive)
        seconds += steps.base + steps.per_row * len(alive) + steps.per_context_token * context
        k += 1
    return seconds


@given(step_times, batches, st.booleans())
def test_closed_form_equals_the_loop(steps: StepTime, rows: list[tuple[int, int]], padded: bool) -> None:
    prompts, outputs = [prompt for prompt, _ in rows], [output for _, output in rows]
    expected = loop(steps, rows, padded=padded)
    assert steps.decode_seconds(prompts, outputs, padded=padded) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    prefill = len(rows) * max(prompts) if padded else sum(prompts)
    whole = steps.startup + steps.prefill_per_token * prefill + expected
    assert steps.batch_seconds(prompts, outputs, padded=padded) == pytest.approx(whole, rel=1e-9, abs=1e-12)


@given(step_times, st.integers(1, 500), st.integers(1, 80))
def test_alone_is_a_batch_of_one(steps: StepTime, prompt: int, output: int) -> None:
    for padded in (False, True):
        batch = steps.batch_seconds([prompt], [output], padded=padded)
        assert steps.alone_seconds(prompt, output) == pytest.approx(batch)
    assert steps.alone_seconds(prompt, 1) == pytest.approx(steps.first_token_seconds(prompt))


@given(step_times, st.integers(1, 500), st.floats(1, 80), st.floats(1, 80))
def test_time_grows_with_the_length(steps: StepTime, prompt: int, first: float, second: float) -> None:
    low, high = sorted((first, second))
    assert steps.alone_seconds(prompt, low) <= steps.alone_seconds(prompt, high) + 1e-9


@given(step_times)
def test_message_keeps_everything(steps: StepTime) -> None:
    prior = steps.to_prior("measured")
    assert StepTime.from_prior(prior) == steps
    assert prior.source == "measured"


def test_an_empty_batch_takes_only_the_start() -> None:
    assert StepTime(1, 1, 1, 1, 0.5).batch_seconds([], [], padded=True) == 0.5


@pytest.mark.parametrize("value", [-1e-9, math.nan, math.inf])
def test_bad_coefficients_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="per_row"):
        StepTime(0, value, 0, 0, 0)


def test_an_answer_without_a_token_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 token"):
        StepTime(1, 1, 1, 1, 1).decode_seconds([5], [0], padded=False)
