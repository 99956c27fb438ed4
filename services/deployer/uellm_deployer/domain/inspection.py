"""What `uellm model inspect` finds out about a model of a family that is not known here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from uellm.cost.kv_config import AttentionShape
from uellm.cost.memory import ActivationShape
from uellm_deployer.domain.layers import ModelLayers


@dataclass(frozen=True, slots=True)
class Inspection:
    """A model as transformers builds it, unquantised."""

    config_fingerprint: str
    """Of the config.json that it was built from."""
    hidden_size: int
    vocabulary_size: int
    context_limit_tokens: int
    tied_head: bool
    attention: AttentionShape
    """Of the layer that keeps most."""
    activations: ActivationShape
    layers: ModelLayers


def config_fingerprint(config: Mapping[str, Any]) -> str:
    """SHA-256 of a `config.json`, however it is laid out."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
