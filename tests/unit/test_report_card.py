"""The card as a whole: intervals, reproduction to the digit, tables, plots, timings."""

import json
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from io import StringIO

import numpy as np
import pytest
from rich.console import Console
from uellm_profiler.learning.examples import Example, join, to_input
from uellm_profiler.learning.prompts import Prompt
from uellm_profiler.learning.report import latency
from uellm_profiler.learning.report.card import OverlapError, differences, evaluate, to_json
from uellm_profiler.learning.report.command import CARD, PREDICTIONS, enter, publish, reproduce
from uellm_profiler.learning.report.curves import Curve, read_curve, write_curve
from uellm_profiler.learning.report.entrants import (
    DisagreementError,
    read_predictions,
    stored_form,
    write_predictions,
)
from uellm_profiler.learning.report.forecasts import Forecasts, Outcomes
from uellm_profiler.learning.report.model_card import model_card
from uellm_profiler.learning.report.plots import curve_plot, pit_histogram, reliability, scatter
from uellm_profiler.learning.report.resampling import Estimate, resample
from uellm_profiler.learning.report.serving import Load
from uellm_profiler.learning.report.settings import Collection, Settings
from uellm_profiler.learning.report.tables import (
    Table,
    curve_table,
    insert,
    latency_table,
    summary,
    tables,
    to_markdown,
    to_rich,
)
from uellm_profiler.neural.adapter import Manifest
from uellm_profiler.neural.inputs import Framing

from tests.support.answers import make_entrant, make_examples
from uellm.cost.lengths import LengthDistribution

TEST = make_examples(90, samples=2)
TRAIN = [example.label for example in make_examples(40, first=500)]
MOVED = [
    replace(one, prompt=replace(one.prompt, source="t"), label=replace(one.label, source="t"))
    for one in make_examples(35, first=900)
]
SETTINGS = Settings("a tiny model", "by prompt", resamples=100, load=Load(runs=2))


def entrants(examples=TEST):
    return [
        make_entrant("guess", examples, error=1.5, baseline=True),
        make_entrant("close", examples, error=0.3, baseline=True),
        make_entrant("law", examples),
    ]


@pytest.fixture(scope="module")
def card():
    apart = Collection("other prompts", MOVED, entrants(MOVED)[2:])
    labels = [example.label for example in TEST]
    return evaluate(TEST, TRAIN, entrants(), replace(SETTINGS, collections=[apart], floor_labels=labels))


def test_intervals_hold_the_truth_as_often_as_they_say():
    held = 0
    for seed in range(200):
        draw = np.random.RandomState(seed)
        prompts = draw.normal(size=60)
        values = np.repeat(prompts, 3) + 0.3 * draw.normal(size=180)  # three rows of each prompt
        weights = resample(np.repeat(np.arange(60), 3), 400, seed)
        estimate = Estimate.of(weights @ values / weights.sum(1))
        held += estimate.low <= 0 <= estimate.high
    assert 0.90 <= held / 200 <= 0.98  # if rows and not prompts were drawn, it would be about 0.76


def test_resamples_take_whole_prompts_and_the_first_is_the_sample_itself():
    clusters = np.array([0, 1, 0, 2])
    weights = resample(clusters, 50, seed=3)
    assert (weights[0] == 1).all()
    assert (weights[:, 0] == weights[:, 2]).all()
    assert (weights[1:, [0, 1, 3]].sum(1) == 3).all()
    assert (weights == resample(clusters, 50, seed=3)).all()


def test_an_estimate_of_nothing_is_written_as_nothing():
    assert Estimate.of(np.array([np.nan, 1.0])).rounded(3) == [None, None, None]
    assert Estimate.of(np.array([0.5, np.nan, 0.25])).rounded(2) == [0.5, 0.25, 0.25]
    assert str(Estimate.of(np.array([-1e-9, 0.0, 0.0])).rounded(3)[0]) == "0.0"


