"""Bytes of a quantised linear layer: its packed numbers, scales and zero points.

As written by the checkpoints' own tools (GPTQModel, AutoAWQ's GEMM layout, bitsandbytes, transformers' fine-grained
FP8, compressed-tensors). Engines repack them in the same size.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import lcm
from typing import Protocol

HALF, SINGLE, WORD = 2, 4, 4
"""Bytes of a number, and of a word of packed ones."""


@dataclass(frozen=True, slots=True)
class Linear:
    """Linear layers that are alike; sizes in numbers."""

    name: str
    """As checkpoints call it inside its layer."""
    inputs: int
    outputs: int
    bias: bool = False
    copies: int = 1
    """Experts."""
    chosen: int = 1
    """Of them, those that one token passes through."""
    router: bool = False
    """Chooses experts, and is never quantised."""

    @property
    def numbers(self) -> int:
        """Of one matrix."""
        return self.inputs * self.outputs

    def groups(self, size: int) -> int:
        """Groups of so many inputs that share a scale; 0: all share it."""
        return -(-self.inputs // size) if size else 1

    def blocks(self, rows: int, columns: int) -> int:
        """Blocks of so many outputs and inputs."""
        return -(-self.outputs // rows) * -(-self.inputs // columns)


class Storage(Protocol):
    """How a matrix is stored."""

    def matrix_bytes(self, linear: Linear) -> int:
        """Of one copy, without its bias."""

    @property
    def grain(self) -> tuple[int, int]:
        """Outputs and inputs that must stay together: those of a scale, of a block, of a word."""


@dataclass(frozen=True, slots=True)
class Gptq:
    """Words of packed numbers; for each group packed zero points and half-precision scales; the inputs' order."""

    bits: int
    group: int

    @property
    def grain(self) -> tuple[int, int]:
        """As `Storage`."""
        return 32 // self.bits, lcm(self.group or 1, 32 // self.bits)

    def matrix_bytes(self, linear: Linear) -> int:
        """As `Storage`."""
        scales = linear.groups(self.group) * linear.outputs
        return linear.numbers * self.bits // 8 + scales * self.bits // 8 + scales * HALF + linear.inputs * WORD


@dataclass(frozen=True, slots=True)
class Awq:
    """The same without an order."""

    bits: int
    group: int

    @property
    def grain(self) -> tuple[int, int]:
        """As `Storage`."""
        return 32 // self.bits, lcm(self.group or 1, 32 // self.bits)

    def matrix_bytes(self, linear: Linear) -> int:
        """As `Storage`."""
        scales = linear.groups(self.group) * linear.outputs
        return linear.numbers * self.bits // 8 + scales * self.bits // 8 + scales * HALF


@dataclass(frozen=True, slots=True)
class FourBit:
    """bitsandbytes: blocks of 64 numbers with a scale, which may itself be quantised in blocks of 256."""

    nested: bool

    @property
    def grain(self) -> tuple[int, int]:
        """As `Storage`."""
        return 1, 64

    def matrix_bytes(self, linear: Linear) -> int:
        """As `Storage`; with the tables of the values that the codes stand for."""
        blocks, table = -(-linear.numbers // 64), 16 * SINGLE
        scales = blocks + -(-blocks // 256) * SINGLE + 256 * SINGLE if self.nested else blocks * SINGLE
        return -(-linear.numbers // 2) + scales + table


@dataclass(frozen=True, slots=True)
class EightBit:
    """bitsandbytes: a scale for each output."""

    @property
    def grain(self) -> tuple[int, int]:
        """As `Storage`."""
        return 1, 1

    def matrix_bytes(self, linear: Linear) -> int:
        """As `Storage`."""
        return linear.numbers + linear.outputs * SINGLE


@dataclass(frozen=True, slots=True)
class Float8:
    """A scale for each block, for each output, or for all; one for activations if it was fixed beforehand."""

    block: tuple[int, int] | None
    each_output: bool
    fixed_input_scale: bool

    @property
    def grain(self) -> tuple[int, int]:
        """As `Storage`."""
        return self.block or (1, 1)

    def matrix_bytes(self, linear: Linear) -> int:
        """As `Storage`."""
        scales = linear.blocks(*self.block) if self.block else linear.outputs if self.each_output else 1
        return linear.numbers + (scales + self.fixed_input_scale) * SINGLE


@dataclass(frozen=True, slots=True)
class Compressed:
    """compressed-tensors, with half-precision scales."""

    bits: int
    strategy: str
    """What shares a scale: `tensor`, `channel` (an output), `group`, `tensor_group` (NVFP4) or `block`."""
    group: int
    block: tuple[int, int]
    symmetric: bool
    packed: bool
    """Whether numbers lie in words; then the true shape is stored too, in two integers of 64 bits."""
    scaled_inputs: bool
    fixed_input_scale: bool

    @property
    def grain(self) -> tuple[int, int]:
        """As `Storage`."""
        (outputs, inputs), word = self.block, 32 // self.bits if self.packed else 1
        return lcm(outputs, word), lcm(inputs, self.group or 1, word)

    def matrix_bytes(self, linear: Linear) -> int:
        """As `Storage`."""
        stored, scales = linear.numbers * self.bits // 8, self._scales(linear)
        if self.strategy == "tensor_group":  # scales of 8 bits, and one each for the whole matrix and for activations
            return stored + scales + (1 + self.scaled_inputs) * SINGLE
        zeros = 0 if self.symmetric else scales * (self.bits if self.packed else 8) // 8
        return stored + scales * HALF + zeros + self.packed * 16 + self.fixed_input_scale * HALF

    def _scales(self, linear: Linear) -> int:
        if self.strategy == "tensor":
            return 1
        if self.strategy == "block":
            return linear.blocks(*self.block)
        return linear.outputs * linear.groups(self.group)
