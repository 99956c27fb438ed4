"""Parameters of a static engine's model config besides the common ones."""

from __future__ import annotations

DEVICE_MAP = "device_map"  # JSON object, module name -> device; default {"": "cpu"}
