"""A machine as tables and as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToDict
from rich.markup import escape
from rich.table import Table

from uellm.cli.output import print_line, stderr, stdout
from uellm.cli.topology.machine import Machine
from uellm.cli.values import show_bytes
from uellm.links import class_rank
from uellm.v1.deployer_pb2 import Device, Link

_UNKNOWN = "-"


def print_json(machine: Machine) -> None:
    """One object with `devices`, `links`, `placed`, `source` and `warnings`."""
    fields: dict[str, Any] = MessageToDict(
        machine.topology, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    for device in fields["devices"]:  # 64 bits are texts in protobuf's JSON
        device |= {key: int(value) for key, value in device.items() if key.endswith("memory_bytes")}
    fields["placed"] = [asdict(one) for one in machine.placed]
    sys.stdout.write(json.dumps(fields, indent=2, ensure_ascii=False) + "\n")


def print_tables(machine: Machine, svg: Path | None) -> None:
    """Devices, the matrix, and what a link of each class carries."""
    stdout.print(_devices(machine))
    if machine.topology.links:
        stdout.print()
        stdout.print("\n".join(_matrix(machine)), soft_wrap=True)
        stdout.print()
        stdout.print(_classes(machine.topology.links))
    for warning in machine.topology.warnings:
        print_line(stderr, f"[yellow]warning:[/] {escape(warning)}")
    if svg is not None:
        print_line(stderr, f"[dim]drawn in[/] {escape(str(svg))}")


def _devices(machine: Machine) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold dim")
    for column in ("device", "kind", "model", "memory free / all", "bandwidth", "FLOP/s", "NUMA", "id", "placed"):
        table.add_column(column)
    names = machine.names
    for device in machine.topology.devices:
        placed = ", ".join(f"{one.model} {one.layers}" for one in machine.on(device))
        table.add_row(
            names[device.id],
            device.kind,
            escape(device.model) or _UNKNOWN,
            *_figures(device),
            str(device.numa_node) if device.numa_node >= 0 else _UNKNOWN,
            escape(device.id) if names[device.id] != device.id else "",
            placed,
        )
    return table


def _figures(device: Device) -> tuple[str, str, str]:
    memory = f"{show_bytes(device.free_memory_bytes)} / {show_bytes(device.memory_bytes)}"
    rate, flops = device.memory_bandwidth_bytes_per_second, device.flops_per_second
    return (
        memory if device.memory_bytes else _UNKNOWN,
        f"{rate / 1e9:,.0f} GB/s" if rate else _UNKNOWN,
        f"{flops / 1e12:,.3g} T" if flops else _UNKNOWN,
    )


def _matrix(machine: Machine) -> list[str]:
    """As nvidia-smi prints it, of the devices that have links; a pair without one is `-`."""
    names, links = machine.names, machine.topology.links
    cells = {(a, b): link.link_class for link in links for a, b in _both(link)}
    linked = [device.id for device in machine.topology.devices if any(device.id in pair for pair in cells)]
    rows = [["", *(names[one] for one in linked)]] + [
        [names[row], *("X" if row == one else cells.get((row, one), _UNKNOWN) for one in linked)] for row in linked
    ]
    width = max(len(cell) for row in rows for cell in row) + 2
    return [escape("".join(cell.ljust(width) for cell in row).rstrip()) for row in rows]


def _both(link: Link) -> tuple[tuple[str, str], tuple[str, str]]:
    return (link.device_a, link.device_b), (link.device_b, link.device_a)


def _classes(links: Sequence[Link]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold dim")
    for column in ("class", "links", "each way", "", "peer access"):
        table.add_column(column)
    for name in sorted({link.link_class for link in links}, key=class_rank):
        of_class = [link for link in links if link.link_class == name]
        peers = sum(link.peer_access for link in of_class)
        table.add_row(name, str(len(of_class)), show_rates(of_class), show_origin(of_class), str(peers or _UNKNOWN))
    return table


def show_rates(links: Sequence[Link]) -> str:
    """`450 GB/s`, or from the least to the most."""
    rates = sorted(link.bandwidth_bytes_per_second / 1e9 for link in links)
    low, high = (f"{rate:.3g}" for rate in (rates[0], rates[-1]))
    return f"{low} GB/s" if low == high else f"{low} to {high} GB/s"


def show_origin(links: Sequence[Link]) -> str:
    """Whether that is assumed."""
    assumed = sum(link.assumed for link in links)
    return "" if not assumed else "assumed" if assumed == len(links) else f"{assumed} of {len(links)} assumed"
