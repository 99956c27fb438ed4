"""An adapter folder: LoRA weights, head, and a manifest that says what they belong to and what they hash to.

manifest.json        written last: a folder without it is no adapter
lora.safetensors     of peft, for the layers of the backbone; float16
head.safetensors     of `HazardHead`; float32
README.md            the model card
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import load_file, save_file
from torch import Tensor

from uellm_profiler.neural.errors import AdapterError
from uellm_profiler.neural.inputs import Framing

SCHEMA = 1
MANIFEST, LORA, HEAD = "manifest.json", "lora.safetensors", "head.safetensors"


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an adapter is."""

    kind: Literal["lora", "fast"]
    version: str
    description: str
    base: str
    """Name of the base model."""
    base_sha256: str
    """Of the weights of the base model that are used."""
    layers: int
    """Layers of the base model that are used, from the first on."""
    framing: Framing
    lora_rank: int
    lora_alpha: int
    served_models: tuple[str, ...]
    buckets: int
    """Of `uellm_profiler.domain.hazard`, from the first on."""
    head_width: int
    training: Mapping[str, Any]
    """How it was trained: seed, prompts, labels, epochs, validation loss."""


def write_adapter(folder: Path, manifest: Manifest, lora: Mapping[str, Tensor], head: Mapping[str, Tensor]) -> None:
    """Write a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    save_file(dict(lora), folder / LORA)
    save_file(dict(head), folder / HEAD)
    for name in (LORA, HEAD):
        # The library writes them for their owner alone; services run as another user.
        (folder / name).chmod(0o644)
    content = {"schema": SCHEMA, **asdict(manifest), "sha256": {name: _sha256(folder / name) for name in (LORA, HEAD)}}
    (folder / MANIFEST).write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def read_adapter(folder: Path) -> tuple[Manifest, dict[str, Tensor], dict[str, Tensor]]:
    """Read a folder: manifest, LoRA weights, head.

    Raises AdapterError if anything is missing or not what was written.
    """
    manifest, hashes = _read_manifest(folder)
    for name in (LORA, HEAD):
        if not (folder / name).is_file():
            raise AdapterError(f"{folder} lacks {name}: install the adapter again")
        if _sha256(folder / name) != hashes.get(name):
            raise AdapterError(
                f"{folder / name} is damaged (its hash is not the manifest's): install the adapter again"
            )
    return manifest, load_file(folder / LORA), load_file(folder / HEAD)


def _read_manifest(folder: Path) -> tuple[Manifest, Mapping[str, str]]:
    file = folder / MANIFEST
    try:
        content = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise AdapterError(f"{folder} holds no adapter ({MANIFEST} is missing)") from None
    except (OSError, ValueError) as error:
        raise AdapterError(f"{file} can't be read: {error}") from error
    schema = content.pop("schema", None) if isinstance(content, dict) else None
    if schema != SCHEMA:
        raise AdapterError(f"{file} has schema {schema}; this version reads schema {SCHEMA}: train the adapter again")
    try:
        hashes = dict(content.pop("sha256"))
        content["framing"] = Framing(**content["framing"])
        content["served_models"] = tuple(content["served_models"])
        return Manifest(**content), hashes
    except (KeyError, TypeError, ValueError) as error:
        raise AdapterError(f"{file} is no manifest: {error}") from error


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
