"""Engines that the deployer writes into a Triton model repository. Importing them imports neither torch nor Triton."""

from __future__ import annotations

from pathlib import Path

_FOLDER = Path(__file__).parent
_PACKAGE = "uellm_backends"
"""What this package is called beside the `model.py` of a Triton model, where nothing else of `uellm*` is."""


def backend_files(backend: str) -> dict[str, Path]:
    """What a version directory holds for a backend, `hf` for instance: relative path -> source file."""
    modules = [_FOLDER / "__init__.py", *(_FOLDER / "common").glob("*.py"), *(_FOLDER / backend).glob("*.py")]
    entry = _FOLDER / backend / "model.py"
    packaged = {f"{_PACKAGE}/{file.relative_to(_FOLDER).as_posix()}": file for file in modules if file != entry}
    return {"model.py": entry, **dict(sorted(packaged.items()))}
