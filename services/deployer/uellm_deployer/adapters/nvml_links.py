"""NVLinks by NVML: where each leads, and how fast it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pynvml

_ACTIVE = 1
_SWITCH = "switch"
_UNKNOWN = "unknown"
_NOWHERE = "nowhere"
"""A processor, or a GPU that is not shown to us."""

# By number, for older releases of the module lack some of the names.
# Bytes a second and direction of one link, by version: 1.0, 2.0, 2.2, 3.0, 3.1, 4.0, 5.0.
_BY_VERSION = {1: 20e9, 2: 25e9, 3: 25e9, 4: 25e9, 5: 25e9, 6: 25e9, 7: 50e9}
_SPEED_OF_LINK, _SPEED_COMMON = 164, 90  # fields: MB/s of one link in one direction; older drivers have the second only
_MEMBERS = {0: "dVal", 1: "uiVal", 2: "ulVal", 3: "ullVal", 4: "sllVal", 5: "siVal", 6: "usVal"}
"""Of a field's value, by its type."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """The NVLinks between two GPUs."""

    count: int
    bandwidth: float
    """Of one in one direction, bytes a second; 0: the driver does not tell."""
    assumed: bool
    """Whether that they lead to the peer is assumed."""


@dataclass(frozen=True, slots=True)
class _Ends:
    counts: Counter[str]
    """Active links by the bus id at the other end, or what else is there."""
    bandwidth: float


class NvLinks:
    """The NVLinks of some GPUs, given as handles by bus id."""

    def __init__(self, handles: Mapping[str, Any]) -> None:
        known = {_key(bus_id) for bus_id in handles}
        self._ends = {_key(bus_id): _ends(handle, known) for bus_id, handle in handles.items()}

    def between(self, a: str, b: str) -> Bundle | None:
        """What is between two GPUs; None: nothing.

        Links to the peer itself count as they are; of those to switches, which reach every GPU, as many as both
        have. In a virtual machine a switch may be invisible: an end that nobody knows is taken for one.
        """
        ends_a, ends_b = self._ends[_key(a)], self._ends[_key(b)]
        bandwidth = min(ends_a.bandwidth, ends_b.bandwidth)
        if direct := ends_a.counts[_key(b)] or ends_b.counts[_key(a)]:
            return Bundle(direct, bandwidth, assumed=False)
        counts = (ends_a.counts, ends_b.counts)
        if switched := min(found[_SWITCH] + found[_UNKNOWN] for found in counts):
            return Bundle(switched, bandwidth, assumed=any(found[_UNKNOWN] for found in counts))
        return None


def _ends(handle: Any, known: set[str]) -> _Ends:
    counts: Counter[str] = Counter()
    first = None
    for number in range(pynvml.NVML_NVLINK_MAX_LINKS):
        try:
            if pynvml.nvmlDeviceGetNvLinkState(handle, number) != _ACTIVE:
                continue
        except pynvml.NVMLError:
            continue  # no such link; on some boards that says nothing of the next ones
        counts[_end(handle, number, known)] += 1
        first = number if first is None else first
    return _Ends(counts, 0.0 if first is None else _told_bandwidth(handle, first))


def _end(handle: Any, number: int, known: set[str]) -> str:
    """What is at the other end of a link; drivers before 470 do not tell its kind."""
    try:
        kind = pynvml.nvmlDeviceGetNvLinkRemoteDeviceType(handle, number)
    except pynvml.NVMLError:
        kind = pynvml.NVML_NVLINK_DEVICE_TYPE_UNKNOWN
    if kind == pynvml.NVML_NVLINK_DEVICE_TYPE_SWITCH:
        return _SWITCH
    if kind == pynvml.NVML_NVLINK_DEVICE_TYPE_IBMNPU:
        return _NOWHERE
    try:
        bus_id = pynvml.nvmlDeviceGetNvLinkRemotePciInfo(handle, number).busId
        key = _key(bus_id.decode() if isinstance(bus_id, bytes) else bus_id)
    except (pynvml.NVMLError, ValueError):
        return _UNKNOWN
    if key in known:
        return key
    return _NOWHERE if kind == pynvml.NVML_NVLINK_DEVICE_TYPE_GPU else _UNKNOWN


def nominal_bandwidth(handle: Any) -> float:
    """Of one NVLink of a GPU by its version, bytes a second in one direction; 0: unknown, or there is none."""
    for number in range(pynvml.NVML_NVLINK_MAX_LINKS):
        try:
            return _BY_VERSION.get(pynvml.nvmlDeviceGetNvLinkVersion(handle, number), 0.0)
        except pynvml.NVMLError:
            continue
    return 0.0


def _told_bandwidth(handle: Any, number: int) -> float:
    for field, scope in ((_SPEED_OF_LINK, number), (_SPEED_COMMON, 0)):
        try:
            (value,) = pynvml.nvmlDeviceGetFieldValues(handle, [(field, scope)])
        except pynvml.NVMLError:
            continue
        if value.nvmlReturn == pynvml.NVML_SUCCESS and value.valueType in _MEMBERS:
            megabytes = getattr(value.value, _MEMBERS[value.valueType])
            if megabytes > 0:
                return float(megabytes) * 1e6
    return 0.0


def _key(bus_id: str) -> str:
    """Bus ids come with four or eight digits of domain, in either case."""
    domain, _, rest = bus_id.lower().partition(":")
    return f"{int(domain, 16):x}:{rest}"
