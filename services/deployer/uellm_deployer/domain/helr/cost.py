"""The cost model. Times are whole picoseconds: sums do not depend on their order, and ties are ties."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations, pairwise, product

import numpy as np
import numpy.typing as npt

from uellm_deployer.domain.helr.problem import Link, Part, Problem

Array = npt.NDArray[np.int64]
INFINITE = 1 << 61
LONGEST = 1 << 58
"""No real time is longer (80 hours): two sums with an infinite part still fit 64 bits."""
PER_SECOND = 10**12


def picoseconds(seconds: float) -> int:
    """Rounded once, here: after this all sums are exact."""
    return round(seconds * PER_SECOND)


def all_reduce_seconds(size: int, data_bytes: float, bandwidth: float, latency: float) -> float:
    """Of a group whose members all reach each other: everyone reads everything, or scatter and gather, the quicker."""
    at_once = latency + (size - 1) * data_bytes / bandwidth
    in_two = 2 * latency + 2 * (size - 1) / size * data_bytes / bandwidth
    return min(at_once, in_two)


@dataclass(frozen=True, slots=True)
class Span:
    """A stage: layers `[first, last)` on one device, or on a group that shares each of them."""

    devices: tuple[int, ...]
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Curves:
    """Sums up to each layer boundary, shape (layers + 1,): the embedding lies before 1, the head before the last."""

    decode: Array
    prefill: Array
    size: Array
    """Bytes on each device of the group."""
    shared: int
    """Bytes saved on each where one stage holds all layers."""
    capacity: int
    """Bytes for weights and cache on the smallest member."""

    def bytes_of(self, first: int, last: int) -> int:
        """On each device that holds the layers `[first, last)`."""
        whole = first == 0 and last == len(self.size) - 1
        return int(self.size[last] - self.size[first]) - (self.shared if whole else 0)


@dataclass(frozen=True, slots=True)
class CopyPrice:
    """Picoseconds of one copy of the model, and of each of its stages and hops."""

    stages: tuple[int, ...]
    hops: tuple[int, ...]
    prefill: int
    micro_batches: int

    @property
    def latency(self) -> int:
        """LR: one decode step through all stages and hops."""
        return sum(self.stages) + sum(self.hops)

    @property
    def bottleneck(self) -> int:
        """The slowest stage or hop."""
        return max(*self.stages, *self.hops, 0)

    @property
    def interval(self) -> int:
        """Between two steps that leave the copy, `micro_batches` in flight."""
        return max(self.bottleneck, -(-self.latency // self.micro_batches))

    @property
    def output_token(self) -> int:
        """Between two tokens of one row."""
        return max(self.latency, self.micro_batches * self.bottleneck)


class Pricing:
    """Prices of a problem's groups, hops and copies; devices by their index."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        index = {device.id: position for position, device in enumerate(problem.devices)}
        self._links: dict[tuple[int, int], Link] = {}
        for link in problem.links:
            a, b = index[link.device_a], index[link.device_b]
            self._links[a, b] = self._links[b, a] = link
        self._curves = cache(self._make_curves)
        model = problem.model
        self._parts = (*model.layers, model.embedding, model.head)

    def link(self, a: int, b: int) -> Link | None:
        """The link between two devices."""
        return self._links.get((a, b))

    def can_group(self, devices: Iterable[int]) -> bool:
        """Whether they can share layers: every two of them."""
        links = [self.link(a, b) for a, b in combinations(devices, 2)]
        return all(link is not None and link.groups for link in links)

    def hop(self, source: Iterable[int], target: Iterable[int]) -> tuple[int, int]:
        """Decode and prefill time between two stages: over the slowest link of a member of one to one of the other.

        Which member talks to which is the engine's choice, so the slowest counts.
        """
        load = self.problem.workload
        links = [self.link(a, b) for a, b in product(source, target)]
        if any(link is None for link in links):
            return INFINITE, INFINITE

        def slowest(size: int) -> int:
            return max(picoseconds(link.latency_seconds + size / link.bandwidth) for link in links if link is not None)

        return slowest(load.decode_hop_bytes), slowest(load.prefill_hop_bytes)

    def curves(self, devices: Sequence[int]) -> Curves:
        """Of a group: it is as fast as its slowest member and link, and as large as its smallest."""
        members = [self.problem.devices[position] for position in devices]
        load = self.problem.workload
        links = [link for a, b in combinations(devices, 2) if (link := self.link(a, b)) is not None]

        def reduce(size: int) -> float:
            return max(
                (all_reduce_seconds(len(members), size, link.bandwidth, link.latency_seconds) for link in links),
                default=0.0,
            )

        return self._curves(
            len(members),
            min(member.speed[0] for member in members),
            min(member.speed[1] for member in members),
            min(member.room_bytes for member in members) - self.problem.model.activation_bytes,
            reduce(load.decode_hop_bytes),
            reduce(load.prefill_hop_bytes),
        )

    def _make_curves(
        self, size: int, bandwidth: float, flops: float, capacity: int, decode_reduce: float, prefill_reduce: float
    ) -> Curves:
        model, load = self.problem.model, self.problem.workload
        split = min(size, model.kv_heads)

        def read_weights(part: Part) -> float:
            repeated = (size - 1) * part.whole_bytes + (size / split - 1) * part.kv_weight_bytes
            return (part.read_bytes + min(repeated, (size - 1) * part.read_bytes)) / size

        def roofline(read: float, operations: float) -> float:
            return max(read / bandwidth, operations / size / flops)

        def decode(part: Part) -> int:
            read = read_weights(part) + part.kv_read_bytes / split
            computing = roofline(read, load.rows * part.flops_per_token)
            return picoseconds(part.start_seconds + computing + part.all_reduces * decode_reduce)

        def prefill(part: Part) -> int:
            tokens, reduce = (1, decode_reduce) if part.last_token_only else (load.prompt_tokens, prefill_reduce)
            computing = roofline(read_weights(part), tokens * part.flops_per_token)
            return picoseconds(part.start_seconds + computing + part.all_reduces * reduce)

        def held(part: Part) -> int:
            return part.weights_on(size, split) - (-part.kv_bytes // split)

        return Curves(self._sums(decode), self._sums(prefill), self._sums(held), model.shared_bytes // size, capacity)

    def _sums(self, value: Callable[[Part], int]) -> Array:
        known = cache(value)
        *values, embedding, head = (known(part) for part in self._parts)
        values[0] += embedding
        values[-1] += head
        if sum(values) >= LONGEST:
            raise ValueError("a rate is so low, or a size so large, that the times cannot be counted in 64 bits")
        return np.concatenate(([0], np.cumsum(values, dtype=np.int64)))

    def price(self, copy: Sequence[Span]) -> CopyPrice:
        """Times of a copy; whether it fits is another question."""
        curves = [self.curves(span.devices) for span in copy]
        hops = [self.hop(a.devices, b.devices) for a, b in pairwise(copy)]
        return CopyPrice(
            stages=tuple(int(c.decode[span.last] - c.decode[span.first]) for c, span in zip(curves, copy, strict=True)),
            hops=tuple(decode for decode, _ in hops),
            prefill=sum(int(c.prefill[span.last] - c.prefill[span.first]) for c, span in zip(curves, copy, strict=True))
            + sum(prefill for _, prefill in hops),
            micro_batches=self.problem.workload.micro_batches,
        )

    def missing_bytes(self, copy: Sequence[Span]) -> int:
        """By which the fullest device is too small; 0: it fits."""
        curves = [self.curves(span.devices) for span in copy]
        short = [c.bytes_of(span.first, span.last) - c.capacity for c, span in zip(curves, copy, strict=True)]
        return max(0, *short)
