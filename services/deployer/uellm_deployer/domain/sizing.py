"""What a deployment takes: of each part of the model, and of every device that holds one. Sizes in bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from uellm.cost.kv_cache import KvCacheGroup, KvCacheLayout
from uellm.cost.memory import ELEMENT_BYTES, PeakMemory
from uellm.rpc.errors import FieldViolation, InvalidArgumentError
from uellm_deployer.domain.built import check_built
from uellm_deployer.domain.division import tensor_sizes
from uellm_deployer.domain.engines import ENGINES, Engine, EngineKind
from uellm_deployer.domain.facts import ModelFacts, ModelShape
from uellm_deployer.domain.layers import LayeredFacts, LayerFacts
from uellm_deployer.domain.plan import DeploymentSpec
from uellm_deployer.domain.topology import DeviceKind

DEFAULT_MAX_OUTPUT_TOKENS = 1024


@dataclass(frozen=True)
class Sizing:
    """A model on devices of one kind, with every wish filled in."""

    spec: DeploymentSpec
    shape: ModelShape
    kind: DeviceKind

    @classmethod
    def of(cls, spec: DeploymentSpec, shape: ModelShape, kind: DeviceKind) -> Sizing:
        """Fill in what the spec leaves open; InvalidArgumentError for what the model cannot do."""
        check_built(spec, shape)
        dtype = spec.dtype or (shape.built.dtype if shape.built else ENGINES[spec.backend].default_dtype[kind])
        return cls(_resolve(replace(spec, dtype=dtype), shape.context_limit_tokens), shape, kind)

    @property
    def engine(self) -> Engine:
        """The engine that is to serve it."""
        engine, built = ENGINES[self.spec.backend], self.shape.built
        if built is None:
            return engine
        return replace(engine, page_tokens=built.page_tokens, prompt_tokens_at_once=built.max_step_tokens)

    @property
    def element_bytes(self) -> int:
        """Of one number that is not quantised."""
        return ELEMENT_BYTES[self.spec.dtype]

    @cached_property
    def facts(self) -> ModelFacts:
        """Of the whole model."""
        return self.shape.facts(self.element_bytes, head_copies=self._head_copies, cache_form=self.engine.cache_form)

    @cached_property
    def parts(self) -> LayeredFacts:
        """Layer by layer, without the copies of the head."""
        return self.shape.layers.facts(self.element_bytes, self.engine.cache_form)

    @property
    def copied_head_bytes(self) -> int:
        """What the engine holds of the output head besides the checkpoint's, where the head is.

        One that is tied brings the embedding with it, and what that holds besides.
        """
        copies = self._head_copies if self.shape.tied_head else self._head_copies - self._embedding_copies
        return copies * self._head_matrix_bytes

    @property
    def copied_embedding_bytes(self) -> int:
        """The same where the embedding is."""
        return self._embedding_copies * self._head_matrix_bytes

    @property
    def tied_bytes(self) -> int:
        """Of what embedding and head take, what is there once where they meet."""
        return self.parts.tied_bytes + (self.copied_embedding_bytes if self.shape.tied_head else 0)

    @property
    def tensor_sizes(self) -> tuple[int, ...]:
        """Of the groups of devices that can share each layer."""
        return tensor_sizes(self.engine.tensor_sizes, self.shape.division, self.shape.quantisation)

    @property
    def max_stages(self) -> int | None:
        """Over which the layers can be spread; None: any number."""
        return 1 if self.shape.architecture in self.engine.without_stages else None

    @property
    def kv_heads(self) -> int:
        """In which a group can split the cache at most."""
        return self.shape.division.kv_heads if self.shape.division else max(1, self.facts.kv_heads)

    def kv_weight_bytes(self, layer: LayerFacts) -> int:
        """Of a layer's weights, what makes the keys and values that are kept: a group repeats it with them."""
        scheme = self.shape.quantisation
        if self.shape.division is None or self.shape.division.latent or self.shape.built:
            return 0
        numbers = self.shape.hidden_size * layer.kv_bytes_per_token // self.element_bytes
        whole = numbers * scheme.bits // 8 if scheme else numbers * self.element_bytes
        return min(whole, layer.weight_bytes - layer.whole_bytes)

    @property
    def kv_budget(self) -> int:
        """Of a full batch whose rows all take the whole context, in whole pages if the cache has them."""
        return self.facts.kv_cache.padded_bytes(self.spec.max_batch_rows, self._paged_context)

    def kv_bytes(self, layer: LayerFacts) -> int:
        """What the engine keeps for one layer's share of it."""
        cache = KvCacheLayout((KvCacheGroup(1, layer.kv_bytes_per_token, layer.window_tokens, layer.kv_fixed_bytes),))
        if self._continuous:  # takes its whole cache at the start, and a page that stays empty
            padded = cache.padded_bytes(self.spec.max_batch_rows, self._paged_context)
            return padded + self.engine.page_tokens * layer.kv_bytes_per_token
        return cache.held_bytes(self.spec.max_batch_rows, self.spec.context_tokens)

    @cached_property
    def copied_kv_bytes(self) -> int:
        """Of the cache, what every device needs besides for one layer at a time."""
        if self._continuous:
            return 0
        return self.facts.kv_cache.copied_bytes(self.spec.max_batch_rows, self.spec.context_tokens)

    @cached_property
    def activation_bytes(self) -> int:
        """Most that is alive at once on every device; prompts are computed in passes of a bounded size."""
        rows, context = self.spec.max_batch_rows, self.spec.context_tokens
        if self._continuous:  # computes prompts one by one
            pass_rows, new_tokens = 1, max(context, self.engine.prompt_tokens_at_once)
        else:
            pass_rows, new_tokens = rows, min(context, max(1, self.engine.prompt_tokens_at_once // rows))
        return self.shape.activations.bytes_of(pass_rows, new_tokens, context, self.element_bytes)

    @property
    def framework_bytes(self) -> int:
        """What the framework takes on every device."""
        return self.engine.reserve_bytes[self.kind]

    @property
    def on_one_device(self) -> PeakMemory:
        """All of it on one device."""
        layers: Sequence[LayerFacts] = self.parts.layers
        return PeakMemory(
            weights=self.facts.weight_bytes,
            kv_cache=sum(map(self.kv_bytes, layers)) + self.copied_kv_bytes,
            activations=self.activation_bytes,
            reserve=self.framework_bytes,
        )

    def read_bytes(self, layer: LayerFacts, rows: int) -> int:
        """Weights that a decode step of so many rows reads; rows choose their experts independently of each other."""
        if self.shape.experts is None:
            return layer.active_weight_bytes
        missed = (1 - self.shape.experts.chosen / self.shape.experts.count) ** (rows - 1)
        return round(layer.weight_bytes - (layer.weight_bytes - layer.active_weight_bytes) * missed)

    @property
    def _head_copies(self) -> int:
        return self.engine.head_copies_on_cpu[self.shape.tied_head] if self.kind is DeviceKind.CPU else 0

    @property
    def _embedding_copies(self) -> int:
        return min(self._head_copies, self.engine.embedding_copies_on_cpu)

    @property
    def _head_matrix_bytes(self) -> int:
        return self.shape.vocabulary_size * self.shape.hidden_size * self.element_bytes

    @property
    def _continuous(self) -> bool:
        return self.engine.kind is EngineKind.CONTINUOUS

    @property
    def _paged_context(self) -> int:
        page = self.engine.page_tokens
        return math.ceil(self.spec.context_tokens / page) * page if page else self.spec.context_tokens


def _resolve(spec: DeploymentSpec, limit: int) -> DeploymentSpec:
    context = spec.context_tokens or limit
    output = spec.max_output_tokens or min(DEFAULT_MAX_OUTPUT_TOKENS, context - 1)
    violations = []
    if context > limit:
        violations.append(FieldViolation("spec.context_tokens", f"must be at most the model's limit, {limit}"))
    if context < 2:
        violations.append(FieldViolation("spec.context_tokens", "must hold a prompt and an answer: at least 2"))
    elif not 1 <= output < context:
        violations.append(FieldViolation("spec.max_output_tokens", f"must leave room for a prompt: below {context}"))
    if violations:
        raise InvalidArgumentError(violations)
    return replace(spec, context_tokens=context, max_output_tokens=output)
