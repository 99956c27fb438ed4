"""Quantised weights, as `quantization_config` describes them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from uellm.cost.kv_config import UnknownCacheError, optional
from uellm_deployer.domain.storage import Awq, Compressed, EightBit, Float8, FourBit, Gptq, Linear, Storage

Config = Mapping[str, Any]

_HEAD = "lm_head"
"""Which most methods leave alone without saying so."""

_COMPRESSED_NUMBERS = {("int", 4), ("int", 8), ("float", 8), ("float", 4)}
_STRATEGIES = {"tensor", "channel", "group", "tensor_group", "block"}


class UnknownQuantisationError(ValueError):
    """A quantisation that is not understood; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Quantisation:
    """How a checkpoint's linear layers are stored."""

    method: str
    """As `quant_method` has it."""
    number: str
    """Of a weight: `int4`, `int8`, `float8`, ..."""
    bits: int
    storage: Storage | None
    """None: sizes follow from the headers of the weights only."""
    skipped: tuple[str, ...] = ()
    """Modules that are left alone, as the config names them."""

    @property
    def label(self) -> str:
        """Method and number format, as in `gptq int4`."""
        return f"{self.method} {self.number}"

    @property
    def grain(self) -> tuple[int, int] | None:
        """Outputs and inputs of a matrix that must stay together; None: that is not known."""
        return None if self.storage is None else self.storage.grain

    def skips(self, name: str) -> bool:
        """Whether the module of this full name is left alone."""
        return any(self._names(pattern, name) for pattern in self.skipped)

    def matrix_bytes(self, linear: Linear) -> int:
        """Memory of one matrix, its scales and zero points; raises UnknownQuantisationError."""
        if self.storage is None:
            raise UnknownQuantisationError(
                f"quantization_config: this variant of {self.method} has sizes that do not follow from config.json "
                "alone: put the weights beside it"
            )
        return self.storage.matrix_bytes(linear)

    def _names(self, pattern: str, name: str) -> bool:
        """compressed-tensors names modules in full or by an expression; the others by any part of the name."""
        if pattern.startswith("re:"):
            return re.match(pattern.removeprefix("re:"), name) is not None
        return pattern == name if self.method == "compressed-tensors" else f".{pattern.strip('.')}." in f".{name}."


def quantisation(config: Config) -> Quantisation | None:
    """Read it from a `config.json`; None if there is none.

    Raises:
        UnknownQuantisationError: it is incomplete, or of a method that is not understood here.
    """
    section = config.get("quantization_config") or config.get("compression_config")
    if not section:
        return None
    method = section.get("quant_method") if isinstance(section, Mapping) else None
    if not isinstance(method, str) or method not in _READERS:
        raise UnknownQuantisationError(
            f"`quantization_config.quant_method` {method!r:.40} is not supported: deploy the model unquantised, or "
            f"quantised by one of {', '.join(sorted(_READERS))}"
        )
    try:
        return _READERS[method](section)
    except (UnknownCacheError, re.error) as error:
        raise UnknownQuantisationError(f"quantization_config: {error}") from None


def _gptq(section: Config) -> Quantisation:
    bits, group = _bits(section, "bits", (2, 3, 4, 8)), _group(section, "group_size")
    varied = any(section.get(key) for key in ("dynamic", "modules_in_block_to_quantize", "lm_head"))
    skipped = (*_modules(section, "modules_to_not_convert"), _HEAD)
    return Quantisation("gptq", f"int{bits}", bits, None if varied else Gptq(bits, group), skipped)


def _awq(section: Config) -> Quantisation:
    bits = _bits(section, "w_bit" if "w_bit" in section else "bits", (4,))
    group = _group(section, "q_group_size" if "q_group_size" in section else "group_size")
    storage = Awq(bits, group) if str(section.get("version", "gemm")).lower() == "gemm" else None
    return Quantisation("awq", f"int{bits}", bits, storage, (*_modules(section, "modules_to_not_convert"), _HEAD))


