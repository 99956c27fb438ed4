"""The static engine: a decoupled model of Triton's Python backend around transformers.

Importing this package imports neither torch nor Triton.
"""

from __future__ import annotations

from pathlib import Path

_FOLDER = Path(__file__).parent


def backend_files() -> dict[str, Path]:
    """What a version directory holds: relative path -> source file."""
    files = [_FOLDER / "model.py", *sorted((_FOLDER / "uellm_hf").glob("*.py"))]
    return {file.relative_to(_FOLDER).as_posix(): file for file in files}
