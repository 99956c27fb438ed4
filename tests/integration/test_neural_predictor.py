"""Training, adapter folders and the predictor that is served, on a tiny random model."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
from uellm_profiler.domain.predictor import PredictorInput
from uellm_profiler.learning.dataset import LabelledPrompt
from uellm_profiler.learning.examples import to_input
from uellm_profiler.learning.labels import Label
from uellm_profiler.learning.prompts import Prompt
from uellm_profiler.learning.train import Recipe, Trainer
from uellm_profiler.neural.adapter import HEAD, LORA, MANIFEST
from uellm_profiler.neural.errors import AdapterError
from uellm_profiler.neural.predictor import NeuralPredictor, packaged_encoder

from tests.support.tiny_model import make_tiny_model

RECIPE = Recipe("lora", "tiny", layers=1, epochs=3, batch_prompts=8, rank=4, head_width=32, head_rate=1e-2)
WORDS = ("rain", "snow", "wind", "sun", "fog", "hail", "ice", "dew")


def labelled(seed: int, count: int) -> list[LabelledPrompt]:
    """Prompts that begin with A have short answers, those with B long ones, a few of which are cut."""
    draw = random.Random(seed)
    made = []
    for number in range(count):
        long = number % 2 == 1
        text = f"{'B' if long else 'A'} " + " ".join(draw.choices(WORDS, k=draw.randrange(2, 6)))
        tokens = draw.randrange(150, 320) if long else draw.randrange(8, 30)
        prompt = Prompt("own", f"{seed}-{number}", "f", text)
        label = Label("tiny", *prompt.key, 20, 0.0, 1.0, 1.0, 0, 256, min(tokens, 256), censored=tokens > 256)
        made.append(LabelledPrompt(prompt, (label,)))
    return made


def quiet(progress: object) -> None:
    """Nobody watches."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    trainer = Trainer(RECIPE, base, labelled(1, 160), labelled(2, 40))
    progress = trainer.run(tmp_path_factory.mktemp("work"), quiet)
    assert progress.validation[-1] < progress.validation[0]
    trainer.write(folder, "7", "for tests")
    return folder


def inputs(count: int = 40) -> list[PredictorInput]:
    return [to_input(example) for one in labelled(3, count) for example in one.examples]


def test_it_learns_what_makes_answers_long(trained: Path, base: Path) -> None:
    predictor = NeuralPredictor.load(trained, base)
    assert (predictor.kind, predictor.version, predictor.description) == ("lora", "7", "for tests")
    medians = [length.quantile(0.5) for length in predictor.predict(inputs())]
    pairs = [(short, long) for short in medians[0::2] for long in medians[1::2]]
    assert sum(short < long for short, long in pairs) > 0.85 * len(pairs)


def test_a_prediction_does_not_depend_on_its_batch(trained: Path, base: Path) -> None:
    predictor = NeuralPredictor.load(trained, base)
    together = predictor.predict(inputs(10))
    for alone, length in zip(inputs(10), together, strict=True):
        assert predictor.predict([alone])[0].probabilities == pytest.approx(length.probabilities, abs=1e-5)


def test_generation_parameters_and_the_limit_are_read(trained: Path, base: Path) -> None:
    predictor = NeuralPredictor.load(trained, base)
    (greedy,) = inputs(1)
    sampled = PredictorInput(greedy.model, greedy.content, greedy.prompt_tokens, type(greedy.generation)(), 100)
    sampled.generation.CopyFrom(greedy.generation)
    sampled.generation.temperature = 1.5
    first, second = predictor.predict([greedy, sampled])
    assert second.limit == 100
    assert first.truncate(100).probabilities != pytest.approx(second.probabilities, abs=1e-6)


def test_a_very_long_prompt_is_read_at_both_ends(trained: Path, base: Path) -> None:
    predictor = NeuralPredictor.load(trained, base)
    (short,) = inputs(1)
    start, end = "A rain ", " snow wind"

    def hazards(content: str) -> list[float]:
        return predictor.hazards([PredictorInput("tiny", content, 20, short.generation, 256)])[0].tolist()

    assert hazards(start + "x" * 5_000 + end) == pytest.approx(hazards(start + "x" * 9_000 + end))
    assert hazards(start + "x" * 5_000 + end) != pytest.approx(hazards("B" + start + "x" * 5_000 + end), abs=1e-7)


