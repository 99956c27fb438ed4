"""Train a predictor: LoRA on the backbone, the head from scratch, one likelihood for both."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict
from torch import Tensor

from uellm_profiler.domain.hazard import edges_up_to
from uellm_profiler.learning.dataset import LabelledPrompt
from uellm_profiler.learning.network_data import Batch, TensorSet, hazard_loss
from uellm_profiler.learning.prompts import DataError
from uellm_profiler.neural.adapter import Manifest, write_adapter
from uellm_profiler.neural.backbone import load_backbone
from uellm_profiler.neural.inputs import CHAT, ENCODER, PromptEncoder
from uellm_profiler.neural.network import HazardHead, HeadShape, pool
from uellm_profiler.neural.predictor import hidden_size, with_lora

CHECKPOINT = "checkpoint.pt"


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to train."""

    kind: str
    """`lora` (a causal language model) or `fast` (an encoder)."""
    base: str
    """Name of the base model."""
    layers: int
    epochs: int = 3
    batch_prompts: int = 16
    rank: int = 16
    alpha: int = 32
    lora_rate: float = 4e-4
    head_rate: float = 1e-3
    weight_decay: float = 0.02
    dropout: float = 0.1
    head_width: int = 192
    seed: int = 0


@dataclass(slots=True)
class Progress:
    """Where training stands."""

    epoch: int
    step: int
    steps: int
    """Of all epochs."""
    loss: float
    """Of training, smoothed; nats a label."""
    validation: list[float] = field(default_factory=list)
    """Loss on the validation prompts after each epoch."""


