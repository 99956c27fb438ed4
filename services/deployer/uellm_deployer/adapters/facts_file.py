"""`facts.json`: what `uellm model inspect` found out about a model, beside the model. Read strictly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from uellm.cost.kv_config import AttentionShape
from uellm.cost.memory import ActivationShape
from uellm.rpc.errors import FieldViolation, InvalidArgumentError
from uellm_deployer.domain.facts import FIELD
from uellm_deployer.domain.inspection import Inspection, config_fingerprint
from uellm_deployer.domain.layers import ModelLayers, PartShape, Weights, plain

FACTS_FILE = "facts.json"

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Attention(_Strict):
    """Of the layer that keeps most."""

    heads: Positive
    kv_heads: Count
    head_size: Count


class Activations(_Strict):
    """Numbers that are alive at once, as `ActivationShape`."""

    feed_forward_width: Positive
    attention_width: Positive
    context_width: Count
    masks: Positive
    score_heads: Count
    vocabulary: Positive


class Part(_Strict):
    """Embedding or head."""

    parameters: Positive
    active_parameters: Count


class Layer(Part):
    """A decoder layer."""

    kv_width: Count
    """Numbers kept of one token."""
    window_tokens: Count
    kv_fixed_bytes: Count
    """Kept of one row, whatever its length."""
    attention_width: Count


class FactsDocument(_Strict):
    """The file. A change of the meaning of a field changes the version."""

    schema_version: Literal[1]
    written_by: str
    config_fingerprint: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    architecture: str
    hidden_size: Positive
    vocabulary_size: Positive
    context_limit_tokens: Positive
    tied_head: bool
    tied_parameters: Count
    """Of the head, those that are the embedding's."""
    attention: Attention
    activations: Activations
    embedding: Part
    head: Part
    layers: Annotated[list[Layer], Field(min_length=1)]


def document(found: Inspection, architecture: str, written_by: str) -> FactsDocument:
    """An inspection as the file has it."""
    layers = found.layers
    return FactsDocument(
        schema_version=1,
        written_by=written_by,
        config_fingerprint=found.config_fingerprint,
        architecture=architecture,
        hidden_size=found.hidden_size,
        vocabulary_size=found.vocabulary_size,
        context_limit_tokens=found.context_limit_tokens,
        tied_head=found.tied_head,
        tied_parameters=layers.tied.parameters,
        attention=Attention(
            heads=found.attention.heads, kv_heads=found.attention.kv_heads, head_size=found.attention.head_size
        ),
        activations=Activations(**{name: getattr(found.activations, name) for name in Activations.model_fields}),
        embedding=_part(layers.embedding),
        head=_part(layers.head),
        layers=[
            Layer(
                parameters=layer.weights.parameters,
                active_parameters=layer.active.parameters,
                kv_width=layer.kv_width,
                window_tokens=layer.window_tokens,
                kv_fixed_bytes=layer.kv_fixed_bytes,
                attention_width=layer.attention_width,
            )
            for layer in layers.layers
        ],
    )


def read_inspection(content: bytes, config: Mapping[str, Any]) -> Inspection:
    """Read the file that lies beside this config; InvalidArgumentError with every violation."""
    try:
        facts = FactsDocument.model_validate_json(content)
    except ValidationError as error:
        raise InvalidArgumentError(
            [_violation(_path(entry["loc"]), entry["msg"]) for entry in error.errors(include_url=False)]
        ) from None
    if facts.config_fingerprint != config_fingerprint(config):
        raise InvalidArgumentError(
            [_violation("config_fingerprint", "is of another config.json: run `uellm model inspect` again")]
        )
    return Inspection(
        config_fingerprint=facts.config_fingerprint,
        hidden_size=facts.hidden_size,
        vocabulary_size=facts.vocabulary_size,
        context_limit_tokens=facts.context_limit_tokens,
        tied_head=facts.tied_head,
        attention=AttentionShape(
            heads=facts.attention.heads,
            kv_heads=facts.attention.kv_heads,
            head_size=facts.attention.head_size,
            cached_width=max(layer.kv_width for layer in facts.layers),
            windows=tuple(layer.window_tokens for layer in facts.layers),
        ),
        activations=ActivationShape(**facts.activations.model_dump()),
        layers=ModelLayers(
            embedding=PartShape(*_weights(facts.embedding), computes=False),
            layers=tuple(_layer(layer) for layer in facts.layers),
            head=PartShape(*_weights(facts.head)),
            tied=plain(facts.tied_parameters),
        ),
    )


def _part(part: PartShape) -> Part:
    return Part(parameters=part.weights.parameters, active_parameters=part.active.parameters)


def _weights(part: Part) -> tuple[Weights, Weights]:
    return plain(part.parameters), plain(part.active_parameters)


def _layer(layer: Layer) -> PartShape:
    return PartShape(
        *_weights(layer),
        kv_width=layer.kv_width,
        compact_kv_width=layer.kv_width,
        window_tokens=layer.window_tokens,
        kv_fixed_bytes=layer.kv_fixed_bytes,
        attention_width=layer.attention_width,
    )


def _path(location: tuple[int | str, ...]) -> str:
    """`layers[3].parameters`."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in location).lstrip(".")


def _violation(path: str, description: str) -> FieldViolation:
    where = f"{FACTS_FILE}: `{path}` " if path else f"{FACTS_FILE}: "
    return FieldViolation(FIELD, f"{where}{description[:1].lower()}{description[1:]}")
