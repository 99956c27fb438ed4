"""`uellm predictor train`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from uellm_profiler.learning.dataset import LabelledPrompt, label_prompts, part_of
from uellm_profiler.learning.evaluation import read_training
from uellm_profiler.learning.labels import read_labels
from uellm_profiler.learning.prompts import DataError, read_prompts
from uellm_profiler.learning.train import Progress as Trained
from uellm_profiler.learning.train import Recipe, Trainer
from uellm_profiler.neural.adapter import Manifest
from uellm_profiler.neural.predictor import packaged_encoder

from uellm.cli.output import stderr
from uellm.local.model import NAME, default_model

ENCODER = "all-MiniLM-L6-v2"


DEFAULT_LAYERS = {"lora": 4, "fast": 6}


@dataclass(frozen=True, slots=True)
class Data:
    """What to learn from; no files: the project's own."""

    prompts: Sequence[Path]
    labels: Sequence[Path]
    public: Path | None
    """Folder with the public prompt sets."""

    def read(self) -> list[LabelledPrompt]:
        """Labelled prompts, near-duplicates left out. Raises DataError if there are none."""
        if not self.prompts and not self.labels:
            return read_training(self.public)
        if not self.prompts or not self.labels:
            raise DataError("--prompts and --labels belong together")
        prompts = [prompt for file in self.prompts for prompt in read_prompts(file)]
        labelled = label_prompts(prompts, [label for file in self.labels for label in read_labels(file)])
        if not labelled:
            raise DataError("none of the prompts has a label: give the files that belong together")
        return labelled


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to train, from what, and where to."""

    data: Data
    out: Path
    kind: str
    layers: int | None
    epochs: int
    seed: int
    version: str
    base: Path | None
    """Folder of the base model; None: the default model, or the packaged encoder."""


def train(wanted: Wanted) -> None:
    """Train, write the adapter, and say how it went."""
    labelled = wanted.data.read()
    by_part = {part: [one for one in labelled if part_of(one.prompt.key) == part] for part in ("train", "validation")}
    encoder = wanted.kind == "fast"
    base = wanted.base or (packaged_encoder() if encoder else default_model())
    name = base.name if wanted.base else ENCODER if encoder else NAME
    recipe = Recipe(
        wanted.kind, name, wanted.layers or DEFAULT_LAYERS[wanted.kind], epochs=wanted.epochs, seed=wanted.seed
    )
    trainer = Trainer(recipe, base, by_part["train"], by_part["validation"])
    with Progress(
        TextColumn("training"), BarColumn(), TextColumn("{task.fields[text]}"), TimeRemainingColumn(), console=stderr
    ) as bar:
        task = bar.add_task("", text="")

        def report(at: Trained) -> None:
            validation = f", validation {at.validation[-1]:.3f}" if at.validation else ""
            text = f"epoch {min(at.epoch + 1, recipe.epochs)} of {recipe.epochs}, loss {at.loss:.3f}{validation}"
            bar.update(task, completed=at.step, total=at.steps, text=text)

        trainer.run(wanted.out.with_name(f"{wanted.out.name}.work"), report)
    manifest = trainer.write(wanted.out, wanted.version, describe(recipe))
    sys.stdout.write(_summary(manifest, wanted.out))


def describe(recipe: Recipe) -> str:
    """The predictor in a sentence."""
    if recipe.kind == "fast":
        return f"{recipe.base} encoder with LoRA and a hazard head over log-spaced length buckets."
    layers = f"first {recipe.layers} layers"
    return f"{recipe.base}, {layers}, fine-tuned with LoRA, hazard head over log-spaced length buckets."


def _summary(manifest: Manifest, out: Path) -> str:
    training = manifest.training
    losses = " ".join(f"{loss:.3f}" for loss in training["validation_loss"])
    return (
        f"trained on {training['prompts']:,} prompts with {training['labels']:,} labels\n"
        f"validation loss by epoch, nats a label: {losses} (kept: epoch {training['best_epoch']})\n"
        f"adapter {manifest.kind}/{manifest.version} written to {out}; next: `uellm predictor install {out}`\n"
    )
