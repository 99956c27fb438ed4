"""What a model of GPU can do, by its name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from uellm.rpc.errors import FieldViolation, InvalidArgumentError
from uellm_deployer.domain.interconnect import UNKNOWN_ATTACHMENT, Attachment, pcie_bandwidth
from uellm_deployer.domain.topology import Device, DeviceKind

_SUGGESTIONS = 5
# Words of a product name that tell no two products apart.
_IDLE_WORDS = frozenset({"nvidia", "tesla", "geforce", "generation", "graphics", "gpu"})
# One form factor under several names.
_FORMS = {"sxm2": "sxm", "sxm4": "sxm", "sxm5": "sxm", "sxm6": "sxm"}


@dataclass(frozen=True, slots=True)
class GpuModel:
    """A product. Rates are peaks, bytes and operations a second."""

    name: str
    """As NVML and nvidia-smi print it."""
    memory_bytes: int
    memory_bandwidth: float
    flops: float
    """Dense half precision with single-precision sums; single precision where half is no faster."""
    nvlinks: int
    nvlink_bandwidth: float
    """Of one NVLink in one direction; 0: it has none."""
    pcie_generation: int
    pcie_lanes: int
    source: str

    @property
    def attachment(self) -> Attachment:
        """How it is attached where nothing slows it down."""
        nvlink = self.nvlink_bandwidth or UNKNOWN_ATTACHMENT.nvlink_bandwidth
        return Attachment(nvlink, pcie_bandwidth(self.pcie_generation, self.pcie_lanes))

    def device(self, device_id: str, numa_node: int = -1, cpu_affinity: str = "") -> Device:
        """One of them with all its memory free."""
        return Device(
            id=device_id,
            kind=DeviceKind.GPU,
            model=self.name,
            memory_bytes=self.memory_bytes,
            free_memory_bytes=self.memory_bytes,
            memory_bandwidth=self.memory_bandwidth,
            flops=self.flops,
            numa_node=numa_node,
            cpu_affinity=cpu_affinity,
        )


class Catalogue:
    """GPU models by name. Names match whatever their case, punctuation, order of words and marketing words."""

    def __init__(self, entries: Iterable[tuple[GpuModel, Iterable[str]]]) -> None:
        """Models with the other names that each goes by; ValueError if two share one."""
        self._models: dict[frozenset[str], GpuModel] = {}
        for model, aliases in entries:
            for name in (model.name, *aliases):
                if self._models.setdefault(frozenset(_words(name)), model) is not model:
                    raise ValueError(f"{name} names {model.name} and another GPU")
        self._joined = {"".join(_words(model.name)): model for model in self.models}

    @property
    def models(self) -> tuple[GpuModel, ...]:
        """All, each once."""
        return tuple(dict.fromkeys(self._models.values()))

    def find(self, name: str) -> GpuModel | None:
        """The model of that name, if it is known."""
        words = _words(name)
        return self._models.get(frozenset(words)) or self._joined.get("".join(words))

    def get(self, name: str, field: str) -> GpuModel:
        """The model of that name; `field` is where the name was given.

        Raises:
            InvalidArgumentError: it is unknown; the message names the nearest.
        """
        if model := self.find(name):
            return model
        nearest = self._nearest(name)
        hint = f"did you mean {', '.join(nearest)}?" if nearest else "there is none like it."
        raise InvalidArgumentError(
            [
                FieldViolation(
                    field,
                    f"no GPU {name!r} in the catalogue; {hint} Otherwise describe it in a YAML topology: memory, "
                    "memory_bandwidth and flops.",
                )
            ]
        )

    def _nearest(self, name: str) -> list[str]:
        """Models whose names have all the words first, then those that are spelt alike."""
        words = frozenset(_words(name))
        within = [model.name for known, model in self._models.items() if words and words <= known]
        spelt: Mapping[str, str] = {_spelling(known): model.name for known, model in self._models.items()}
        alike = difflib.get_close_matches(_spelling(words), spelt, _SUGGESTIONS, cutoff=0.5)
        return list(dict.fromkeys([*within, *(spelt[one] for one in alike)]))[:_SUGGESTIONS]


def _words(name: str) -> list[str]:
    found = re.findall(r"[a-z0-9]+", name.lower())
    return [_FORMS.get(word, word) for word in found if word not in _IDLE_WORDS]


def _spelling(words: frozenset[str]) -> str:
    return " ".join(sorted(words))
