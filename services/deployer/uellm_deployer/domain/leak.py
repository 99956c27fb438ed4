"""Memory that did not come back when a model was unloaded."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Leak:
    """Of one model on one device. Sizes in bytes."""

    triton_model: str
    device_id: str
    lost_bytes: int
    """Of its weights; 0: it has come back."""
    free_bytes: int
    """Of the device, once it is back."""

    @property
    def difference(self) -> str:
        """In words."""
        return f"leaks {self.lost_bytes:,} bytes of {self.device_id}, which unloading it did not free: restart Triton"