def test_the_better_predictor_wins_and_the_interval_says_so(card):
    section = card["sections"][0]
    assert section["name"] == "greedy, repetition penalty 1.15"
    difference, low, high = section["tau_differences"]["law"]["guess"]
    taus = {name: measured["tau"][0] for name, measured in section["metrics"].items()}
    assert difference == pytest.approx(taus["law"] - taus["guess"], abs=1.1e-3)
    assert 0 < low < difference < high
    assert "law" not in section["tau_differences"]["law"]
    for measured in section["metrics"].values():
        for value, low, high in measured.values():
            assert value is None or low <= high


def test_the_card_states_what_it_is_about(card):
    about = card["about"]
    assert about["test_prompts"] == 90
    assert about["test_rows"] == 270
    assert about["train_prompts"] == 40
    assert 0 < about["test_cut_share"] < 0.2
    assert card["entrants"]["law"] == {
        "description": "the law, off by 0.0",
        "baseline": False,
        "parameters": 3,
        "trained_parameters": None,
    }
    assert card["noise_floor"]["samples"] == 2
    assert card["noise_floor"]["all_prompts"]["prompts"] == 90
    assert card["collections"][0]["rows"] == 35
    assert list(card["collections"][0]["metrics"]) == ["law"]
    assert sum(card["sections"][0]["pit"]["law"]) == pytest.approx(1, abs=0.01)


def test_small_groups_are_named_but_not_measured(card):
    by_family = card["groups"]["family"]
    assert all(group["rows"] >= 30 for group in by_family)
    assert {group["name"] for group in by_family} | set(card["groups"]["family_left_out"]) == {"fact", "list", "story"}


def test_a_test_prompt_that_was_learned_from_is_an_error():
    with pytest.raises(OverlapError, match="1 test prompts were learned from, s/3 among them"):
        evaluate(TEST, [TEST[9].label], entrants(), SETTINGS)


def test_a_committed_card_is_reproduced_to_the_byte(tmp_path):
    card = publish(tmp_path, TEST, TRAIN, entrants(), SETTINGS)
    assert reproduce(tmp_path, TEST, TRAIN, [], SETTINGS).differences == []
    again = reproduce(tmp_path, TEST, TRAIN, entrants()[2:], SETTINGS)
    assert again.differences == []
    assert to_json(again.card) == to_json(card) == (tmp_path / CARD).read_text("utf-8")
    first = (tmp_path / PREDICTIONS).read_bytes()
    publish(tmp_path, TEST, TRAIN, entrants(), SETTINGS)
    assert (tmp_path / PREDICTIONS).read_bytes() == first


def test_another_processor_makes_no_difference_but_another_predictor_does(tmp_path):
    publish(tmp_path, TEST, TRAIN, entrants(), SETTINGS)
    nearly = replace(make_entrant("law", TEST, error=1e-4), description="the law, off by 0.0")
    assert reproduce(tmp_path, TEST, TRAIN, [nearly], SETTINGS).differences == []
    with pytest.raises(DisagreementError, match="law predicts something else than was committed for 270 of 270 rows"):
        reproduce(tmp_path, TEST, TRAIN, [make_entrant("law", TEST, error=0.1)], SETTINGS)
    with pytest.raises(ValueError, match="nothing of newcomer"):
        reproduce(tmp_path, TEST, TRAIN, [make_entrant("newcomer", TEST)], SETTINGS)


def test_a_collection_is_reproduced_without_its_prompts_texts(tmp_path):
    apart = Collection("other prompts", MOVED, entrants(MOVED)[1:])
    publish(tmp_path, TEST, TRAIN, entrants(), replace(SETTINGS, collections=[apart]))
    blank = [Example(replace(one.prompt, text=""), one.label) for one in MOVED]
    settings = replace(SETTINGS, collections=[Collection("other prompts", blank, ())])
    assert reproduce(tmp_path, TEST, TRAIN, [], settings).differences == []


