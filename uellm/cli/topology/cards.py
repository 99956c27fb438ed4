"""The card of a device: what it is, its memory, what is placed on it."""

from __future__ import annotations

from collections.abc import Mapping

from uellm.cli.topology.machine import Machine
from uellm.cli.topology.svg import Svg, cut
from uellm.v1.deployer_pb2 import Device

CARD_WIDTHS = {"gpu": 152.0, "cpu": 152.0, "nic": 92.0}
GAP = 16.0
PAD = 10.0
OTHERS = "#b8c0c8"
_PALETTE = ("#2e86de", "#f39c12", "#8e44ad", "#16a085", "#d35400", "#7f8c8d", "#c2185b", "#5d4037")
_MOST_PLACED = 4
_LINE = 15.0
_GIB = 1 << 30


def colours(machine: Machine) -> dict[str, str]:
    """Of the deployments, by name."""
    names = sorted({one.deployment for one in machine.placed})
    return {name: _PALETTE[number % len(_PALETTE)] for number, name in enumerate(names)}


def keys(machine: Machine) -> list[tuple[str, str]]:
    """What the colours in the bars mean."""
    found = [(colour, f"memory planned for {name}") for name, colour in colours(machine).items()]
    used = any(device.free_memory_bytes < device.memory_bytes for device in machine.topology.devices)
    return [*found, (OTHERS, "other memory in use")] if used else found


def card_height(machine: Machine, device: Device) -> float:
    """Of a device's card, with a line for each of the first deployments on it."""
    if device.kind == "nic":
        return 46.0
    placed = len(machine.on(device))
    lines = min(placed, _MOST_PLACED) + (placed > _MOST_PLACED)
    return 80.0 + _LINE * lines + (4 if lines else 0)


def card(svg: Svg, machine: Machine, device: Device, x: float, y: float, palette: Mapping[str, str]) -> None:
    """Draw one at a place."""
    width, inner = CARD_WIDTHS[device.kind], CARD_WIDTHS[device.kind] - 2 * PAD
    stroke = "#7b8794" if device.kind == "nic" else "#2f3b46"
    svg.box(x, y, width, card_height(machine, device), fill="#ffffff", stroke=stroke, radius=8)
    left = x + PAD
    svg.text(left, y + 19, cut(machine.names[device.id], 13, inner), size=13, weight="bold")
    model = device.model.removeprefix("NVIDIA ").removeprefix("GeForce ")
    svg.text(left, y + 36, cut(model, 10.5, inner), size=10.5, fill="#5b6670")
    if device.kind == "nic":
        return
    _memory_bar(svg, machine, device, left, y + 44, palette)
    svg.text(left, y + 69, cut(_memory_text(device), 10.5, inner), size=10.5)
    placed = machine.on(device)
    for number, one in enumerate(placed[:_MOST_PLACED]):
        line = y + 86 + _LINE * number
        svg.box(left, line - 8, 8, 8, fill=palette[one.deployment], radius=2)
        svg.text(left + 12, line, cut(f"{one.layers}, {one.model}", 10.5, inner - 12), size=10.5)
    if len(placed) > _MOST_PLACED:
        line = y + 86 + _LINE * _MOST_PLACED
        svg.text(left + 12, line, f"and {len(placed) - _MOST_PLACED} more", size=10.5)


def _memory_bar(svg: Svg, machine: Machine, device: Device, x: float, y: float, palette: Mapping[str, str]) -> None:
    """What deployments plan to use, then what else is in use, of the whole."""
    width = CARD_WIDTHS[device.kind] - 2 * PAD
    svg.box(x, y, width, 10, fill="#e6eaee", radius=2)
    if not device.memory_bytes:
        return
    placed = machine.on(device)
    others = device.memory_bytes - device.free_memory_bytes - sum(one.planned_bytes for one in placed)
    parts = [(one.planned_bytes, palette[one.deployment]) for one in placed] + [(max(0, others), OTHERS)]
    left, end = x, x + width
    for size, colour in parts:
        part = min(width * size / device.memory_bytes, end - left)
        if part > 0:
            svg.box(left, y, part, 10, fill=colour, radius=1)
            left += part


def _memory_text(device: Device) -> str:
    if not device.memory_bytes:
        return "memory unknown"
    free, total = device.free_memory_bytes / _GIB, device.memory_bytes / _GIB
    return f"{free:.3g} of {total:.3g} GiB free"
