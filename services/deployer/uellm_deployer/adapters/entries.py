"""What all repository entries have in common."""

from __future__ import annotations

PLAN_HASH = "uellm_plan_hash"
"""Parameter of the model config by which a loaded model is told from another of the same name."""

CONFIG = "config.pbtxt"
VERSION = "1"


class InvalidEntryError(ValueError):
    """An entry that Triton would refuse or misunderstand; a defect of the renderer."""
