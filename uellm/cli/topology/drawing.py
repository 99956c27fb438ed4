"""A machine as a drawing: NVLink above the devices, the tree of PCIe below them, what is placed within them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from uellm.cli.topology.cards import CARD_WIDTHS, GAP, card, card_height, colours, keys
from uellm.cli.topology.layout import NOT_TOLD, Clique, Joint, Layout, arrange, is_nvlink
from uellm.cli.topology.machine import Machine
from uellm.cli.topology.report import show_origin, show_rates
from uellm.cli.topology.svg import Layer, Svg, cut
from uellm.links import class_rank, nvlinks
from uellm.v1.deployer_pb2 import Link

MARGIN, GROUP_PAD, GROUP_GAP, LABEL_HEIGHT = 28.0, 14.0, 26.0, 20.0
TITLE_HEIGHT, LANE, PILL_WIDTH, PILL_HEIGHT, LEGEND_LINE = 34.0, 34.0, 50.0, 19.0, 21.0
HIGHEST_ARC = 280.0
MEANINGS = {
    "PIX": "at most one PCIe bridge",
    "PXB": "several PCIe bridges",
    "PHB": "a PCIe host bridge",
    "NODE": "between host bridges of a NUMA node",
    "SYS": "between NUMA nodes",
}
_COLOURS = {"PIX": "#1d6fb8", "PXB": "#5b5bd6", "PHB": "#9b4dca", "NODE": "#d9860a", "SYS": "#c0392b"}
_NVLINK_COLOURS = ("#3f7d20", "#8ab833", "#2a9d8f", "#00b4d8")
_GREY = "#9aa3ad"


def draw(machine: Machine) -> str:
    """An SVG document."""
    return _Drawing(machine).document()


class _Drawing:
    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._layout: Layout = arrange(machine.topology)
        self._links = machine.topology.links
        self._classes = sorted({link.link_class for link in self._links}, key=class_rank)
        nvlink = [name for name in self._classes if nvlinks(name)]
        self._colours = _COLOURS | {
            name: _NVLINK_COLOURS[min(n, len(_NVLINK_COLOURS) - 1)] for n, name in enumerate(nvlink)
        }
        self._svg = Svg()
        self._top = MARGIN + TITLE_HEIGHT + self._height_above()
        self._tree_top = self._top
        self._x: dict[Joint | str, float] = {}
        self._bottom: dict[Joint | str, float] = {}

    def document(self) -> str:
        """Put it together; what is below needs to know where the cards are."""
        self._title()
        width = self._cards()
        self._above()
        bottom, legend_width = self._legend(self._below())
        return self._svg.document(max(width, legend_width) + MARGIN, bottom)

    def _title(self) -> None:
        topology = self._machine.topology
        counts = Counter(
            "NIC" if device.kind == "nic" else device.model or device.kind.upper() for device in topology.devices
        )
        text = ", ".join(f"{count} x {name}" if count > 1 else name for name, count in counts.items())
        self._svg.text(MARGIN, MARGIN + 8, f"{text} ({topology.source})", size=15, weight="bold")

    def _cards(self) -> float:
        """Groups of cards from left to right; returns where they end."""
        height = max(card_height(self._machine, device) for device in self._machine.topology.devices)
        x, palette = MARGIN, colours(self._machine)
        for group in self._layout.groups:
            widths = [CARD_WIDTHS[device.kind] for device in group.devices]
            width = sum(widths) + GAP * (len(widths) - 1) + 2 * GROUP_PAD
            below = height + 2 * GROUP_PAD + LABEL_HEIGHT
            self._svg.box(x, self._top - GROUP_PAD, width, below, fill="#f1f3f5", radius=12, layer=Layer.BACK)
            left = x + GROUP_PAD
            for device, own in zip(group.devices, widths, strict=True):
                card(self._svg, self._machine, device, left, self._top, palette)
                self._x[device.id] = left + own / 2
                self._bottom[device.id] = self._top + card_height(self._machine, device)
                left += own + GAP
            centres = [self._x[device.id] for device in group.devices] + [x + width]
            room = next(b - a for a, b in pairwise(centres)) - 14
            label = cut(group.label, 11, room)
            self._svg.text(centres[0] + 8, self._top + height + GROUP_PAD + 10, label, size=11, fill="#5b6670")
            x += width + GROUP_GAP
        self._tree_top = self._top + height + GROUP_PAD + LABEL_HEIGHT + 4
        return x - GROUP_GAP

    def _height_above(self) -> float:
        """Room for arcs and bars; arcs need the positions of cards, so it is from their number."""
        hubs = LANE * len(self._layout.cliques)
        reach = 0.0
        order = [device.id for group in self._layout.groups for device in group.devices]
        for link in self._layout.direct:
            distance = abs(order.index(link.device_a) - order.index(link.device_b))
            reach = max(reach, _arc_height(distance * (max(CARD_WIDTHS.values()) + GROUP_GAP)))
        return hubs + 0.78 * reach + GROUP_PAD + 8

    def _above(self) -> None:
        self._arcs(self._layout.direct)
        for number, clique in enumerate(self._layout.cliques):
            self._hub(clique, self._top - GROUP_PAD - LANE * (number + 0.6))

    def _hub(self, clique: Clique, y: float) -> None:
        colour, width = self._colours[clique.link_class], _width(clique.links)
        xs = [self._x[device] for device in clique.devices]
        for x in xs:
            self._svg.line(x, self._top, x, y, colour, width)
        self._svg.line(min(xs), y, max(xs), y, colour, width)
        self._pill((min(xs) + max(xs)) / 2, y, clique.link_class)

    def _arcs(self, links: Sequence[Link]) -> None:
        """Ports along a card so that arcs of one card do not cross: the far ends in the middle."""
        ends: dict[str, list[tuple[tuple[bool, float], int]]] = {}
        for number, link in enumerate(links):
            for device, other in ((link.device_a, link.device_b), (link.device_b, link.device_a)):
                step = self._x[other] - self._x[device]
                ends.setdefault(device, []).append(((step > 0, -step), number))
        ports: dict[tuple[str, int], float] = {}
        for device, found in ends.items():
            spread = min(14.0, 100.0 / len(found))
            for place, (_, number) in enumerate(sorted(found)):
                ports[device, number] = self._x[device] + (place - (len(found) - 1) / 2) * spread
        for number, link in enumerate(links):
            a, b = ports[link.device_a, number], ports[link.device_b, number]
            colour, height = self._colours.get(link.link_class, _GREY), _arc_height(abs(b - a))
            self._svg.arc(a, b, self._top, height, colour, _width([link]), dashed=not is_nvlink(link))

    def _below(self) -> float:
        """The tree, level by level; returns where it ends."""
        levels: dict[str, list[Joint]] = {}
        for joint in self._layout.joints:
            _collect(joint, levels)
        y = self._tree_top
        for link_class in sorted(levels, key=lambda name: class_rank(name or "NODE") + 0.5 * (name == NOT_TOLD)):
            taken: list[list[tuple[float, float]]] = []
            deepest = y
            for joint in levels[link_class]:
                xs = [self._x[child] for child in joint.children]
                row = _free_row(taken, min(xs), max(xs))
                at = y + LANE * (row + (0.5 if link_class == NOT_TOLD else 0.7))
                self._bar(joint, xs, at)
                deepest = max(deepest, at + LANE * 0.3)
            y = deepest
        return y + 10

    def _bar(self, joint: Joint, xs: Sequence[float], y: float) -> None:
        colour = self._colours.get(joint.link_class, _GREY)
        width = _width([link for link in self._links if link.link_class == joint.link_class])
        for child, x in zip(joint.children, xs, strict=True):
            self._svg.line(x, self._bottom[child], x, y, colour, width)
        self._svg.line(min(xs), y, max(xs), y, colour, width)
        self._x[joint], self._bottom[joint] = (min(xs) + max(xs)) / 2, y
        if joint.link_class != NOT_TOLD:
            self._pill(self._x[joint], y, joint.link_class)

    def _pill(self, x: float, y: float, text: str) -> None:
        left, top, colour = x - PILL_WIDTH / 2, y - PILL_HEIGHT / 2, self._colours.get(text, _GREY)
        self._svg.box(left, top, PILL_WIDTH, PILL_HEIGHT, stroke=colour, radius=9)
        self._svg.text(x, y + 4, text, size=12, weight="bold", anchor="middle")

    def _legend(self, y: float) -> tuple[float, float]:
        """A line for each class, then what the colours in the bars mean; returns where it ends, down and right."""
        y, right = y + 18, 0.0
        for name in self._classes:
            links = [link for link in self._links if link.link_class == name]
            self._svg.line(MARGIN, y - 4, MARGIN + 40, y - 4, self._colours.get(name, _GREY), _width(links))
            count = nvlinks(name)
            meaning = f"{count} NVLink{'s' * (count > 1)}" if count else MEANINGS.get(name, "")
            origin = show_origin(links)
            text = f"{name}: {meaning}, {show_rates(links)} each way{f', {origin}' if origin else ''}"
            right = max(right, self._svg.text(MARGIN + 52, y, text, size=12))
            y += LEGEND_LINE
        if any(_holds_untold(joint) for joint in self._layout.joints):
            self._svg.line(MARGIN, y - 4, MARGIN + 40, y - 4, _GREY, 1)
            right = max(right, self._svg.text(MARGIN + 52, y, "a path over PCIe that is not told", size=12))
            y += LEGEND_LINE
        for colour, text in keys(self._machine):
            self._svg.box(MARGIN, y - 10, 40, 10, fill=colour, radius=2)
            right = max(right, self._svg.text(MARGIN + 52, y, text, size=12))
            y += LEGEND_LINE
        return y, right


def _collect(joint: Joint, levels: dict[str, list[Joint]]) -> None:
    for child in joint.children:
        if isinstance(child, Joint):
            _collect(child, levels)
    levels.setdefault(joint.link_class, []).append(joint)


def _holds_untold(joint: Joint) -> bool:
    below = (child for child in joint.children if isinstance(child, Joint))
    return joint.link_class == NOT_TOLD or any(_holds_untold(child) for child in below)


def _free_row(rows: list[list[tuple[float, float]]], low: float, high: float) -> int:
    """The first row in which nothing lies between; it is taken then."""
    pad = PILL_WIDTH / 2 + 4
    for number, row in enumerate(rows):
        if all(high + pad < a or b < low - pad for a, b in row):
            row.append((low, high))
            return number
    rows.append([(low, high)])
    return len(rows) - 1


def _arc_height(distance: float) -> float:
    return min(HIGHEST_ARC, 34 + 0.26 * distance)


def _width(links: Sequence[Link]) -> float:
    """Of a line: grows with the logarithm of the bandwidth."""
    fastest = max((link.bandwidth_bytes_per_second for link in links), default=0.0)
    return min(7.0, 1 + 0.9 * math.log2(1 + fastest / 8e9)) if fastest else 1.0
