"""`uellm model inspect`: a model on torch's meta device, where tensors have shapes and no memory."""

from __future__ import annotations

import contextlib
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.markup import escape
from rich.table import Table
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, PretrainedConfig
from uellm_deployer.adapters.facts_file import FACTS_FILE, FactsDocument, document
from uellm_deployer.adapters.model_folder import read_config
from uellm_deployer.domain.facts import experts, needs_inspection
from uellm_deployer.domain.inspection import Inspection, config_fingerprint
from uellm_deployer.domain.layers import ModelLayers, PartShape, Weights
from uellm_deployer.domain.tensors import (
    Experts,
    TensorInfo,
    UnknownWeightsError,
    is_expert,
    layers_from_tensors,
    part_of,
)

from uellm.cli.errors import InspectionError
from uellm.cli.output import print_line, stdout
from uellm.cli.values import show_bytes
from uellm.cost.kv_config import AttentionShape
from uellm.cost.memory import ActivationShape

_PROBE = 2
"""Tokens of the first pass; windows are wider."""
_SINGLE = 4


@dataclass(frozen=True, slots=True)
class _Kept:
    """What the cache of one layer holds of one row."""

    numbers: int
    """Of one token."""
    fixed_bytes: int
    """Whatever the length."""
    window: int
    kv_heads: int
    width: int
    """Of a key and a value together."""


def inspect(folder: Path, out: Path | None, context_limit: int | None, *, as_json: bool) -> None:
    """Inspect, write the facts, and show them. Raises InspectionError, or InvalidArgumentError for the config."""
    facts = inspect_model(folder, context_limit)
    target = out or folder / FACTS_FILE
    content = facts.model_dump_json(indent=1) + "\n"
    _write(target, content)
    if as_json:
        sys.stdout.write(content)
        return
    _show(facts)
    print_line(stdout, f"\nwritten to {escape(str(target))}")
    if not needs_inspection(read_config(folder / "config.json")):
        print_line(stdout, "[dim]The deployer knows this family by itself and will not read it.[/]")


def inspect_model(folder: Path, context_limit: int | None = None) -> FactsDocument:
    """The facts of the model in the folder; `context_limit` is for configs that have none. Errors as of `inspect`."""
    config = read_config(folder / "config.json")
    model = _build(folder)
    text = model.config.get_text_config(decoder=True)
    tensors = [TensorInfo(name, "F32", tuple(weight.shape)) for name, weight in model.named_parameters()]
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    chosen, heads = experts(text.to_dict()), int(getattr(text, "num_attention_heads", 0) or 1)
    limit, kept = _context_limit(text, context_limit), _kept(model)
    most = max(kept, key=lambda layer: layer.numbers)
    attention = AttentionShape(
        heads, most.kv_heads, most.width // 2, most.numbers, tuple(layer.window for layer in kept)
    )
    found = Inspection(
        config_fingerprint=config_fingerprint(config),
        hidden_size=int(text.hidden_size),
        vocabulary_size=int(text.vocab_size),
        context_limit_tokens=limit,
        tied_head=tied,
        attention=attention,
        activations=_activations(text, tensors, attention, chosen),
        layers=_layers(tensors, kept, heads, chosen, tied=tied),
    )
    return document(found, type(model).__name__, f"transformers {transformers.__version__}, torch {torch.__version__}")


def _build(folder: Path) -> Any:
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        config.__dict__.pop("quantization_config", None)  # the facts are those of the unquantised model
        auto_model: Any = AutoModelForCausalLM
        with torch.device("meta"):
            model: Any = auto_model.from_config(config, trust_remote_code=False, dtype=torch.float32)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise InspectionError(
            f"transformers {transformers.__version__} cannot build the model in {folder}: {_first_line(error)}\n"
            "A model that brings its own code is not supported; a newer family needs a newer transformers."
        ) from error
    return model.train(mode=False)


def _kept(model: Any) -> list[_Kept]:
    """What each layer's cache holds, from two passes of one row."""
    with contextlib.suppress(ValueError, AttributeError):  # models without experts
        model.set_experts_implementation("batched_mm")  # the default one looks which experts were chosen
    cache = DynamicCache(config=model.config)
    sizes = []
    try:
        with torch.inference_mode(), torch.device("meta"):
            for new in (_PROBE, 1):
                tokens = torch.zeros(1, new, dtype=torch.long)
                model(tokens, past_key_values=cache, use_cache=True)
                sizes.append([_held_bytes(layer) for layer in cache.layers])
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
        raise InspectionError(
            f"a pass of {type(model).__name__} on the meta device fails: {_first_line(error)}\n"
            "What its cache takes cannot be found out without its weights."
        ) from error
    return [_kept_by(layer, *pair) for layer, pair in zip(cache.layers, zip(*sizes, strict=True), strict=True)]


