"""What is known of a model from its config and the headers of its weights, without loading it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from uellm.cost.kv_cache import KvCacheLayout
from uellm.cost.kv_config import (
    HIDDEN,
    AttentionShape,
    CacheForm,
    UnknownCacheError,
    attention_shape,
    whole,
)
from uellm.cost.memory import ActivationShape, activation_shape
from uellm.rpc.errors import FieldViolation, InvalidArgumentError
from uellm_deployer.domain.division import Division, division
from uellm_deployer.domain.families import KNOWN, Blueprint, blueprint, context_limit, is_tied
from uellm_deployer.domain.inspection import Inspection
from uellm_deployer.domain.layers import ModelLayers, PartShape, Weights, plain, total
from uellm_deployer.domain.quantisation import Quantisation, UnknownQuantisationError, quantisation
from uellm_deployer.domain.storage import Linear
from uellm_deployer.domain.tensors import Experts, TensorInfo, UnknownWeightsError, held_whole, layers_from_tensors

FIELD = "spec.weights_path"


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a model is, in the number format in which it is loaded. Sizes in bytes."""

    architecture: str
    layers: int
    hidden_size: int
    attention_heads: int
    kv_heads: int
    head_size: int
    vocabulary_size: int
    context_limit_tokens: int
    weight_bytes: int
    kv_bytes_per_token: int
    parameter_count: int
    kv_cache: KvCacheLayout = field(default_factory=KvCacheLayout)
    """Empty in entries of a journal that is older than this field."""


@dataclass(frozen=True, slots=True)
class BuiltEngine:
    """What the build of an engine has fixed. Counts of tokens and rows are upper limits."""

    dtype: str
    tensor_size: int
    """Devices that share each layer."""
    stage_layers: tuple[int, ...]
    """Layers of each stage."""
    rank_bytes: tuple[int, ...]
    """Of its files, by rank: through the devices of a stage first."""
    max_batch_rows: int
    max_step_tokens: int
    page_tokens: int
    """Tokens of a page of the cache."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What a model is, whatever its number format."""

    architecture: str
    hidden_size: int
    vocabulary_size: int
    context_limit_tokens: int
    attention: AttentionShape
    activations: ActivationShape
    layers: ModelLayers
    fingerprint: str
    """Of config and weights: changes when they do."""
    tied_head: bool = False
    """Whether the output head is the embedding."""
    quantisation: Quantisation | None = None
    """How its weights are stored, if they are quantised."""
    experts: Experts | None = None
    """Those of a mixture of experts."""
    has_weights: bool = True
    """False: only its config is there. It can be planned, and not be deployed."""
    built: BuiltEngine | None = None
    """Set for an engine that was built beforehand, by which its placement is fixed but for the devices."""
    division: Division | None = None
    """What a tensor-parallel group must divide; None: not known."""

    @property
    def parameter_count(self) -> int:
        """Parameters; those of a tied head once."""
        return self.layers.parameter_count

    def facts(
        self, bytes_per_element: int, *, head_copies: int = 0, cache_form: CacheForm = CacheForm.TRANSFORMERS
    ) -> ModelFacts:
        """The facts when every plain parameter and cache element takes so many bytes.

        `head_copies`: how many more matrices of the size of the output head the engine holds, in a layout of its own.
        """
        head = self.vocabulary_size * self.hidden_size * head_copies
        kv_cache = self.layers.kv_cache(bytes_per_element, cache_form)
        return ModelFacts(
            architecture=self.architecture,
            layers=len(self.layers.layers),
            hidden_size=self.hidden_size,
            attention_heads=self.attention.heads,
            kv_heads=self.attention.kv_heads,
            head_size=self.attention.head_size,
            vocabulary_size=self.vocabulary_size,
            context_limit_tokens=self.context_limit_tokens,
            weight_bytes=self.layers.weight_bytes(bytes_per_element) + head * bytes_per_element,
            kv_bytes_per_token=kv_cache.bytes_per_token,
            parameter_count=self.parameter_count,
            kv_cache=kv_cache,
        )


def refusal(description: str) -> InvalidArgumentError:
    """The error for a model that cannot be deployed."""
    return InvalidArgumentError([FieldViolation(FIELD, description)])


def model_shape(
    config: Mapping[str, Any],
    tensors: Iterable[TensorInfo],
    fingerprint: str,
    inspection: Inspection | None = None,
) -> ModelShape:
    """Read a decoder-only model's shape.

    Args:
        config: its `config.json`.
        tensors: those of its weights; none if they are not there, then the family must be known.
        fingerprint: of both.
        inspection: what `uellm model inspect` found out; used for families that are not known here.

    Raises:
        InvalidArgumentError: the config is incomplete, or nothing that is there says how large the model is.
    """
    _check_supported(config)
    try:
        stored = list(tensors)
        if inspection is not None and needs_inspection(config):
            return _inspected_shape(config, stored, fingerprint, inspection)
        return _shape(config, stored, fingerprint)
    except (UnknownQuantisationError, UnknownWeightsError) as error:
        raise refusal(str(error)) from None
    except UnknownCacheError as error:
        advice = f". {_INSPECT}" if needs_inspection(config) else ""
        raise refusal(f"config.json: {error}{advice}") from None


def needs_inspection(config: Mapping[str, Any]) -> bool:
    """Whether its family is not known here, so that its `facts.json` counts where there is one."""
    return config.get("model_type") not in KNOWN


_INSPECT = (
    "Run `uellm model inspect` on the folder where torch and transformers are installed: it writes the facts.json that "
    "is read for families that are not known"
)


