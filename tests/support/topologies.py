"""Matrices as `nvidia-smi topo` prints them, of machines made up here."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

CAPTURES = Path(os.environ.get("UELLM_SHARED", Path(__file__).resolve().parents[3] / "shared")) / "data" / "topo"
"""Outputs that people published; they are not part of the project."""


def matrix(
    names: Sequence[str],
    cells: Mapping[tuple[str, str], str],
    default: str = "SYS",
    tails: Mapping[str, str] | None = None,
) -> str:
    """A matrix of these devices; `tails` are what follows the cells of the header (under `""`) and of the rows."""
    tails = tails or {}
    lines = ["\t" + "\t".join([*names, *([tails[""]] if "" in tails else [])])]
    for row in names:
        found = (" X " if row == one else cells.get((row, one)) or cells.get((one, row)) or default for one in names)
        lines.append("\t".join([row, *found, *([tails[row]] if row in tails else [])]))
    return "\n".join(lines) + "\n"


def gpus(count: int) -> list[str]:
    """`GPU0`, `GPU1`, ..."""
    return [f"GPU{number}" for number in range(count)]


def cube_mesh() -> str:
    """Eight GPUs in two quads, NVLinks within a quad and between partners, one NIC; no NUMA column, CPU ranges."""
    near = {("GPU0", "GPU1"): "NV1", ("GPU0", "GPU2"): "NV1", ("GPU0", "GPU3"): "NV2"}
    near |= {("GPU1", "GPU2"): "NV2", ("GPU1", "GPU3"): "NV1", ("GPU2", "GPU3"): "NV2"}
    far = {(f"GPU{int(a[3]) + 4}", f"GPU{int(b[3]) + 4}"): cell for (a, b), cell in near.items()}
    across = {(f"GPU{n}", f"GPU{n + 4}"): "NV2" if n < 2 else "NV1" for n in range(4)}
    nic = {("mlx5_0", f"GPU{n}"): ("NODE", "NODE", "PIX", "PIX")[n] for n in range(4)}
    tails = {"": "CPU Affinity"} | {f"GPU{n}": "0-9,20-29" if n < 4 else "10-19,30-39" for n in range(8)}
    return matrix([*gpus(8), "mlx5_0"], near | far | across | nic, tails=tails)


def switched() -> str:
    """Eight GPUs behind NVLink switches in two NUMA nodes, a NIC with each pair, a legend."""
    names = [*gpus(8), *(f"NIC{n}" for n in range(4))]
    cells = {(a, b): "NV18" for a in gpus(8) for b in gpus(8) if a != b}
    for nic in range(4):
        for gpu in range(8):
            near = "PIX" if gpu // 2 == nic else "NODE" if gpu // 4 == nic // 2 else "SYS"
            cells[f"NIC{nic}", f"GPU{gpu}"] = near
    cells |= {("NIC0", "NIC1"): "NODE", ("NIC2", "NIC3"): "NODE"}
    tails = {"": "CPU Affinity\tNUMA Affinity\tGPU NUMA ID"}
    tails |= {f"GPU{n}": "0-51,104-155\t0 N/A" if n < 4 else "52-103,156-207\t1 N/A" for n in range(8)}
    legend = "\nLegend:\n\n  X    = Self\n  SYS  = far\n  NV#  = # NVLinks\n\nNIC Legend:\n\n"
    return matrix(names, cells, tails=tails) + legend + "".join(f"  NIC{n}: mlx5_{n}\n" for n in range(4))
