"""What a link of a class carries, for GPUs that are attached in a known way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from uellm.links import nvlinks
from uellm_deployer.domain.topology import Link

LATENCY_SECONDS = 10e-6
"""Of a transfer between two devices: AIConfigurator's point-to-point latency."""

CROSS_SOCKET_SHARE = 0.6
"""Share of a PCIe link's bandwidth left across sockets, where the link between them is shared: an assumption."""

NVLINK_CLASS = "NV"
"""Key of one NVLink among bandwidths by class."""

# Bytes a second and direction of one lane, by generation.
_PCIE_LANE = {1: 0.25e9, 2: 0.5e9, 3: 0.985e9, 4: 1.969e9, 5: 3.938e9, 6: 7.563e9}


def pcie_bandwidth(generation: int, lanes: int) -> float:
    """Bytes a second in one direction; 0: the generation is unknown."""
    return _PCIE_LANE.get(generation, 0.0) * lanes


@dataclass(frozen=True, slots=True)
class Attachment:
    """How a device is attached. Bytes a second in one direction."""

    nvlink_bandwidth: float
    """Of one NVLink."""
    pcie_bandwidth: float


UNKNOWN_ATTACHMENT = Attachment(nvlink_bandwidth=20e9, pcie_bandwidth=pcie_bandwidth(3, 16))
"""The slowest in use: NVLink of the first generation, PCIe of the third with 16 lanes."""


@dataclass(frozen=True, slots=True)
class LinkRates:
    """What links carry: of each class what somebody measured, or else its default."""

    measured: Mapping[str, float] = field(default_factory=dict)
    """Bytes a second in one direction, by class; under `NV` that of one NVLink."""

    def of(self, link_class: str, a: Attachment, b: Attachment) -> tuple[float, bool]:
        """Bytes a second in one direction between two devices, and whether that is assumed."""
        if link_class in self.measured:
            return self.measured[link_class], False
        if count := nvlinks(link_class):
            each = self.measured.get(NVLINK_CLASS)
            return count * (each or min(a.nvlink_bandwidth, b.nvlink_bandwidth)), each is None
        share = CROSS_SOCKET_SHARE if link_class == "SYS" else 1.0
        return share * min(a.pcie_bandwidth, b.pcie_bandwidth), True

    def link(
        self, a: str, b: str, link_class: str, attachments: Mapping[str, Attachment], peer_access: bool | None = None
    ) -> Link:
        """A link of two devices by their ids; one that is not attached in a known way is as slow as any.

        Peer access that nobody told is taken to be there over NVLink only: a host bridge does not imply it.
        """
        at = [attachments.get(device, UNKNOWN_ATTACHMENT) for device in (a, b)]
        bandwidth, assumed = self.of(link_class, *at)
        peers = nvlinks(link_class) > 0 if peer_access is None else peer_access
        return Link(a, b, link_class, bandwidth, LATENCY_SECONDS, peers, assumed)
