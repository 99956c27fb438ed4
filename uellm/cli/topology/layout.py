"""How a machine is arranged: groups near each other, the tree of PCIe, what NVLink joins beside it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations

from uellm.links import PCIE_CLASSES, class_rank, nvlinks
from uellm.v1.deployer_pb2 import Device, Link, Topology

NOT_TOLD = ""
"""Class of a joint between devices of one NUMA node whose path over PCIe nobody told."""

_FEWEST_IN_A_CLIQUE = 3


def is_nvlink(link: Link) -> bool:
    """Whether it is over NVLink."""
    return nvlinks(link.link_class) > 0


@dataclass(frozen=True, slots=True)
class Group:
    """Devices that are near the same processors."""

    label: str
    """Empty: it is not known which."""
    devices: tuple[Device, ...]


@dataclass(frozen=True, slots=True)
class Joint:
    """Where paths over PCIe meet: every two of its children reach each other by a link of this class."""

    link_class: str
    children: tuple[Joint | str, ...]


@dataclass(frozen=True, slots=True)
class Clique:
    """Devices that all reach each other by NVLink alike, as through a switch."""

    link_class: str
    devices: tuple[str, ...]
    links: tuple[Link, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """Groups in their order from left to right; each link is in a joint, in a clique or in `direct`."""

    groups: tuple[Group, ...]
    joints: tuple[Joint, ...]
    """The roots."""
    cliques: tuple[Clique, ...]
    direct: tuple[Link, ...]


def leaves(root: Joint | str) -> tuple[str, ...]:
    """Ids of the devices of a part of the tree."""
    return (root,) if isinstance(root, str) else tuple(leaf for child in root.children for leaf in leaves(child))


def arrange(topology: Topology) -> Layout:
    """Arrange a machine."""
    labels = _labels(topology)
    roots = _tree(topology, labels)
    joints = tuple(top for root in roots for top in _told(root) if isinstance(top, Joint))
    cliques = _cliques(topology)
    in_cliques = {id(link) for clique in cliques for link in clique.links}
    meeting = _meetings(joints)
    direct = tuple(
        link
        for link in topology.links
        if id(link) not in in_cliques and meeting.get(_pair(link), NOT_TOLD) != link.link_class
    )
    order = {leaf: n for n, leaf in enumerate(leaf for root in roots for leaf in leaves(root))}
    members: dict[str, list[Device]] = {}
    for device in sorted(topology.devices, key=lambda one: order[one.id]):
        members.setdefault(labels[device.id], []).append(device)
    # What belongs nowhere comes last.
    groups = sorted(members.items(), key=lambda item: not item[0])
    return Layout(tuple(Group(label, tuple(found)) for label, found in groups), joints, cliques, direct)


def _labels(topology: Topology) -> dict[str, str]:
    """What each device is near: as it says, else as the nearest device that says it and is not across sockets."""
    own = {device.id: _own_label(device) for device in topology.devices}
    labels = dict(own)
    for device in topology.devices:
        if not own[device.id]:
            links = [link for link in topology.links if device.id in _pair(link) and not is_nvlink(link)]
            for link in sorted(links, key=lambda one: class_rank(one.link_class)):
                (other,) = _pair(link) - {device.id}
                if link.link_class != "SYS" and own[other]:
                    labels[device.id] = own[other]
                    break
    return labels


def _own_label(device: Device) -> str:
    if device.numa_node >= 0:
        return f"NUMA node {device.numa_node}"
    return f"CPUs {device.cpu_affinity}" if device.cpu_affinity else ""


def _pair(link: Link) -> frozenset[str]:
    return frozenset((link.device_a, link.device_b))


def _tree(topology: Topology, labels: Mapping[str, str]) -> list[Joint | str]:
    """Roots of the tree: from the nearest class to the farthest, whatever a link of the class joins."""
    position = {device.id: n for n, device in enumerate(topology.devices)}
    roots: dict[str, Joint | str] = {one: one for one in position}
    links = [link for link in topology.links if not is_nvlink(link)]
    far = PCIE_CLASSES[-1]
    apart = {labels[next(iter(_pair(link)))] for link in links if link.link_class == far and _same(link, labels)}
    for link_class in PCIE_CLASSES:
        if link_class == far:
            near = [pair for pair in combinations(position, 2) if labels[pair[0]] == labels[pair[1]]]
            told = [pair for pair in near if labels[pair[0]] and labels[pair[0]] not in apart]
            _join(roots, told, NOT_TOLD, position)
        pairs = [(link.device_a, link.device_b) for link in links if link.link_class == link_class]
        _join(roots, pairs, link_class, position)
    return sorted(dict.fromkeys(roots.values()), key=lambda root: min(position[leaf] for leaf in leaves(root)))


def _told(root: Joint | str) -> tuple[Joint | str, ...]:
    """The root, or its children: a path that is not told is drawn only where it leads on to one that is."""
    return root.children if isinstance(root, Joint) and root.link_class == NOT_TOLD else (root,)


def _same(link: Link, labels: Mapping[str, str]) -> bool:
    return labels[link.device_a] == labels[link.device_b]


def _join(
    roots: dict[str, Joint | str], pairs: Iterable[tuple[str, str]], link_class: str, position: Mapping[str, int]
) -> None:
    """Put the roots that pairs connect under one joint each."""
    clusters: list[set[str]] = []
    for pair in pairs:
        joined = {leaf for one in pair for leaf in leaves(roots[one])}
        touching = [cluster for cluster in clusters if cluster & joined]
        clusters = [cluster for cluster in clusters if not cluster & joined] + [joined.union(*touching)]
    for cluster in clusters:
        children = dict.fromkeys(roots[leaf] for leaf in sorted(cluster, key=position.__getitem__))
        if len(children) > 1:
            joint = Joint(link_class, tuple(children))
            roots.update(dict.fromkeys(cluster, joint))


def _meetings(joints: Iterable[Joint]) -> dict[frozenset[str], str]:
    """Class of the joint at which each pair of devices meets."""
    found: dict[frozenset[str], str] = {}
    for joint in joints:
        found |= _meetings(child for child in joint.children if isinstance(child, Joint))
        for one, other in combinations(joint.children, 2):
            found |= {frozenset((a, b)): joint.link_class for a in leaves(one) for b in leaves(other)}
    return found


def _cliques(topology: Topology) -> tuple[Clique, ...]:
    """By class, the connected sets of three or more devices of which every two are linked alike."""
    cliques = []
    for link_class in sorted({link.link_class for link in topology.links if is_nvlink(link)}, key=class_rank):
        links = [link for link in topology.links if link.link_class == link_class]
        components: list[set[str]] = []
        for link in links:
            touching = [component for component in components if component & _pair(link)]
            rest = [component for component in components if not component & _pair(link)]
            components = [*rest, set(_pair(link)).union(*touching)]
        for component in components:
            within = tuple(link for link in links if _pair(link) <= component)
            size = len(component)
            if size >= _FEWEST_IN_A_CLIQUE and len(within) == size * (size - 1) // 2:
                cliques.append(Clique(link_class, tuple(sorted(component)), within))
    return tuple(cliques)
