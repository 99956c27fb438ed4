"""The weights of a model's parts, from the names, number formats and shapes of its stored tensors."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

from uellm_deployer.domain.layers import ModelLayers, PartShape, Weights, plain, total
from uellm_deployer.domain.quantisation import Quantisation

BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U8": 8, "BOOL": 8}
BITS |= {"F8_E4M3": 8, "F8_E5M2": 8}
_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
_ONLY_QUANTISED = frozenset({"F8_E4M3", "F8_E5M2", "I8", "I16"})

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|block)\.(\d+)\.")
_EXPERT = re.compile(r"\.experts\.")
_EMBEDDING = re.compile(r"(?:^|\.)(?:(?!embed_out)\w*embed\w*|wte|wpe|project_in)\.")
_TOKENS = re.compile(r"(?:^|\.)(?:embed_tokens|embed_in|wte|tok_embeddings|word_embeddings|embeddings?)\.weight$")
_MATRIX = re.compile(r"(?:^|\.)project_in\.")
_HEADS = ("lm_head.weight", "embed_out.weight")
_WHOLE = re.compile(
    r"(?:^|\.)(?:q_a_proj|kv_a_proj_with_mqa|gate|shared_expert_gate|wpe|embed_positions|project_in|project_out)\."
)
_WEIGHT = re.compile(r"\.(?:weight|qweight|weight_packed|gate_up_proj|down_proj)$")
# Kept by older checkpoints and computed anew by transformers: rotary frequencies, and masks, which have four axes.
_COMPUTED = re.compile(r"rotary\w*\.inv_freq$|\.(?:attn|attention)\.masked_bias$")
_MASK = re.compile(r"\.(?:attn|attention)\.bias$")


class UnknownWeightsError(ValueError):
    """Tensors that don't make up the model; the message says what is wrong."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor of a safetensors file."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def numbers(self) -> int:
        """Elements."""
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class Experts:
    """A mixture of experts."""

    count: int
    chosen: int
    """Those that one token passes through."""


def layers_from_tensors(
    tensors: Iterable[TensorInfo],
    attention: Sequence[PartShape],
    experts: Experts | None,
    scheme: Quantisation | None,
    *,
    tied: bool,
) -> ModelLayers:
    """Sort tensors into embedding, layers and head, and count them.

    Args:
        tensors: all of the checkpoint.
        attention: of each layer, what its attention keeps and reaches; the weights are filled in.
        experts: what a token chooses among, if the model has them.
        scheme: how the weights are quantised, if they are.
        tied: whether the output head is the embedding.

    Raises:
        UnknownWeightsError: a layer has no tensor, or a number format is not understood.
    """
    known = _loaded({tensor.name: tensor for tensor in tensors}, tied=tied)
    _check_formats(known, scheme)
    quantised = _quantised_modules(known, scheme)
    parts: dict[str | int, list[tuple[Weights, bool]]] = defaultdict(list)
    whole: dict[str | int, Weights] = defaultdict(Weights)
    for tensor in known.values():
        weights, part = _weights(tensor, quantised, scheme), part_of(tensor.name)
        parts[part].append((weights, is_expert(tensor, experts)))
        vector = len(tensor.shape) < 2 and (_module(tensor.name) not in quantised or tensor.name.endswith(".bias"))
        if vector or held_whole(tensor.name):
            whole[part] += weights
    missing = [str(layer) for layer in range(len(attention)) if layer not in parts]
    if missing:
        raise UnknownWeightsError(f"the weights have no tensor of layers {_some(missing)}, which config.json has")
    embedding, head = total(w for w, _ in parts["embedding"]), total(w for w, _ in parts["head"])
    again = _tokens(known) if tied else Weights()
    return ModelLayers(
        embedding=PartShape(embedding, _looked_up(known), computes=False, whole=whole["embedding"]),
        layers=tuple(
            replace(_with_weights(part, parts[layer], experts), whole=whole[layer])
            for layer, part in enumerate(attention)
        ),
        head=PartShape(head + again, head + again, whole=whole["head"]),
        tied=again,
    )


def _loaded(tensors: Mapping[str, TensorInfo], *, tied: bool) -> dict[str, TensorInfo]:
    """Those that engines load, once each."""
    known = {
        name: tensor
        for name, tensor in tensors.items()
        if not _COMPUTED.search(name) and not (_MASK.search(name) and len(tensor.shape) == 4)
    }
    if tied:
        heads = [known.pop(name) for name in _HEADS if name in known]
        if heads and not any(part_of(name) == "embedding" for name in known):
            known["embed_tokens.weight"] = replace(heads[0], name="embed_tokens.weight")
    return known


