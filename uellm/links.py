"""Classes of links between devices, as nvidia-smi names them."""

from __future__ import annotations

import re

PCIE_CLASSES = ("PIX", "PXB", "PHB", "NODE", "SYS")
"""Paths over PCIe, nearest first."""

_NVLINKS = re.compile(r"NV([1-9]\d*)", re.ASCII)


def nvlinks(link_class: str) -> int:
    """How many NVLinks a class bundles: 4 of `NV4`; 0 of a path over PCIe."""
    match = _NVLINKS.fullmatch(link_class)
    return int(match[1]) if match else 0


def known_class(link_class: str) -> bool:
    """Whether it is a class of nvidia-smi's, in its present spelling."""
    return link_class in PCIE_CLASSES or nvlinks(link_class) > 0


def class_rank(link_class: str) -> int:
    """Nearer is less: `NV12` < `NV4` < `PIX` < `PXB` < `PHB` < `NODE` < `SYS` < what is unknown."""
    if count := nvlinks(link_class):
        return -count
    return PCIE_CLASSES.index(link_class) if link_class in PCIE_CLASSES else len(PCIE_CLASSES)
