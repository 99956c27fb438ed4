"""What a model takes and computes, layer by layer: as counts of numbers, and in bytes once the number format is known.

Three kinds of parts lie on devices: the embedding, the decoder layers, and the head (the final norm and the output
matrix). With a tied head the output matrix is the embedding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from uellm.cost.kv_cache import KvCacheGroup, KvCacheLayout
from uellm.cost.kv_config import CacheForm


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights of a part of a model."""

    parameters: int = 0
    """As the model has them before it is quantised."""
    plain: int = 0
    """Numbers that are kept in the engine's number format."""
    packed_bytes: int = 0
    """Quantised numbers with their scales and zero points: the same in every number format."""

    def __add__(self, other: Weights) -> Weights:
        return Weights(
            self.parameters + other.parameters, self.plain + other.plain, self.packed_bytes + other.packed_bytes
        )

    def bytes_in(self, bytes_per_element: int) -> int:
        """Memory they take when a plain number takes so many bytes."""
        return self.plain * bytes_per_element + self.packed_bytes

    def times(self, copies: int) -> Weights:
        """Of so many parts that are alike."""
        return Weights(self.parameters * copies, self.plain * copies, self.packed_bytes * copies)

    def share(self, chosen: int, of: int) -> Weights:
        """Of `of` parts that are alike, `chosen`."""
        return Weights(self.parameters * chosen // of, self.plain * chosen // of, self.packed_bytes * chosen // of)


def plain(parameters: int) -> Weights:
    """Weights that are not quantised."""
    return Weights(parameters, parameters)


def total(parts: Iterable[Weights]) -> Weights:
    """All of them together."""
    return sum(parts, Weights())


@dataclass(frozen=True, slots=True)
class PartShape:
    """A part of a model, whatever its number format. The widths are those of a decoder layer's attention."""

    weights: Weights
    active: Weights
    """What one token computes with: of a mixture of experts those that are chosen, of an embedding one row."""
    kv_width: int = 0
    """Numbers kept of one token."""
    compact_kv_width: int = 0
    """The same on an engine that keeps the least (`CacheForm.COMPACT`)."""
    window_tokens: int = 0
    """Tokens that attention reaches; 0: all."""
    kv_fixed_bytes: int = 0
    """Kept of one row, whatever its length."""
    attention_width: int = 0
    """Numbers by which one token meets each token of its context: keys and values of all query heads, unpacked."""
    computes: bool = True
    """An embedding only looks up."""
    whole: Weights = field(default_factory=Weights)
    """What each member of a tensor-parallel group holds all of: norms, biases, routers, positions, and the projections
    to the compressed vectors of latent attention."""

    def kept(self, form: CacheForm) -> int:
        """Numbers kept of one token in this form."""
        return self.compact_kv_width if form is CacheForm.COMPACT else self.kv_width

    def facts(self, bytes_per_element: int, form: CacheForm) -> LayerFacts:
        """In a number format."""
        return LayerFacts(
            parameters=self.weights.parameters,
            active_parameters=self.active.parameters,
            weight_bytes=self.weights.bytes_in(bytes_per_element),
            active_weight_bytes=self.active.bytes_in(bytes_per_element),
            flops_per_token=2 * self.active.parameters if self.computes else 0,
            flops_per_context_token=2 * self.attention_width,
            kv_bytes_per_token=self.kept(form) * bytes_per_element,
            window_tokens=self.window_tokens,
            kv_fixed_bytes=self.kv_fixed_bytes,
            whole_bytes=self.whole.bytes_in(bytes_per_element),
        )


@dataclass(frozen=True, slots=True)
class LayerFacts:
    """A decoder layer, the embedding or the head, in the number format in which it is loaded."""

    parameters: int
    active_parameters: int
    weight_bytes: int
    """Memory that it takes."""
    active_weight_bytes: int
    """Bytes that a decode step of one row reads; of a mixture of experts a step of many rows reads up to all."""
    flops_per_token: int
    """A multiplication and an addition for each active parameter."""
    flops_per_context_token: int = 0
    """Operations of one new token for each token of its context."""
    kv_bytes_per_token: int = 0
    window_tokens: int = 0
    """Tokens that attention reaches, and that are kept; 0: all."""
    kv_fixed_bytes: int = 0
    """Kept of one row, whatever its length."""
    whole_bytes: int = 0
    """Of `weight_bytes`, what each member of a tensor-parallel group holds all of."""


@dataclass(frozen=True, slots=True)
class LayeredFacts:
    """A model in the order in which a token passes through it."""

    embedding: LayerFacts
    layers: tuple[LayerFacts, ...]
    head: LayerFacts
    tied_bytes: int
    """Of the head's weights, those that are the embedding's: a device with both holds them once."""

    def weight_bytes(self, first_layer: int, layer_count: int, *, embedding: bool, head: bool) -> int:
        """Memory that a contiguous range of layers takes on one device."""
        layers = self.layers[first_layer : first_layer + layer_count]
        ends = self.embedding.weight_bytes * embedding + self.head.weight_bytes * head
        return sum(layer.weight_bytes for layer in layers) + ends - self.tied_bytes * (embedding and head)


@dataclass(frozen=True, slots=True)
class ModelLayers:
    """The same, whatever the number format."""

    embedding: PartShape
    layers: tuple[PartShape, ...]
    head: PartShape
    tied: Weights = field(default_factory=Weights)
    """Of the head, what is the embedding's."""

    @property
    def parameter_count(self) -> int:
        """Parameters of the model; those of a tied head once."""
        return self._sum("parameters")

    def weight_bytes(self, bytes_per_element: int) -> int:
        """Memory of the whole model on one device."""
        return self._sum("plain") * bytes_per_element + self._sum("packed_bytes")

    def facts(self, bytes_per_element: int, form: CacheForm = CacheForm.TRANSFORMERS) -> LayeredFacts:
        """In a number format."""
        return LayeredFacts(
            self.embedding.facts(bytes_per_element, form),
            tuple(layer.facts(bytes_per_element, form) for layer in self.layers),
            self.head.facts(bytes_per_element, form),
            self.tied.bytes_in(bytes_per_element),
        )

    def kv_cache(self, bytes_per_element: int, form: CacheForm = CacheForm.TRANSFORMERS) -> KvCacheLayout:
        """The cache of all layers; those that are alike are one group."""
        alike = Counter((layer.kept(form), layer.window_tokens, layer.kv_fixed_bytes) for layer in self.layers)
        return KvCacheLayout(
            tuple(
                KvCacheGroup(layers, width * bytes_per_element, window, fixed)
                for (width, window, fixed), layers in alike.items()
            )
        )

    def _sum(self, name: str) -> int:
        parts = (self.embedding, *self.layers, self.head)
        everything: int = sum(getattr(part.weights, name) for part in parts)
        return everything - int(getattr(self.tied, name))