def test_other_labels_show_as_differences(tmp_path):
    publish(tmp_path, TEST, TRAIN, entrants(), SETTINGS)
    changed = [replace(one, label=replace(one.label, output_tokens=1, censored=False)) for one in TEST[:30]] + TEST[30:]
    found = reproduce(tmp_path, changed, TRAIN, [], SETTINGS).differences
    assert any(line.startswith("/sections/0/metrics/law/mae/0: ") for line in found)
    with pytest.raises(ValueError, match="has no prediction for 'm/s/7000/"):
        reproduce(tmp_path, [*TEST, *make_examples(1, first=7_000)], TRAIN, [], SETTINGS)


def test_differences_name_what_is_missing_on_either_side():
    assert differences({"a": [1, 2], "b": {}}, {"a": [1], "c": 3}) == [
        "/c: 3 -> (missing)",
        "/a/1: (missing) -> 2",
        "/b: (missing) -> {}",
    ]


def test_predictions_come_back_as_rounded(tmp_path):
    file, keys = tmp_path / "p.json", [example.label.key for example in TEST]
    write_predictions(file, [(keys, entrants())])
    for written, read in zip(entrants(), read_predictions(file, keys), strict=True):
        assert read == replace(written, distributions=[stored_form(one) for one in written.distributions])
        for a, b in zip(written.distributions, read.distributions, strict=True):
            assert a.below == pytest.approx(b.below, abs=1e-5)
            assert stored_form(b) == b
    file.write_text(json.dumps({"format": 99}))
    with pytest.raises(ValueError, match="has format 99; 1 is needed"):
        read_predictions(file, keys)


class ByContent:
    """A model whose prediction tells which prompt it was for."""

    kind, version, description = "lora", "1", "by content"

    def predict(self, prompts):
        return [LengthDistribution((len(prompt.content), prompt.limit_tokens), (1.0, 0.0), 0.0) for prompt in prompts]


def test_a_model_enters_with_its_predictions_in_the_examples_order():
    seen = []
    entrant = enter(
        "x", ByContent(), TEST, parameters=5, trained_parameters=2, progress=lambda *done: seen.append(done)
    )
    assert [one.edges[0] for one in entrant.distributions] == [len(example.prompt.text) for example in TEST]
    assert (entrant.baseline, entrant.parameters, entrant.trained_parameters) == (False, 5, 2)
    assert seen[-1] == (270, 270)


def test_examples_join_prompts_and_labels():
    prompts = [example.prompt for example in TEST[:2]]
    labels = [example.label for example in TEST[:9]]
    assert join(prompts, labels) == [one for one in TEST[:9] if one.prompt in prompts]
    given = to_input(TEST[1])
    assert (given.content, given.limit_tokens, given.generation.temperature) == (TEST[1].prompt.text, 400, 0.7)
    with pytest.raises(ValueError, match="does not belong"):
        Example(Prompt("s", "other", "f", "text"), TEST[0].label)


def test_tables_show_every_entrant_and_metric(card):
    shown = tables(card)
    markdown = to_markdown(shown)
    for table in shown:
        assert all(len(row) == len(table.headers) for row in table.rows), table.title
    assert markdown.count("| law |") >= 9
    for title in ("Kendall tau-b", "macro-F1", "pinball p99", "p99 given uncut covers", "CRPS", "too low by"):
        assert title in markdown
    console = Console(width=140, record=True, file=StringIO())
    console.print(to_rich(shown))
    assert "noise floor" in console.export_text()


def test_the_model_card_says_what_was_learned_from_and_how_good_it_is(card):
    training = {
        "prompts": 1_234, "labels": 2_345, "seed": 3, "epochs": 2, "batch_prompts": 16, "lora_rate": 4e-4,
        "head_rate": 1e-3, "dropout": 0.1, "validation_loss": [2.5, 2.25], "best_epoch": 2,
    }  # fmt: skip
    manifest = Manifest(
        "fast", "9", "A test.", "b", "h", 6, Framing("", "", 1, 1), 8, 16, ("tiny",), 24, 192, training
    )  # fmt: skip
    written = model_card(manifest, card)
    assert written.startswith("# Length predictor `fast/9`")
    assert "1,234 prompts" in written
    assert "2.500, 2.250; kept is epoch 2" in written
    assert "| law |" in written
    assert [row[0] for row in summary(card).rows] == list(card["sections"][0]["metrics"])


