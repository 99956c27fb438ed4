"""What is to be placed and where, as plain figures: independent of how they were read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum


class Goal(StrEnum):
    """What is best; definitions in docs/placement.md."""

    LR = "LR"
    HE = "HE"
    HELR = "HELR"


@dataclass(frozen=True, slots=True)
class Part:
    """A layer, the embedding or the head, whole: before a group shares it."""

    weight_bytes: int
    kv_bytes: int = 0
    """Reserved for the asked concurrency and context."""
    read_bytes: int = 0
    """Of the weights, in one decode step: a mixture of experts reads fewer than it holds."""
    kv_read_bytes: int = 0
    """Of the cache, in one decode step."""
    flops_per_token: float = 0.0
    all_reduces: int = 0
    """Of a token's activations, when a group shares the part."""
    start_seconds: float = 0.0
    """Of a pass, whatever it computes, and however many share the part: kernels that wait for each other."""
    last_token_only: bool = False
    """Whether a prompt passes through it with its last token only: an output head."""
    whole_bytes: int = 0
    """Of the weights, what each member of a group holds all of: norms, routers."""
    kv_weight_bytes: int = 0
    """Of the weights, what makes keys and values: a group repeats it with the cache."""

    def weights_on(self, size: int, split: int) -> int:
        """Bytes of the weights on each member of a group of so many, which splits keys and values in `split`."""
        shared = self.weight_bytes - self.whole_bytes - self.kv_weight_bytes
        return self.whole_bytes + -(-shared // size) + -(-self.kv_weight_bytes // split)


@dataclass(frozen=True, slots=True)
class Model:
    """A chain of layers. The embedding sits with the first, the head with the last."""

    layers: tuple[Part, ...]
    embedding: Part = Part(0)
    head: Part = Part(0)
    shared_bytes: int = 0
    """Weights that embedding and head share where one stage holds both: a tied head."""
    activation_bytes: int = 0
    """Peak on every device that holds a part, in a group too."""
    kv_heads: int = 1
    """A group splits the cache among so many devices at most, and repeats it beyond."""


@dataclass(frozen=True, slots=True)
class Workload:
    """What is asked of each copy of the model."""

    rows: int = 1
    """Rows of one decode step (of one micro-batch)."""
    prompt_tokens: int = 128
    """Tokens of the prompt of which the first-token time is told."""
    micro_batches: int = 1
    """In flight at once in a pipeline; the cache of all of them is in `Part.kv_bytes`."""
    decode_hop_bytes: int = 0
    """Activations of a decode step between two layers."""
    prefill_hop_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Device:
    """A device. Rates are peaks per second."""

    id: str
    free_bytes: int
    bandwidth: float
    flops: float
    reserve_bytes: int = 0
    """What the framework takes besides tensors."""
    bandwidth_efficiency: float = 1.0
    flops_efficiency: float = 1.0
    node: int = 0
    """Of the machine, or the group of a switch, that it is in."""

    @property
    def speed(self) -> tuple[float, float]:
        """Bytes and operations a second that kernels reach."""
        return self.bandwidth * self.bandwidth_efficiency, self.flops * self.flops_efficiency

    @property
    def room_bytes(self) -> int:
        """Free for tensors."""
        return self.free_bytes - self.reserve_bytes


@dataclass(frozen=True, slots=True)
class Link:
    """A link, the same in both directions. Devices without one exchange nothing."""

    device_a: str
    device_b: str
    bandwidth: float
    """Bytes a second in one direction."""
    latency_seconds: float
    groups: bool = False
    """Whether a tensor-parallel group may span it: NVLink, or below one PCIe switch."""


@dataclass(frozen=True, slots=True)
class Constraints:
    """What the target engine and its host can realise. Layer ranges are contiguous in any case."""

    tensor_sizes: tuple[int, ...] = (1,)
    """Of tensor-parallel groups: those that the engine and the model's heads allow."""
    uniform_tensor_size: bool = True
    """Within one copy."""
    order_is_free: bool = True
    """Else the stages take devices in ascending order."""
    min_layers: int = 1
    """Of each stage."""
    max_layers: int | None = None
    """Of each stage."""
    max_stages: int | None = None
    max_copies: int | None = None
    device_ids: frozenset[str] | None = None
    """Allowed devices; None: all."""


@dataclass(frozen=True, slots=True)
class Slo:
    """Most seconds that a plan may take; None: whatever it takes."""

    first_token_seconds: float | None = None
    output_token_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Problem:
    """A model, its load, and the machine. Devices in PCI order: ties go to the lower."""

    model: Model
    workload: Workload
    devices: tuple[Device, ...]
    links: tuple[Link, ...] = ()
    constraints: Constraints = field(default_factory=Constraints)

    def __post_init__(self) -> None:
        for wrong, text in self._checks():
            if wrong:
                raise ValueError(text)

    def _checks(self) -> Iterable[tuple[bool, str]]:
        model, load, rules = self.model, self.workload, self.constraints
        ids = [device.id for device in self.devices]
        ends = {end for link in self.links for end in (link.device_a, link.device_b)}
        pairs = [frozenset((link.device_a, link.device_b)) for link in self.links]
        yield not model.layers, "a model has at least one layer"
        yield len(ids) != len(set(ids)), "device ids must differ"
        yield not ends <= set(ids), f"links name devices that are not there: {sorted(ends - set(ids))}"
        yield any(len(pair) < 2 for pair in pairs) or len(pairs) != len(set(pairs)), "one link for each two devices"
        yield any(min(device.speed) <= 0 for device in self.devices), "rates of devices must be above 0"
        yield any(link.bandwidth <= 0 or link.latency_seconds < 0 for link in self.links), "rates of links"
        yield min(load.rows, load.prompt_tokens, load.micro_batches, model.kv_heads) < 1, "counts start at 1"
        yield not rules.tensor_sizes or min(rules.tensor_sizes) < 1 or rules.min_layers < 1, "sizes start at 1"
        yield (
            any(limit is not None and limit < 1 for limit in (rules.max_layers, rules.max_stages, rules.max_copies)),
            "limits start at 1",
        )
        least = min(model.embedding.weight_bytes, model.head.weight_bytes)
        yield not 0 <= model.shared_bytes <= least, "embedding and head share at most what each holds"
        parts = (*model.layers, model.embedding, model.head)
        yield (
            any(p.weight_bytes < p.whole_bytes + p.kv_weight_bytes for p in parts),
            "what a group repeats of a part's weights is at most all of them",
        )