def _bitsandbytes(section: Config) -> Quantisation:
    skipped = (*_modules(section, "llm_int8_skip_modules"), _HEAD)
    if section.get("load_in_4bit"):
        nested = bool(section.get("bnb_4bit_use_double_quant"))
        return Quantisation("bitsandbytes", "int4", 4, FourBit(nested), skipped)
    if section.get("load_in_8bit"):
        return Quantisation("bitsandbytes", "int8", 8, EightBit(), skipped)
    raise UnknownQuantisationError("bitsandbytes with neither `load_in_4bit` nor `load_in_8bit` is not understood")


def _fp8(section: Config) -> Quantisation:
    block = _pair(section, "weight_block_size")
    each_output = section.get("quant_method") == "fbgemm_fp8"
    storage = Float8(block, each_output, section.get("activation_scheme") == "static")
    skipped = (*_modules(section, "modules_to_not_convert", "ignored_layers"), _HEAD)
    return Quantisation("fp8", "float8", 8, storage, skipped)


def _compressed(section: Config) -> Quantisation:
    groups = section.get("config_groups")
    groups = list(groups.values()) if isinstance(groups, Mapping) else []
    if not groups or not all(
        isinstance(group, Mapping) and isinstance(group.get("weights"), Mapping) for group in groups
    ):
        raise UnknownQuantisationError("compressed-tensors is understood with `config_groups` that have `weights`")
    numbers = {(str(group["weights"].get("type", "int")), _bits(group["weights"], "num_bits")) for group in groups}
    kind, bits = numbers.pop()
    if numbers or (kind, bits) not in _COMPRESSED_NUMBERS:
        raise UnknownQuantisationError("compressed-tensors is understood with one format: int or float, 4 or 8 bits")
    sized = len(groups) == 1 and groups[0].get("targets") == ["Linear"]
    storage = _compressed_storage(groups[0], bits, str(section.get("format"))) if sized else None
    return Quantisation("compressed-tensors", f"{kind}{bits}", bits, storage, _modules(section, "ignore"))


def _compressed_storage(group: Config, bits: int, default_format: str) -> Compressed | None:
    weights, inputs = group["weights"], group.get("input_activations")
    strategy, block = str(weights.get("strategy")), _pair(weights, "block_structure")
    if strategy not in _STRATEGIES or (strategy == "block") != (block is not None):
        return None
    return Compressed(
        bits=bits,
        strategy=strategy,
        group=_group(weights, "group_size") if "group" in strategy else 0,
        block=block or (1, 1),
        symmetric=weights.get("symmetric", True) is not False,
        packed=str(group.get("format") or default_format) == "pack-quantized",
        scaled_inputs=isinstance(inputs, Mapping),
        fixed_input_scale=isinstance(inputs, Mapping) and inputs.get("dynamic") is False,
    )


_READERS: dict[str, Callable[[Config], Quantisation]] = {
    "gptq": _gptq,
    "awq": _awq,
    "bitsandbytes": _bitsandbytes,
    "fp8": _fp8,
    "fbgemm_fp8": _fp8,
    "compressed-tensors": _compressed,
}


def _bits(section: Config, key: str, allowed: tuple[int, ...] = (4, 8)) -> int:
    bits = optional(section, key, 0)
    if bits not in allowed:
        raise UnknownQuantisationError(f"`{key}` must be one of {allowed}, not {section.get(key)!r:.20}")
    return bits


def _group(section: Config, key: str) -> int:
    """Inputs that share a scale; 0: all of them."""
    return 0 if section.get(key) == -1 else optional(section, key, 0)


def _pair(section: Config, key: str) -> tuple[int, int] | None:
    value = section.get(key)
    if value is None:
        return None
    if not isinstance(value, list | tuple) or len(value) != 2 or not all(isinstance(x, int) and x > 0 for x in value):
        raise UnknownQuantisationError(f"`{key}` must be two positive integers, not {value!r:.40}")
    return value[0], value[1]


def _modules(section: Config, *keys: str) -> tuple[str, ...]:
    found = next((section[key] for key in keys if section.get(key)), ())
    if not isinstance(found, list | tuple) or not all(isinstance(name, str) for name in found):
        raise UnknownQuantisationError(f"`{keys[0]}` must be a list of names of modules")
    for name in found:
        re.compile(name.removeprefix("re:") if name.startswith("re:") else "")
    return tuple(found)