def test_tables_can_hold_what_markup_would_eat():
    table = Table("a [b] c", ("", "x|y"), [["[red]", "1|2"]])
    assert "| [red] | 1\\|2 |" in to_markdown([table])
    console = Console(width=80, record=True, file=StringIO())
    console.print(to_rich([table]))
    assert "[red]" in console.export_text()


def test_a_document_takes_tables_between_its_markers():
    document = "before\n<!-- card: begin -->\nold\n<!-- card: end -->\nafter\n"
    once = insert(document, "card", "new")
    assert once == "before\n<!-- card: begin -->\n\nnew\n\n<!-- card: end -->\nafter\n"
    assert insert(once, "card", "new") == once
    with pytest.raises(ValueError, match="needs the lines"):
        insert("nothing", "card", "new")


def test_plots_are_svg_with_a_mark_for_each_value(card):
    examples = TEST[:50]
    outcomes = Outcomes.of(examples)
    points = Forecasts.of(make_entrant("law", examples).distributions, outcomes).p50
    drawn = scatter("law & order", points, outcomes.tokens, outcomes.cut)
    assert drawn.count("<circle") == 50
    assert drawn.count('fill="none" stroke="#d9730d"') == outcomes.cut.sum()
    pit = card["sections"][0]["pit"]
    for svg in (drawn, reliability(pit), pit_histogram("law", pit["law"])):
        ElementTree.fromstring(svg)
    assert pit_histogram("law", pit["law"]).count("<rect") == 2 + 10


def test_a_curve_is_read_shown_and_drawn(tmp_path):
    points = [
        {"name": name, "x": x, "tau": 0.1 + x / 1e4, "tau_low": 0.05, "tau_high": 0.5, "layers": 8}
        for name in ("lora", "fast")
        for x in (2_000, 500, 1_000)
    ]
    write_curve(tmp_path / "curve.json", Curve("Learning curve", "prompts", points))
    curve = read_curve(tmp_path / "curve.json")
    assert curve.points == points
    assert curve_table(curve.title, curve.x_title, curve.points).rows[0] == [
        "lora",
        "2,000",
        "0.300 (0.05 … 0.50)",
        "8",
    ]
    svg = curve_plot(curve, logarithmic=True)
    ElementTree.fromstring(svg)
    assert svg.count("<circle") == 6
    (tmp_path / "curve.json").write_text('{"title": "t", "x_title": "x", "points": [{"name": "a"}]}')
    with pytest.raises(ValueError, match=r"curve\.json is no curve"):
        read_curve(tmp_path / "curve.json")


def test_latency_is_measured_for_every_batch_and_length(monkeypatch):
    monkeypatch.setattr(latency, "_FEWEST_CALLS", 3)
    calls = []

    class Model(ByContent):
        def predict(self, prompts):
            calls.append(len(prompts))
            return super().predict(prompts)

    timings = latency.measure(
        Model(),
        lambda tokens, count: [to_input(TEST[0])] * count,
        "idle",
        seconds=0.0,
        batches=(1, 4),
        prompt_tokens=(64, 256),
    )
    assert [(timing.batch, timing.prompt_tokens) for timing in timings] == [(1, 64), (1, 256), (4, 64), (4, 256)]
    assert calls == [1] * 10 + [4] * 10  # two to warm up, three measured
    assert all(0 < timing.p50_ms <= timing.p99_ms for timing in timings)
    written = latency.report([("law", 3, timings)], "alone")
    assert json.loads(json.dumps(written)) == written
    assert len(latency_table(written).rows) == 4