def _kept_by(layer: Any, before: int, after: int) -> _Kept:
    added = after - before
    keys, values = (getattr(layer, name, None) for name in ("keys", "values"))
    heads, width = 0, 0
    if isinstance(keys, Tensor) and isinstance(values, Tensor):  # [rows, heads, tokens, width]
        heads, width = keys.shape[1], keys.shape[-1] + values.shape[-1]
    return _Kept(
        numbers=added // _SINGLE,
        fixed_bytes=before - _PROBE * added,
        window=int(getattr(layer, "sliding_window", 0) or 0),
        kv_heads=heads,
        width=width,
    )


def _held_bytes(layer: Any) -> int:
    """All tensors of a layer of the cache, in lists and dictionaries too; single precision."""
    found: dict[int, Tensor] = {}

    def collect(value: Any) -> None:
        if isinstance(value, Tensor):
            found[id(value)] = value
        elif isinstance(value, dict):
            collect(list(value.values()))
        elif isinstance(value, list | tuple):
            for part in value:
                collect(part)

    collect(vars(layer))
    return sum(tensor.numel() * tensor.element_size() for tensor in found.values() if tensor.is_floating_point())


def _layers(
    tensors: Sequence[TensorInfo], kept: Sequence[_Kept], heads: int, chosen: Experts | None, *, tied: bool
) -> ModelLayers:
    parts = [
        PartShape(
            Weights(),
            Weights(),
            kv_width=layer.numbers,
            compact_kv_width=layer.numbers,
            window_tokens=layer.window,
            kv_fixed_bytes=layer.fixed_bytes,
            attention_width=heads * layer.width,
        )
        for layer in kept
    ]
    try:
        return layers_from_tensors(tensors, parts, chosen, None, tied=tied)
    except UnknownWeightsError as error:
        raise InspectionError(str(error)) from error


def _activations(
    config: Any, tensors: Sequence[TensorInfo], attention: AttentionShape, chosen: Experts | None
) -> ActivationShape:
    """An upper bound from the widest matrices of the layers, put together as `activation_shape` does."""
    hidden = int(config.hidden_size)
    inside = [tensor for tensor in tensors if isinstance(part_of(tensor.name), int)]
    widest = max((max(t.shape) for t in inside if len(t.shape) == 2), default=hidden)
    expert = max((max(t.shape[-2:]) for t in inside if is_expert(t, chosen) and len(t.shape) > 1), default=0)
    routed = 2 * hidden + chosen.chosen * (2 * hidden + 4 * expert) if chosen else 0
    common, queries = 5 * hidden + 4 * attention.head_size, attention.heads * attention.head_size
    softcapped = getattr(config, "attn_logit_softcapping", None)
    fused = config._attn_implementation == "sdpa" and not softcapped  # noqa: SLF001
    return ActivationShape(
        feed_forward_width=common + 4 * widest + routed,
        attention_width=common + 3 * queries + attention.cached_width,
        context_width=2 * queries,
        masks=2 if any(attention.windows) else 1,
        score_heads=0 if fused else attention.heads,
        vocabulary=int(config.vocab_size),
    )


def _context_limit(config: PretrainedConfig, given: int | None) -> int:
    limit = given or getattr(config, "max_position_embeddings", None)
    if not isinstance(limit, int) or limit < 1:
        raise InspectionError("config.json doesn't say the longest context: say it with --context-limit TOKENS")
    return limit


def _write(target: Path, content: str) -> None:
    """In one step, so that the deployer never reads half of it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        draft.write_text(content)
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)


def _show(facts: FactsDocument) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold dim")
    for column in ("", "layers", "parameters", "active", "cache of a token", "window"):
        table.add_column(column, justify="left" if not column else "right")
    table.add_row("embedding", "", f"{facts.embedding.parameters:,}", f"{facts.embedding.active_parameters:,}", "", "")
    for layer, count in Counter(facts.layers).items():
        width = f"{show_bytes(2 * layer.kv_width)} in half precision" if layer.kv_width else "fixed"
        window = f"{layer.window_tokens:,}" if layer.window_tokens else "-"
        table.add_row("layer", f"{count}", f"{layer.parameters:,}", f"{layer.active_parameters:,}", width, window)
    tied = "head, tied" if facts.tied_head else "head"
    table.add_row(tied, "", f"{facts.head.parameters:,}", f"{facts.head.active_parameters:,}", "", "")
    total = facts.embedding.parameters + facts.head.parameters - facts.tied_parameters
    total += sum(layer.parameters for layer in facts.layers)
    stdout.print(table)
    print_line(stdout, f"\n{escape(facts.architecture)}: {total:,} parameters in {len(facts.layers)} layers")


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:300]
