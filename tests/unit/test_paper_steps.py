"""The step-time model fitted to measured runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.paper.fitting import (
    COMMITTED,
    COMMITTED_FOREIGN_LOAD,
    Fitted,
    collinearity,
    fit,
    fitted,
    foreign_load,
    kept,
)
from benchmarks.paper.points import PROMPT_TOKENS, Point, disturbed, is_there, read_points
from benchmarks.paper.validation import LEARNERS, cross_validated, folds, validation_sections

HEADER = "model,batch,out_tokens,num_gpus,seconds,n_batches,placement,peak_mem_mib,src,note\n"
TRUE = Fitted((0.02, 0.0005, 2e-6, 1.5, 0.3))


def point(rows: int, tokens: int, configuration: str = "", batches: int = 1, truth: Fitted = TRUE) -> Point:
    made = Point("chatglm2-6b, 1 GPU", configuration or f"batch {rows}", ((rows, tokens),) * batches, 0.0)
    return Point(made.group, made.configuration, made.batches, truth.seconds(made))


RUNS = [point(rows, tokens) for rows in (1, 5, 10, 20) for tokens in (100, 300, 900)] + [
    point(10, 300, "whole", 10),
    point(8, 500, "whole", 12),
]


def test_features_are_those_of_the_engine_that_the_replica_plays() -> None:
    made = point(4, 101)
    engine = TRUE.step.decode_seconds([PROMPT_TOKENS] * 4, [101] * 4, padded=True)
    assert TRUE.seconds(made) == pytest.approx(engine + TRUE.step.startup + TRUE.cold_seconds)


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.floats(1e-3, 0.1), st.floats(0, 1e-2), st.floats(0, 1e-5), st.floats(0, 5), st.floats(0, 5)),
)
def test_runs_without_noise_give_their_coefficients_back(truth: tuple[float, float, float, float, float]) -> None:
    runs = [point(*one.batches[0], one.configuration, len(one.batches), Fitted(truth)) for one in RUNS]
    found = fit(runs)
    for value, expected, unit in zip(found.coefficients, truth, (1e-7, 1e-7, 1e-9, 1e-4, 1e-4), strict=True):
        assert value == pytest.approx(expected, rel=1e-3, abs=unit)
    assert min(found.coefficients) >= 0


def test_a_term_that_the_runs_cannot_tell_is_left_out() -> None:
    single = [point(1, tokens) for tokens in (50, 100, 400, 1_000)]
    assert kept(single) == (True, False, True, True, False)
    assert fit(single).coefficients[1] == fit(single).coefficients[4] == 0
    assert fit(single).seconds(point(1, 700)) == pytest.approx(point(1, 700).seconds, rel=1e-3)
    assert collinearity(RUNS) < 30 < collinearity([point(1, 300), point(1, 301), point(1, 302)])


def test_a_configuration_is_predicted_by_the_others_only() -> None:
    names = {name: (others, held) for name, (others, held) in folds(RUNS).items()}
    assert set(names) == {"batch 1", "batch 5", "batch 10", "batch 20", "whole"}
    for name, (others, held) in names.items():
        assert {one.configuration for one in held} == {name}
        assert name not in {one.configuration for one in others}
        assert len(others) + len(held) == len(RUNS)
    one_only = RUNS[:3]
    assert [len(others) for others, _ in folds(one_only).values()] == [2, 2, 2]


def test_what_is_held_out_is_judged_on_its_own_time() -> None:
    odd = [*RUNS, Point("chatglm2-6b, 1 GPU", "odd", ((5, 300),), 2 * point(5, 300).seconds)]
    errors = cross_validated(odd, LEARNERS["step-time model, least squares"])
    assert errors["odd"].bias == pytest.approx(-0.5, abs=0.01)
    for learner in LEARNERS.values():
        assert set(cross_validated(odd, learner)) == {*(one.configuration for one in RUNS), "odd"}


def test_a_model_that_knows_rows_beats_one_that_does_not() -> None:
    ours, tokens = (cross_validated(RUNS, LEARNERS[name])["batch 20"] for name in list(LEARNERS)[::2])
    assert ours.p90 < 1e-3 < 0.1 < tokens.median
    assert tokens.bias < 0


def test_runs_are_read_and_disturbed_ones_are_not(tmp_path: Path) -> None:
    table = tmp_path / "points.csv"
    table.write_text(
        HEADER
        + "chatglm2-6b,10,413,1,12.5,1,even,1,batch_size/1/10/2/2.txt,\n"
        + "chatglm2-6b,10|8,100|200,4,9.5,2,even,1,UELM/S3/1/1.txt,whole-run\n"
        + "chatglm2-6b,10|8,100|200,4,19.5,2,even,1,UELM/S3/2/1.txt,CONTAMINATED: another process\n"
        + "chatglm2-6b,1,226,1,13.1,1,5he,1,llm_deployment/5he/1/1.txt,\n"
    )
    assert read_points(table) == {
        "chatglm2-6b, 1 GPU": [Point("chatglm2-6b, 1 GPU", "batch 10", ((10, 413),), 12.5)],
        "chatglm2-6b, 4 GPU": [Point("chatglm2-6b, 4 GPU", "S3", ((10, 100), (8, 200)), 9.5)],
    }
    assert [one.seconds for one in disturbed(table)] == [19.5]


def test_without_the_runs_the_committed_figures_stand_in(tmp_path: Path) -> None:
    nowhere = tmp_path / "none.csv"
    assert fitted(nowhere) is COMMITTED
    assert foreign_load(nowhere) == COMMITTED_FOREIGN_LOAD
    assert [len(section.rows) for section in validation_sections(nowhere)] == [0]


@pytest.mark.skipif(not is_there(), reason="the authors' measured runs are not at hand")
def test_the_committed_figures_are_those_of_the_runs() -> None:
    for gpus, found in fitted().items():
        assert COMMITTED[gpus].coefficients == pytest.approx(found.coefficients, rel=1e-3, abs=1e-9)
    assert foreign_load() == pytest.approx(COMMITTED_FOREIGN_LOAD, rel=1e-3)
