"""Between a machine and the matrices that `nvidia-smi topo` prints of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

from uellm.links import nvlinks
from uellm_deployer.adapters.smi_matrix import (
    AFFINITY_COLUMNS,
    GPU_NAME,
    NIC_NAME,
    PEER_OK,
    SELF,
    Matrix,
    MatrixError,
    read_matrices,
)
from uellm_deployer.domain.gpus import GpuModel
from uellm_deployer.domain.interconnect import LinkRates
from uellm_deployer.domain.topology import Device, DeviceKind, Link, Topology

_UNKNOWN = "N/A"
_FIRST_NODE = re.compile(r"\d{1,4}(?!\d)", re.ASCII)
_NO_RATES = LinkRates()


def parse_topology(
    text: str, peer_text: str = "", gpu: GpuModel | None = None, rates: LinkRates = _NO_RATES
) -> Topology:
    """The machine of a saved `topo -m`, with the peer access of a saved `topo -p2p r`.

    Args:
        text: the output of the one, the other, or both after each other.
        peer_text: the output of `topo -p2p r`, if it is not in `text`.
        gpu: what its GPUs are, which the output does not tell; None: of unknown memory and rates.
        rates: bandwidth that somebody measured.

    Raises:
        MatrixError: the text is damaged, or not of one machine.
    """
    classes = _only(read_matrices(text), "topo -m", is_peer_access=False)
    peers = _only(read_matrices(peer_text or text), "topo -p2p r", is_peer_access=True)
    found = classes or peers
    if found is None or (peer_text and peers is None):
        raise MatrixError("expected the output of `nvidia-smi topo -p2p r`")
    if classes and peers and classes.gpus != peers.gpus:
        what = f"links of {', '.join(classes.gpus)}, but peer access of {', '.join(peers.gpus)}"
        raise MatrixError(f"{what}: save `nvidia-smi topo -m` and `nvidia-smi topo -p2p r` of one machine")
    warnings = [*(classes.warnings if classes else ()), *(peers.warnings if peers else ())]
    if classes is None:
        warnings.append("no link classes in it, taken as SYS: give the output of `nvidia-smi topo -m`, too")
    most = max(map(nvlinks, found.cells.values()), default=0)
    if gpu is not None and most > gpu.nvlinks:
        warnings.append(f"NV{most} in it, but {gpu.name} has {gpu.nvlinks} NVLinks: is that the right GPU?")
    devices = tuple(_device(found, name, gpu) for name in found.names)
    attachments = dict.fromkeys(found.names, gpu.attachment) if gpu else {}
    links = []
    for a, b in combinations(found.names, 2):
        if link_class := classes.cell(a, b) if classes else "SYS":
            told = peers.cell(a, b) if peers else ""
            links.append(rates.link(a, b, link_class, attachments, told == PEER_OK if told else None))
    return Topology(devices, tuple(links), "file", tuple(warnings))


def render_topology(topology: Topology) -> str:
    """The matrices of a machine; of peer access only where the classes do not tell it.

    Devices whose ids are no names that `topo` prints are numbered. `parse_topology` reads it back: of a topology that
    it made of the same GPU model, to the same, warnings aside. A pair without a link is written as SYS.
    """
    names = _names(topology.devices)
    links = {frozenset((link.device_a, link.device_b)): link for link in topology.links}
    gpus = [device for device in topology.devices if device.kind is DeviceKind.GPU]
    nics = [device for device in topology.devices if device.kind is DeviceKind.NIC]
    rows = [*gpus, *nics] if all(frozenset((a.id, b.id)) in links for a, b in combinations(nics, 2)) else gpus
    columns = [*gpus, *nics]
    headings = AFFINITY_COLUMNS[:2] if any(d.cpu_affinity or d.numa_node >= 0 for d in gpus) else ()
    table = [["", *(names[device.id] for device in columns), *headings]]
    for row in rows:
        cells = (_cell(row, column, links) for column in columns)
        table.append([names[row.id], *cells, *(_affinity(row) if row.kind is DeviceKind.GPU and headings else ())])
    parts = [_layout(table)]
    if any(_tells_peer_access(link, gpus) for link in topology.links):
        peers = [[names[a.id], *(_peer_cell(a, b, links) for b in gpus)] for a in gpus]
        parts.append(_layout([["", *(names[device.id] for device in gpus)], *peers]))
    legend = [f"  {names[nic.id]}: {nic.model}" for nic in nics if nic.model]
    if legend:
        parts.append("\n".join(["NIC Legend:", "", *legend]) + "\n")
    return "\n".join(parts)


def _only(matrices: Sequence[Matrix], command: str, *, is_peer_access: bool) -> Matrix | None:
    """The matrix of a kind; that of one GPU has no cell that would tell its kind."""
    found = [matrix for matrix in matrices if matrix.is_peer_access == is_peer_access]
    if len(found) > 1 and any(matrix.cells for matrix in found):
        raise MatrixError(f"{len(found)} matrices as of `nvidia-smi {command}`: keep the one of this machine")
    return found[0] if found else None


def _device(matrix: Matrix, name: str, gpu: GpuModel | None) -> Device:
    if name not in matrix.gpus:
        return Device(name, DeviceKind.NIC, matrix.nic_names.get(name, ""), 0, 0)
    cpu_affinity, numa, *_ = (*matrix.affinities.get(name, ()), "", "")
    first = _FIRST_NODE.match(numa)
    node = int(first[0]) if first else -1
    if gpu is not None:
        return gpu.device(name, node, cpu_affinity)
    return Device(name, DeviceKind.GPU, "", 0, 0, numa_node=node, cpu_affinity=cpu_affinity)


def _names(devices: Iterable[Device]) -> dict[str, str]:
    names: dict[str, str] = {}
    for kind, pattern in ((DeviceKind.GPU, GPU_NAME), (DeviceKind.NIC, NIC_NAME)):
        ids = [device.id for device in devices if device.kind is kind]
        own = all(pattern.fullmatch(one) for one in ids)
        names |= {one: one if own else f"{kind.name}{number}" for number, one in enumerate(ids)}
    return names


def _cell(a: Device, b: Device, links: Mapping[frozenset[str], Link]) -> str:
    link = links.get(frozenset((a.id, b.id)))
    return SELF if a.id == b.id else link.link_class if link else "SYS"


def _peer_cell(a: Device, b: Device, links: Mapping[frozenset[str], Link]) -> str:
    link = links.get(frozenset((a.id, b.id)))
    return SELF if a.id == b.id else PEER_OK if link and link.peer_access else "NS"


def _tells_peer_access(link: Link, gpus: Iterable[Device]) -> bool:
    ids = {device.id for device in gpus}
    return {link.device_a, link.device_b} <= ids and link.peer_access != (nvlinks(link.link_class) > 0)


def _affinity(device: Device) -> tuple[str, str]:
    return device.cpu_affinity or _UNKNOWN, str(device.numa_node) if device.numa_node >= 0 else _UNKNOWN


def _layout(table: Sequence[Sequence[str]]) -> str:
    """Left-aligned columns, two spaces apart."""
    widths = [max(len(row[i]) for row in table if i < len(row)) for i in range(max(map(len, table)))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip() for row in table)
    return "\n".join(lines) + "\n"
