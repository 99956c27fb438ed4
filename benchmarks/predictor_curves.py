"""Trains predictors that differ in one thing and draws what it does: layers of the base model, prompts learned from.

    python benchmarks/predictor_curves.py FOLDER --public PROMPTS            # train what FOLDER lacks, then measure
    python benchmarks/predictor_curves.py FOLDER --public PROMPTS --train 4-layers encoder   # only train these

Each predictor is an adapter in FOLDER; killed and begun again, training goes on. Measured are the order of held-out
prompts of our own (greedy answers; paired with the default's, bootstrap over prompts) and the time for a prompt of 64
tokens, alone and in batches of 32. Writes `layers.json` and `prompts.json` (see `report.curves`) and prints both.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from uellm_profiler.adapters.tokenizer import ServedTokenizer
from uellm_profiler.learning.dataset import LabelledPrompt, select
from uellm_profiler.learning.evaluation import PUBLIC, read_training
from uellm_profiler.learning.examples import Example, to_input
from uellm_profiler.learning.report.curves import Curve, write_curve
from uellm_profiler.learning.report.forecasts import Floats, Outcomes
from uellm_profiler.learning.report.latency import Timing, make_prompts, measure
from uellm_profiler.learning.report.ranks import PairOrder
from uellm_profiler.learning.report.resampling import Estimate, resample
from uellm_profiler.learning.report.tables import curve_table, to_rich
from uellm_profiler.learning.train import Progress, Recipe, Trainer
from uellm_profiler.neural.adapter import MANIFEST
from uellm_profiler.neural.predictor import NeuralPredictor, has_fast_half, packaged_encoder

from uellm.cli.predictor_training import ENCODER, describe
from uellm.local.model import NAME, default_model

BATCH = 32


@dataclass(frozen=True, slots=True)
class Variant:
    """One predictor to train."""

    name: str
    kind: str
    layers: int
    share: float = 1.0
    """Of the training prompts, chosen by a hash of each."""


LAYERS = [*(Variant(f"{layers}-layers", "lora", layers) for layers in (4, 6, 8, 30)), Variant("encoder", "fast", 6)]
DEFAULT = LAYERS[0]
PROMPTS = [replace(DEFAULT, name=f"{share:.0%}-of-prompts", share=share) for share in (0.25, 0.5)]
VARIANTS = {variant.name: variant for variant in (*LAYERS, *PROMPTS)}


def train(variant: Variant, folder: Path, labelled: Sequence[LabelledPrompt], epochs: int) -> None:
    """Train one, unless its adapter is there."""
    out = folder / variant.name
    if (out / MANIFEST).exists():
        return
    encoder = variant.kind == "fast"
    recipe = Recipe(variant.kind, ENCODER if encoder else NAME, variant.layers, epochs=epochs)
    learned = [one for one in select(labelled, "train") if _drawn(one, variant.share)]
    base = packaged_encoder() if encoder else default_model()
    trainer = Trainer(recipe, base, learned, select(labelled, "validation"))

    def report(at: Progress) -> None:
        if at.step % 20 == 0:
            validation = " ".join(f"{loss:.3f}" for loss in at.validation)
            print(f"{variant.name}: step {at.step} of {at.steps}, {at.loss:.3f}; {validation}", file=sys.stderr)

    trainer.run(folder / f"{variant.name}.work", report)
    trainer.write(out, "1", describe(recipe))


def _drawn(one: LabelledPrompt, share: float) -> bool:
    digest = hashlib.sha256("/".join(("share", *one.prompt.key)).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < share


@dataclass(frozen=True, slots=True)
class Scored:
    """One predictor on the test prompts."""

    taus: Floats
    """On the sample, then on its resamples."""
    validation: float
    prompts: int
    single_ms: float
    """Median time for one prompt of 64 tokens, and"""
    rate: float
    """prompts a second in batches of 32."""

    def point(self, name: str, x: int, default: Scored) -> dict[str, Any]:
        """Of a curve."""
        tau, ahead = Estimate.of(self.taus).rounded(3), Estimate.of(self.taus - default.taus).rounded(3)
        return {
            "name": name,
            "x": x,
            "tau": tau[0],
            "tau_low": tau[1],
            "tau_high": tau[2],
            "tau minus the default's": f"{ahead[0]:+} ({ahead[1]:+} … {ahead[2]:+})",
            "validation loss, nats": round(self.validation, 3),
            "64 tokens alone, ms": round(self.single_ms, 1),
            "in batches of 32, prompts/s": round(self.rate),
        }


def time(folder: Path, seconds: float) -> list[Timing]:
    """One prompt of 64 tokens, then 32, in the precision that is served."""
    model = NeuralPredictor.load(folder, default_model(), half=has_fast_half())
    tokenizer = ServedTokenizer.load(default_model())
    return measure(
        model,
        lambda tokens, count: make_prompts(tokenizer, "smollm2-135m", tokens, count),
        "idle",
        seconds=seconds,
        prompt_tokens=(64,),
    )


def score(folder: Path, rows: Sequence[Example], seconds: float) -> Scored:
    """Predict for the rows, and time it."""
    model = NeuralPredictor.load(folder, default_model())
    alone, together = time(folder, seconds)
    medians = np.empty(len(rows))
    order = sorted(range(len(rows)), key=lambda i: rows[i].label.prompt_tokens)
    for start in range(0, len(order), BATCH):
        chosen = order[start : start + BATCH]
        predicted = model.predict([to_input(rows[i]) for i in chosen])
        medians[chosen] = [one.quantile(0.5) for one in predicted]
    outcomes = Outcomes.of(rows)
    taus = PairOrder(outcomes, resample(outcomes.clusters)).tau(medians)
    training = model.manifest.training
    return Scored(
        taus, min(training["validation_loss"]), training["prompts"], alone.p50_ms, together.prompts_per_second
    )


def main() -> None:
    """Train, measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--public", type=Path, help="folder with the public prompt sets")
    parser.add_argument("--train", nargs="+", choices=VARIANTS, help="only train these, and measure nothing")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each timing")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    labelled = read_training(arguments.public)
    for name in arguments.train or VARIANTS:
        train(VARIANTS[name], arguments.folder, labelled, arguments.epochs)
    if arguments.train:
        return
    own = [one for one in select(labelled, "test") if one.prompt.source not in PUBLIC]
    rows = [row for one in own for row in one.examples if row.label.temperature == 0]
    scored = {name: score(arguments.folder / name, rows, arguments.seconds) for name in VARIANTS}
    default = scored[DEFAULT.name]
    layers = [
        scored[one.name].point("encoder" if one.kind == "fast" else "first layers", one.layers, default)
        for one in LAYERS
    ]
    learned = [
        scored[one.name].point(f"{one.layers} layers", scored[one.name].prompts, default) for one in (*PROMPTS, DEFAULT)
    ]
    curves = {
        "layers": Curve("order by layers of the base model", "layers", layers),
        "prompts": Curve("order by prompts learned from", "prompts", learned),
    }
    for name, curve in curves.items():
        write_curve(arguments.folder / f"{name}.json", curve)
        Console().print(to_rich([curve_table(curve.title, curve.x_title, curve.points)]))


if __name__ == "__main__":
    main()
