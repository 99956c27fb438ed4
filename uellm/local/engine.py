"""Which engine the local stack serves with, and the Python environment that has it."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path

VLLM_ENVIRONMENT = "UELLM_VLLM_ENV"
"""Variable with the folder of the virtual environment that has vLLM; not set: `.venv-vllm` in the checkout."""

_CHECKOUT = Path(__file__).resolve().parents[2]


class Backend(StrEnum):
    """`--engine` of `uellm up`: a backend of the deployer."""

    HF = "hf"
    """Static: transformers."""
    VLLM = "vllm"
    """Continuous."""


DEFAULT_BACKEND = Backend.HF

BATCH_ROWS = {Backend.HF: 8, Backend.VLLM: 32}
"""Rows computed at once. The step of a continuous engine need not wait for its longest row, so it has room for more."""


class VllmNotInstalledError(RuntimeError):
    """There is no environment that has vLLM for this Python; the message says what to do."""


def first_on_path(backend: str) -> Path:
    """The folder that Triton must find Python in, so that its models find their packages; VllmNotInstalledError."""
    return vllm_environment() / "bin" if backend == Backend.VLLM else Path(sys.executable).parent


def vllm_environment() -> Path:
    """The folder of the virtual environment that has vLLM; raises VllmNotInstalledError."""
    named = os.environ.get(VLLM_ENVIRONMENT)
    folder = Path(named).expanduser().absolute() if named else _CHECKOUT / ".venv-vllm"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    if not (folder / "lib" / f"python{version}" / "site-packages" / "vllm").is_dir():
        raise VllmNotInstalledError(
            f"{folder} has no vLLM for Python {version}: make that environment with `make vllm-env` (3.5 GB), or name "
            f"another with {VLLM_ENVIRONMENT}"
        )
    return folder
