"""The model card that lies beside a shipped adapter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from uellm_profiler.learning.report.tables import summary, to_markdown
from uellm_profiler.neural.adapter import Manifest

_BASES = {
    "lora": "SmolLM2-135M-Instruct by Hugging Face (Apache 2.0)",
    "fast": "all-MiniLM-L6-v2 by sentence-transformers (Apache 2.0)",
}


def model_card(manifest: Manifest, card: Mapping[str, Any]) -> str:
    """What the adapter is for, what it learned from, how good it is, and where it ends; Markdown."""
    training, about = manifest.training, card["about"]
    name = f"{manifest.kind}/{manifest.version}"
    losses = ", ".join(f"{loss:.3f}" for loss in training["validation_loss"])
    cut = f"{about['train_cut_share']:.0%} of them were cut at a limit and count as longer than it"
    return f"""# Length predictor `{name}`

{manifest.description} It predicts the distribution of the length of an answer, in tokens, before it is generated.

- **Base**: {_BASES[manifest.kind]}, {manifest.layers} layers of it; the weights are not here, their SHA-256 is in
  `manifest.json`.
- **Files**: `lora.safetensors` (rank {manifest.lora_rank}, float16), `head.safetensors` (hazards of {manifest.buckets}
  buckets), `manifest.json` (settings and hashes; loading checks them).
- **For**: scheduling and admission of {", ".join(manifest.served_models)}. Other served models share one untrained row
  of the table of models; online calibration corrects level and spread for them, the order stays that of this model.
- **Not for**: limits or bills of single answers. Most of what decides a length is not in the prompt (see the noise
  floor).

## Training

{training["prompts"]:,} prompts in English with {training["labels"]:,} lengths of {about["served_model"]};
{cut}. Seed {training["seed"]}, {training["epochs"]} epochs of batches of {training["batch_prompts"]} prompts,
learning rates {training["lora_rate"]:g} (LoRA) and {training["head_rate"]:g} (head), dropout {training["dropout"]:g}.
Validation loss by epoch, nats a label: {losses}; kept is epoch {training["best_epoch"]}.

## Report card

{to_markdown([summary(card)]).strip()}

All metrics, by family of prompts, noise floor and serving: docs/predictor/card.md of the repository;
`uellm predictor evaluate` makes the card again.
"""
