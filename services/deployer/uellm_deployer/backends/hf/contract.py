"""Parameters of a static engine's model config besides the common ones."""

from __future__ import annotations

STAGES = "stages"  # JSON list of [device, number of layers], in the order of the layers; default: all on the CPU