def is_expert(tensor: TensorInfo, experts: Experts | None) -> bool:
    """Whether a tensor belongs to experts that are chosen among: by its name, or since it has one matrix for each."""
    fused = experts is not None and len(tensor.shape) == 3 and tensor.shape[0] == experts.count
    return fused or _EXPERT.search(tensor.name) is not None


def part_of(name: str) -> str | int:
    """The layer of a tensor, or `embedding` or `head`."""
    if layer := _LAYER.search(name):
        return int(layer[1])
    return "embedding" if _EMBEDDING.search(name) else "head"


def held_whole(name: str) -> bool:
    """Whether each member of a tensor-parallel group holds all of this matrix, as vLLM divides models."""
    return _WHOLE.search(name) is not None


def _check_formats(tensors: Mapping[str, TensorInfo], scheme: Quantisation | None) -> None:
    strange = {tensor.dtype for tensor in tensors.values()} - set(BITS)
    if scheme is None:
        strange |= {tensor.dtype for tensor in tensors.values()} & _ONLY_QUANTISED
    if strange:
        raise UnknownWeightsError(
            f"the weights hold numbers of format {', '.join(sorted(strange))}, which is not supported"
            + ("" if scheme else " without a `quantization_config` in config.json")
        )
    if not any(tensor.numbers for tensor in tensors.values() if tensor.dtype in _FLOATS):
        raise UnknownWeightsError("the weights hold no parameter")


def _quantised_modules(tensors: Mapping[str, TensorInfo], scheme: Quantisation | None) -> frozenset[str]:
    """Modules with a stored weight that is no plain number."""
    if scheme is None:
        return frozenset()
    return frozenset(
        _module(name) for name, tensor in tensors.items() if _WEIGHT.search(name) and tensor.dtype not in _FLOATS
    )


def _module(name: str) -> str:
    """`a.b` of `a.b.qweight`, and of `a.b.weight.absmax`."""
    before, weight, _ = name.partition(".weight.")
    return before if weight else name.rpartition(".")[0]


def _weights(tensor: TensorInfo, quantised: frozenset[str], scheme: Quantisation | None) -> Weights:
    name = tensor.name
    if scheme is None or _module(name) not in quantised or name.endswith(".bias"):
        return plain(tensor.numbers) if tensor.dtype in _FLOATS else Weights()
    stored = tensor.numbers * BITS[tensor.dtype] // 8
    if not _WEIGHT.search(name):
        return Weights(packed_bytes=stored)
    one_each = tensor.dtype in _ONLY_QUANTISED
    return Weights(tensor.numbers if one_each else stored * 8 // scheme.bits, 0, stored)


def _with_weights(part: PartShape, found: list[tuple[Weights, bool]], experts: Experts | None) -> PartShape:
    everywhere = total(weights for weights, of_experts in found if not of_experts)
    chosen_from = total(weights for weights, of_experts in found if of_experts)
    if chosen_from.parameters and experts is None:
        raise UnknownWeightsError("the weights have experts, of which config.json doesn't say how many a token takes")
    active = chosen_from.share(experts.chosen, experts.count) if experts else Weights()
    return PartShape(
        everywhere + chosen_from,
        everywhere + active,
        part.kv_width,
        part.compact_kv_width,
        part.window_tokens,
        part.kv_fixed_bytes,
        part.attention_width,
    )


def _embedding(tensors: Mapping[str, TensorInfo]) -> list[TensorInfo]:
    return [tensor for name, tensor in tensors.items() if part_of(name) == "embedding"]


def _tokens(tensors: Mapping[str, TensorInfo]) -> Weights:
    """The matrix that embeds tokens."""
    return total(plain(tensor.numbers) for tensor in _embedding(tensors) if _TOKENS.search(tensor.name))


def _looked_up(tensors: Mapping[str, TensorInfo]) -> Weights:
    """What one token takes: a row of each table, and all of what is none."""
    found = _embedding(tensors)
    return total(plain(t.numbers if _MATRIX.search(t.name) or len(t.shape) < 2 else t.shape[-1]) for t in found)


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
