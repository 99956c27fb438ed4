"""The backbones: the first layers of a causal language model, or an encoder, read from a folder of safetensors."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoConfig, AutoModel

from uellm_profiler.neural.errors import AdapterError

_PREFIX = "model."
"""Of a causal language model's backbone within the whole."""


def load_backbone(folder: Path, layers: int) -> tuple[nn.Module, str]:
    """The first layers of the model in a folder, float32, and the SHA-256 of the weights that were read.

    Nothing else of the weights is read. Raises AdapterError.
    """
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if not 1 <= layers <= config.num_hidden_layers:
            raise AdapterError(f"{folder} has {config.num_hidden_layers} layers, not {layers}")
        config.num_hidden_layers = layers
        options: dict[str, Any] = {"add_pooling_layer": False} if config.model_type == "bert" else {}
        model: nn.Module = AutoModel.from_config(config, **options)  # type: ignore[no-untyped-call]
        digest = _fill(model, folder / "model.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise AdapterError(f"the base model in {folder} can't be read: {error}") from error
    return model.eval(), digest


def _fill(model: nn.Module, file: Path) -> str:
    """Read each parameter from the file; returns the hash over them, in the order of their names."""
    digest = hashlib.sha256()
    weights = {}
    with safe_open(file, framework="pt") as tensors:
        stored = set(tensors.keys())
        for name in sorted(dict(model.named_parameters())):
            key = name if name in stored else _PREFIX + name
            if key not in stored:
                raise AdapterError(f"{file} has no tensor {name}")
            weights[name] = tensors.get_tensor(key).to(torch.float32).contiguous()
            digest.update(name.encode())
            digest.update(weights[name].numpy())
    model.load_state_dict(weights, assign=True, strict=False)
    return digest.hexdigest()