def test_training_that_was_interrupted_goes_on_as_it_would_have(base: Path, tmp_path: Path) -> None:
    class KilledError(Exception):
        pass

    def kill_in_the_second_epoch(progress: object) -> None:
        if progress.epoch == 1 and progress.step > 4:  # type: ignore[attr-defined]
            raise KilledError

    data = labelled(1, 32), labelled(2, 16)
    whole = Trainer(RECIPE, base, *data).run(tmp_path / "whole", quiet)
    with pytest.raises(KilledError):
        Trainer(RECIPE, base, *data).run(tmp_path / "killed", kill_in_the_second_epoch)
    resumed = Trainer(RECIPE, base, *data).run(tmp_path / "killed", quiet)
    assert resumed.validation == pytest.approx(whole.validation, abs=1e-6)


def test_a_checkpoint_of_another_recipe_is_refused(base: Path, tmp_path: Path) -> None:
    data = labelled(1, 16), labelled(2, 8)
    Trainer(Recipe("lora", "tiny", 1, epochs=1), base, *data).run(tmp_path, quiet)
    with pytest.raises(ValueError, match="another recipe"):
        Trainer(Recipe("lora", "tiny", 1, epochs=2), base, *data).run(tmp_path, quiet)


@pytest.mark.parametrize("missing", [MANIFEST, LORA, HEAD])
def test_a_missing_file_is_named(trained: Path, base: Path, tmp_path: Path, missing: str) -> None:
    folder = shutil.copytree(trained, tmp_path / "adapter")
    (folder / missing).unlink()
    with pytest.raises(AdapterError, match=missing):
        NeuralPredictor.load(folder, base)


@pytest.mark.parametrize("damaged", [LORA, HEAD])
def test_a_damaged_file_is_not_loaded(trained: Path, base: Path, tmp_path: Path, damaged: str) -> None:
    folder = shutil.copytree(trained, tmp_path / "adapter")
    content = bytearray((folder / damaged).read_bytes())
    content[-1] ^= 1
    (folder / damaged).write_bytes(content)
    with pytest.raises(AdapterError, match="damaged"):
        NeuralPredictor.load(folder, base)


def test_a_manifest_of_another_version_is_refused(trained: Path, base: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(trained, tmp_path / "adapter")
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(manifest | {"schema": 99}))
    with pytest.raises(AdapterError, match="schema 99"):
        NeuralPredictor.load(folder, base)


def test_another_base_model_is_refused(trained: Path, tmp_path: Path) -> None:
    other = make_tiny_model(tmp_path / "other", seed=1)
    with pytest.raises(AdapterError, match="not those of tiny"):
        NeuralPredictor.load(trained, other)
    with pytest.raises(AdapterError, match="can't be read"):
        NeuralPredictor.load(trained, tmp_path / "nowhere")
    with pytest.raises(AdapterError, match="needs tiny: name its folder with --predictor-base"):
        NeuralPredictor.load(trained, None)


def test_the_encoder_comes_in_a_package_whatever_base_is_configured(base: Path, tmp_path: Path) -> None:
    trainer = Trainer(
        Recipe("fast", "encoder", 1, epochs=1, rank=4), packaged_encoder(), labelled(1, 16), labelled(2, 8)
    )
    trainer.run(tmp_path / "work", quiet)
    trainer.write(tmp_path / "adapter", "1", "for tests")
    alone = NeuralPredictor.load(tmp_path / "adapter", None)
    beside = NeuralPredictor.load(tmp_path / "adapter", base)
    assert alone.kind == beside.kind == "fast"
    assert alone.trained_parameters < alone.parameters
    assert alone.predict(inputs(4)) == beside.predict(inputs(4))


def test_half_precision_predicts_nearly_the_same(trained: Path, base: Path) -> None:
    exact, fast = NeuralPredictor.load(trained, base), NeuralPredictor.load(trained, base, half=True)
    assert fast.parameters == exact.parameters
    assert fast.hazards(inputs()).sub(exact.hazards(inputs())).abs().max().item() < 0.03
