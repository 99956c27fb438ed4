"""The project's own prompts and labels, as they are evaluated."""

from __future__ import annotations

import pytest
from uellm_profiler.learning.dataset import part_of
from uellm_profiler.learning.evaluation import PUBLIC, Evaluation, read_evaluation


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    return read_evaluation(None)


def test_nothing_is_tested_on_that_was_learned_from(evaluation: Evaluation) -> None:
    learned = {label.prompt for label in evaluation.train}
    tested = {example.prompt.key for example in (*evaluation.test, *evaluation.others)}
    assert not learned & tested
    assert all(part_of(key) == "test" for key in tested)
    assert all(part_of(key) != "test" for key in learned)


def test_there_are_enough_prompts(evaluation: Evaluation) -> None:
    tested = {example.prompt.key for example in evaluation.test}
    assert len(tested) >= 600
    assert len(tested | {label.prompt for label in evaluation.train}) >= 2_000


def test_the_texts_of_others_are_not_needed_to_evaluate(evaluation: Evaluation) -> None:
    assert {example.prompt.source for example in evaluation.others} == set(PUBLIC)
    assert all(not example.prompt.text for example in evaluation.others)
    assert all(example.prompt.text for example in evaluation.test)
    assert not evaluation.has_texts


def test_rows_come_in_one_order(evaluation: Evaluation) -> None:
    for rows in (evaluation.test, evaluation.others):
        keys = [example.label.key for example in rows]
        assert keys == sorted(set(keys))