def _shape(config: Mapping[str, Any], tensors: list[TensorInfo], fingerprint: str) -> ModelShape:
    attention, scheme, tied = attention_shape(config), quantisation(config), is_tied(config)
    parts = _attention_parts(config, attention)
    if tensors:
        layers = layers_from_tensors(tensors, parts, experts(config), scheme, tied=tied)
    elif plan := blueprint(config):
        layers = _planned_layers(plan, parts, scheme)
    else:
        raise refusal(
            f"there are no weights, and the sizes of a {config.get('model_type')!r:.40} do not follow from its "
            f"config.json here; known are {', '.join(KNOWN)}. {_INSPECT}"
        )
    return ModelShape(
        architecture=config["architectures"][0],
        hidden_size=whole(config, *HIDDEN),
        vocabulary_size=whole(config, "vocab_size"),
        context_limit_tokens=context_limit(config),
        attention=attention,
        activations=activation_shape(config),
        layers=layers,
        fingerprint=fingerprint,
        tied_head=tied,
        quantisation=scheme,
        experts=experts(config),
        has_weights=bool(tensors),
        division=division(config),
    )


def _inspected_shape(
    config: Mapping[str, Any], tensors: list[TensorInfo], fingerprint: str, found: Inspection
) -> ModelShape:
    scheme, layers = quantisation(config), found.layers
    if tensors:
        stored = layers_from_tensors(tensors, layers.layers, experts(config), scheme, tied=found.tied_head)
        layers = replace(stored, layers=tuple(map(_active_as, stored.layers, layers.layers)))
    elif scheme:
        raise refusal("facts.json knows the model unquantised: put the quantised weights beside it")
    return ModelShape(
        architecture=config["architectures"][0],
        hidden_size=found.hidden_size,
        vocabulary_size=found.vocabulary_size,
        context_limit_tokens=found.context_limit_tokens,
        attention=found.attention,
        activations=found.activations,
        layers=layers,
        fingerprint=fingerprint,
        tied_head=found.tied_head,
        quantisation=scheme,
        experts=experts(config),
        has_weights=bool(tensors),
    )


def _active_as(stored: PartShape, inspected: PartShape) -> PartShape:
    """Names in a checkpoint may not show which tensors are experts; the model as it was built does."""
    share = inspected.active.parameters, inspected.weights.parameters
    return replace(stored, active=stored.weights.share(*share))


def _check_supported(config: Mapping[str, Any]) -> None:
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or len(architectures) != 1 or not isinstance(architectures[0], str):
        raise refusal("config.json: `architectures` must name one architecture")
    if config.get("is_encoder_decoder") or not architectures[0].endswith(("ForCausalLM", "LMHeadModel")):
        raise refusal(f"config.json: {architectures[0]} is not supported: only decoder-only causal language models are")


def _attention_parts(config: Mapping[str, Any], attention: AttentionShape) -> list[PartShape]:
    """Of each layer, what its attention keeps and reaches."""
    values = whole(config, "v_head_dim") if config.get("kv_lora_rank") else attention.head_size
    compact = attention_shape(config, CacheForm.COMPACT)
    return [
        PartShape(
            Weights(),
            Weights(),
            kv_width=attention.cached_width,
            compact_kv_width=compact.cached_width,
            window_tokens=window,
            attention_width=attention.heads * (attention.head_size + values),
        )
        for window in attention.windows
    ]


def experts(config: Mapping[str, Any]) -> Experts | None:
    """How many there are and how many a token takes; the keys are those of different families."""
    counts = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
    chosen = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts")
    if not any(config.get(name) for name in counts) or not any(config.get(name) for name in chosen):
        return None
    count = whole(config, *counts)
    return Experts(count, min(count, whole(config, *chosen)))


def _planned_layers(plan: Blueprint, parts: list[PartShape], scheme: Quantisation | None) -> ModelLayers:
    """The layers of weights that are not there yet."""
    output = _matrix(plan.head, plan.head.name, None if plan.tied else scheme)[0]
    head = plain(plan.final) + output
    return ModelLayers(
        embedding=PartShape(
            plain(plan.embedding),
            plain(plan.embedding_row),
            computes=False,
            whole=plain(plan.embedding - plan.head.numbers),
        ),
        layers=tuple(_planned_layer(plan, layer, part, scheme) for layer, part in enumerate(parts)),
        head=PartShape(head, head, whole=plain(plan.final + plan.head.outputs * plan.head.bias)),
        tied=plain(plan.head.numbers) if plan.tied else Weights(),
    )


def _planned_layer(plan: Blueprint, layer: int, part: PartShape, scheme: Quantisation | None) -> PartShape:
    block = plan.blocks[layer]
    pairs = [_matrix(linear, f"{plan.prefix}{layer}.{linear.name}", scheme) for linear in block.linears]
    norms = plain(block.norms)
    biases = sum(linear.outputs * linear.copies for linear in block.linears if linear.bias)
    whole = [all_ for linear, (all_, _) in zip(block.linears, pairs, strict=True) if held_whole(f".{linear.name}.")]
    return replace(
        part,
        weights=norms + total(all_ for all_, _ in pairs),
        active=norms + total(one for _, one in pairs),
        whole=norms + plain(biases) + total(whole),
    )


def _matrix(linear: Linear, name: str, scheme: Quantisation | None) -> tuple[Weights, Weights]:
    """Weights of all copies of a linear layer, and of those that one token passes through."""
    biases = plain(linear.outputs if linear.bias else 0)
    if scheme is None or linear.router or scheme.skips(name):
        one = plain(linear.numbers) + biases
    else:
        one = Weights(linear.numbers, 0, scheme.matrix_bytes(linear)) + biases
    return one.times(linear.copies), one.times(linear.chosen)