class Trainer:
    """Trains one predictor; killed and begun again, it goes on after the last epoch that it finished."""

    def __init__(
        self, recipe: Recipe, base: Path, train: Sequence[LabelledPrompt], valid: Sequence[LabelledPrompt]
    ) -> None:
        """Raises AdapterError if the base model can't be read, DataError if there is nothing to learn from."""
        if not train or not valid:
            raise DataError("training and validation need labelled prompts")
        torch.manual_seed(recipe.seed)
        self._recipe = recipe
        backbone, self._base_hash = load_backbone(base, recipe.layers)
        models = tuple(sorted({label.model for one in train for label in one.labels}))
        self._framing = CHAT if recipe.kind == "lora" else ENCODER
        encoder = PromptEncoder.load(base, self._framing)
        self._tuned = with_lora(backbone, recipe.rank, recipe.alpha, recipe.dropout)
        longest = max(label.max_tokens for one in (*train, *valid) for label in one.labels)
        buckets = len(edges_up_to(longest))
        self._head = HazardHead(HeadShape(hidden_size(backbone), models, buckets, recipe.head_width, recipe.dropout))
        self._train, self._valid = (TensorSet(part, encoder, self._head) for part in (train, valid))
        self._prompts, self._labels = len(train), sum(len(one.labels) for one in train)
        self._steps = recipe.epochs * -(-len(train) // recipe.batch_prompts)
        self._head.start_at(self._train.hazards())
        lora = [weight for weight in self._tuned.parameters() if weight.requires_grad]
        groups = [{"params": lora, "lr": recipe.lora_rate}, {"params": self._head.parameters(), "lr": recipe.head_rate}]
        self._optimizer = torch.optim.AdamW(groups, weight_decay=recipe.weight_decay)
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(
            self._optimizer, [recipe.lora_rate, recipe.head_rate], total_steps=self._steps + 1, pct_start=0.1
        )
        self._progress = Progress(0, 0, self._steps, 0.0)
        self._best: dict[str, Any] = {}

    def run(self, folder: Path, report: Callable[[Progress], None]) -> Progress:
        """Train, keeping a checkpoint in `folder`; `report` is called after each step."""
        folder.mkdir(parents=True, exist_ok=True)
        self._resume(folder / CHECKPOINT)
        while self._progress.epoch < self._recipe.epochs:
            self._epoch(report)
            self._progress.validation.append(self.validate())
            self._progress.epoch += 1
            if self._progress.validation[-1] == min(self._progress.validation):
                self._best = {"lora": self._lora(), "head": _copy(self._head.state_dict())}
            report(self._progress)
            self._save(folder / CHECKPOINT)
        return self._progress

    def _epoch(self, report: Callable[[Progress], None]) -> None:
        recipe, progress = self._recipe, self._progress
        # Of the epoch, so that one that is begun again goes as it would have.
        torch.manual_seed(recipe.seed + 1 + progress.epoch)
        shuffle = random.Random(recipe.seed + progress.epoch)  # noqa: S311  (not for secrets)
        self._tuned.train()
        self._head.train()
        for batch in self._train.batches(recipe.batch_prompts, shuffle):
            loss = self._loss(batch)
            self._optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_([*self._tuned.parameters(), *self._head.parameters()], 1.0)
            self._optimizer.step()
            self._schedule.step()
            progress.step += 1
            progress.loss = loss.item() if progress.step == 1 else 0.98 * progress.loss + 0.02 * loss.item()
            report(progress)

    def _loss(self, batch: Batch) -> Tensor:
        # Half precision halves the time of a step; what is evaluated and served is computed in single precision.
        with torch.autocast("cpu", torch.bfloat16, enabled=self._tuned.training):
            pooled = pool(self._tuned, batch.ids, batch.mask)
        logits = self._head(pooled[batch.rows], batch.numbers, batch.models)
        losses = hazard_loss(logits, batch.targets)
        return (losses * batch.weights).sum() / batch.weights.sum()

    @torch.no_grad()
    def validate(self) -> float:
        """Loss on the validation prompts, nats a label."""
        self._tuned.eval()
        self._head.eval()
        total = weight = 0.0
        for batch in self._valid.batches(self._recipe.batch_prompts):
            share = batch.weights.sum().item()
            total += self._loss(batch).item() * share
            weight += share
        return total / weight

    def write(self, folder: Path, version: str, description: str) -> Manifest:
        """Write the best epoch as an adapter."""
        recipe = self._recipe
        best = min(range(len(self._progress.validation)), key=self._progress.validation.__getitem__)
        training = {
            **{name: value for name, value in asdict(recipe).items() if name not in ("kind", "base", "layers")},
            "prompts": self._prompts,
            "labels": self._labels,
            "best_epoch": best + 1,
            "validation_loss": [round(loss, 4) for loss in self._progress.validation],
        }
        manifest = Manifest(
            kind="lora" if recipe.kind == "lora" else "fast",
            version=version,
            description=description,
            base=recipe.base,
            base_sha256=self._base_hash,
            layers=recipe.layers,
            framing=self._framing,
            lora_rank=recipe.rank,
            lora_alpha=recipe.alpha,
            served_models=self._head.shape.served_models,
            buckets=self._head.shape.buckets,
            head_width=recipe.head_width,
            training=training,
        )
        write_adapter(folder, manifest, self._best["lora"], self._best["head"])
        return manifest

    def _lora(self) -> dict[str, Tensor]:
        """The low-rank updates, in half precision: they are small, and the adapter ships."""
        return {name: value.to(torch.float16) for name, value in get_peft_model_state_dict(self._tuned).items()}

    def _save(self, file: Path) -> None:
        state = {
            "recipe": asdict(self._recipe),
            "tuned": {name: p for name, p in self._tuned.named_parameters() if p.requires_grad},
            "head": self._head.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "progress": asdict(self._progress),
            "best": self._best,
        }
        torch.save(state, file.with_suffix(".tmp"))
        file.with_suffix(".tmp").replace(file)

    def _resume(self, file: Path) -> None:
        if not file.exists():
            return
        state = torch.load(file, weights_only=True)
        if state["recipe"] != asdict(self._recipe):
            raise DataError(f"{file} is of another recipe: train into another folder, or delete it")
        self._tuned.load_state_dict(state["tuned"], strict=False)
        self._head.load_state_dict(state["head"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        self._progress = Progress(**state["progress"])
        self._best = state["best"]


def _copy(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in state.items()}
