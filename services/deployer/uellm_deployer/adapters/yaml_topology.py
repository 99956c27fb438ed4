"""Machines that somebody describes in YAML, to plan for what is not there."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from uellm.links import PCIE_CLASSES, known_class
from uellm.rpc.errors import FieldViolation, InvalidArgumentError
from uellm.rpc.violations import Violations
from uellm_deployer.adapters.smi_matrix import MatrixError
from uellm_deployer.adapters.smi_topology import parse_topology
from uellm_deployer.domain.gpus import Catalogue, GpuModel
from uellm_deployer.domain.interconnect import NVLINK_CLASS, Attachment, LinkRates
from uellm_deployer.domain.topology import Device, DeviceKind, Link, Topology

MAX_DEVICES = 1024
MAX_QUANTITY = 1e18
MAX_NUMA_NODE = 1023

_QUANTITY = re.compile(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)\s*([kKMGTP]?)(i?)\s*(B|B/s|FLOPS|FLOP/s|s)?", re.ASCII)
_SMALL = re.compile(r"(\d+(?:\.\d+)?)\s*(us|ms)", re.ASCII)
_POWERS = {"": 0, "k": 1, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5}


def _quantity(value: object) -> object:
    """A number, or a text such as `80GiB`, `25 GB/s`, `312 TFLOPS`, `10us`."""
    if not isinstance(value, str):
        return value
    if match := _SMALL.fullmatch(value.strip()):
        return float(match[1]) * {"us": 1e-6, "ms": 1e-3}[match[2]]
    match = _QUANTITY.fullmatch(value.strip())
    if match is None:
        raise ValueError("must be a number, with a unit if wanted: 80GiB, 25 GB/s, 312 TFLOPS, 10us")
    return float(match[1]) * (1024 if match[3] else 1000) ** _POWERS[match[2]]


def _link_class(value: object) -> object:
    if not isinstance(value, str) or not known_class(value):
        raise ValueError(f"must be NV and the number of NVLinks, such as NV12, or one of {', '.join(PCIE_CLASSES)}")
    return value


Quantity = Annotated[float, BeforeValidator(_quantity), Field(gt=0, le=MAX_QUANTITY, strict=True)]
LinkClass = Annotated[str, BeforeValidator(_link_class)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Device(_Strict):
    id: str = Field(min_length=1)
    count: int | None = Field(default=None, ge=1, le=MAX_DEVICES, strict=True)
    kind: DeviceKind = DeviceKind.GPU
    model: str = ""
    memory: Quantity | None = None
    free_memory: Annotated[float, BeforeValidator(_quantity), Field(ge=0, le=MAX_QUANTITY, strict=True)] | None = None
    memory_bandwidth: Quantity | None = None
    flops: Quantity | None = None
    numa_node: int | None = Field(default=None, ge=0, le=MAX_NUMA_NODE, strict=True)
    pci_bus_id: str = ""

    @property
    def ids(self) -> list[str]:
        """`gpu0`, `gpu1`, ... of `gpu` with a count."""
        return [self.id] if self.count is None else [f"{self.id}{number}" for number in range(self.count)]


class _Link(_Strict):
    devices: tuple[str, ...] = Field(min_length=2)
    link_class: LinkClass | None = Field(default=None, alias="class")
    bandwidth: Quantity | None = None
    latency: Quantity | None = None
    peer_access: bool | None = Field(default=None, strict=True)


class _File(_Strict):
    gpu_model: str = ""
    matrix: str = ""
    peer_access: str = ""
    devices: tuple[_Device, ...] = ()
    links: tuple[_Link, ...] = ()
    default_class: LinkClass | None = None
    bandwidths: Mapping[str, Quantity] = Field(default_factory=dict)


def parse_yaml_topology(text: str, catalogue: Catalogue, gpu_model: str = "") -> Topology:
    """The machine that a YAML text describes; `gpu_model` is what its GPUs are unless it says so itself.

    Raises:
        InvalidArgumentError: with every violation and its path, such as `devices[2].memory`.
    """
    return _Builder(_validated(text), catalogue, gpu_model).build()


def _validated(text: str) -> _File:
    try:
        content = yaml.load(text, _Loader)  # noqa: S506 - a safe loader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "text"
        raise InvalidArgumentError([FieldViolation(place, getattr(error, "problem", None) or "is no YAML")]) from error
    if not isinstance(content, dict):
        raise InvalidArgumentError([FieldViolation("text", f"must have keys: {', '.join(_File.model_fields)}")])
    try:
        return _File.model_validate(content)
    except ValidationError as error:
        found = [FieldViolation(_path(one["loc"]), _message(one["type"], one["msg"])) for one in error.errors()]
        raise InvalidArgumentError(found) from error


def _message(kind: str, message: str) -> str:
    return (
        "is no key here: see docs/topology.md" if kind == "extra_forbidden" else message.removeprefix("Value error, ")
    )


def _path(location: tuple[str | int, ...]) -> str:
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return path.removeprefix(".")


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice, of which YAML would drop the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in keys:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} stands twice", key.start_mark)
            keys.add(str(key.value))
        return super().construct_mapping(node, deep)


class _Builder:
    """Puts devices and links together: those of the matrix, then those of the lists, which add to them."""

    def __init__(self, file: _File, catalogue: Catalogue, gpu_model: str) -> None:
        self._file = file
        self._catalogue = catalogue
        self._violations = Violations()
        self._rates = LinkRates(file.bandwidths)
        self._default = self._model(file.gpu_model or gpu_model, "gpu_model")
        self._devices: dict[str, Device] = {}
        self._attachments: dict[str, Attachment] = {}
        self._matrix: dict[frozenset[str], Link] = {}
        self._links: dict[frozenset[str], Link] = {}
        self._warnings: tuple[str, ...] = ()

    def build(self) -> Topology:
        """Check it all; the devices first, for links are between them."""
        self._check_bandwidths()
        self._read_matrix()
        for number, device in enumerate(self._file.devices):
            self._add_devices(device, f"devices[{number}]")
        if not 1 <= len(self._devices) <= MAX_DEVICES:
            self._violations.add("devices", f"must be 1 to {MAX_DEVICES:,}, listed or in a matrix")
        self._violations.raise_if_any()
        for number, link in enumerate(self._file.links):
            self._add_links(link, f"links[{number}]")
        self._violations.raise_if_any()
        links = (self._links.get(frozenset(pair)) or self._unnamed(*pair) for pair in combinations(self._devices, 2))
        return Topology(tuple(self._devices.values()), tuple(links), "file", self._warnings)

    def _check_bandwidths(self) -> None:
        for name in self._file.bandwidths:
            if name != NVLINK_CLASS and not known_class(name):
                known = f"{NVLINK_CLASS} (one NVLink), {NVLINK_CLASS}12 and such, or one of {', '.join(PCIE_CLASSES)}"
                self._violations.add(f"bandwidths.{name}", f"must be {known}")

    def _read_matrix(self) -> None:
        if not self._file.matrix:
            if self._file.peer_access:
                self._violations.add("peer_access", "must come with a matrix")
            return
        try:
            found = parse_topology(self._file.matrix, self._file.peer_access, self._default)
        except MatrixError as error:
            self._violations.extend(FieldViolation(f"matrix, {one.field}", one.description) for one in error.violations)
            return
        self._warnings = found.warnings
        self._devices = {device.id: device for device in found.devices}
        self._matrix = {frozenset((link.device_a, link.device_b)): link for link in found.links}
        if self._default is not None:
            self._attachments = dict.fromkeys(self._devices, self._default.attachment)

    def _model(self, name: str, path: str) -> GpuModel | None:
        if not name:
            return None
        try:
            return self._catalogue.get(name, path)
        except InvalidArgumentError as error:
            self._violations.extend(error.violations)
            return None

    def _model_of(self, entry: _Device, path: str) -> GpuModel | None:
        """What a device is by the catalogue; None if the entry itself says all that must be known."""
        if entry.kind is not DeviceKind.GPU:
            return None
        if entry.model:
            known = self._catalogue.find(entry.model)
            return known if known or entry.memory else self._model(entry.model, f"{path}.model")
        return self._default

    def _add_devices(self, entry: _Device, path: str) -> None:
        model = self._model_of(entry, path)
        nameless = model is None and not entry.model and entry.id not in self._devices
        if entry.memory is None and (entry.kind is DeviceKind.CPU or (entry.kind is DeviceKind.GPU and nameless)):
            self._violations.add(f"{path}.memory", "must be given, or for a GPU a model that is in the catalogue")
        if entry.memory and entry.free_memory and entry.free_memory > entry.memory:
            self._violations.add(f"{path}.free_memory", "must be at most the memory")
        listed = {device for other in self._file.devices if other is not entry for device in other.ids}
        for device_id in entry.ids:
            known = self._devices.get(device_id)
            if device_id in listed or (known and known.kind is not entry.kind):
                self._violations.add(f"{path}.id", f"{device_id} stands twice")
            base = model.device(device_id) if model else known or Device(device_id, entry.kind, "", 0, 0)
            self._devices[device_id] = _described(entry, base, known)
            if model is not None:
                self._attachments[device_id] = model.attachment
            elif entry.kind is DeviceKind.GPU and entry.model:
                self._attachments.pop(device_id, None)
            elif self._default is not None:
                self._attachments[device_id] = self._default.attachment

    def _add_links(self, entry: _Link, path: str) -> None:
        """A link for every pair of those named."""
        if unknown := [device for device in entry.devices if device not in self._devices]:
            there = ", ".join(self._devices)
            self._violations.add(f"{path}.devices", f"no device {', '.join(unknown)}; there are: {there}")
            return
        for a, b in combinations(entry.devices, 2):
            pair = frozenset((a, b))
            if len(pair) == 1 or pair in self._links:
                self._violations.add(f"{path}.devices", f"{a} and {b} stand together twice")
                continue
            link = self._unnamed(a, b)
            if entry.link_class not in (None, link.link_class):
                link = self._rates.link(a, b, entry.link_class, self._attachments)
            self._links[pair] = replace(
                link,
                bandwidth=entry.bandwidth or link.bandwidth,
                latency_seconds=entry.latency or link.latency_seconds,
                peer_access=link.peer_access if entry.peer_access is None else entry.peer_access,
                assumed=link.assumed and entry.bandwidth is None,
            )

    def _unnamed(self, a: str, b: str) -> Link:
        """The link of a pair as the matrix has it, else by default: NODE within a NUMA node, SYS beyond."""
        before = self._matrix.get(frozenset((a, b)))
        if before is not None:
            return self._rates.link(a, b, before.link_class, self._attachments, before.peer_access)
        nodes = {self._devices[a].numa_node, self._devices[b].numa_node}
        near = "NODE" if len(nodes) == 1 and -1 not in nodes else "SYS"
        return self._rates.link(a, b, self._file.default_class or near, self._attachments)


def _described(entry: _Device, base: Device, known: Device | None) -> Device:
    """A device as the entry has it, and where it says nothing as `base`; its place as the matrix has it."""
    memory = base.memory_bytes if entry.memory is None else int(entry.memory)
    return replace(
        base,
        model=base.model if base is not known and base.model else entry.model or base.model,
        memory_bytes=memory,
        free_memory_bytes=memory if entry.free_memory is None else int(entry.free_memory),
        memory_bandwidth=entry.memory_bandwidth or base.memory_bandwidth,
        flops=entry.flops or base.flops,
        numa_node=(known.numa_node if known else -1) if entry.numa_node is None else entry.numa_node,
        cpu_affinity=known.cpu_affinity if known else "",
        pci_bus_id=entry.pci_bus_id,
    )
