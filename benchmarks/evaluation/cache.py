"""What was computed before, by content: equal arrivals, scenario and code have equal results."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import uellm_scheduler
import uellm_simulator

import uellm.cost

DETERMINING = (
    *(Path(folder) for folder in (*uellm_simulator.__path__, *uellm.cost.__path__)),
    *(Path(folder) / part for folder in uellm_scheduler.__path__ for part in ("app", "domain", "policies")),
    Path(__file__).parent / "playing.py",
)
"""Files and folders of the code on which a result depends."""


def code_digest(paths: Iterable[Path] = DETERMINING) -> str:
    """Of all Python files there, and of the numpy that draws and sums."""
    digest = hashlib.sha256(np.__version__.encode())
    for path in paths:
        for name, file in sorted(_files(path)):
            content = file.read_bytes()
            digest.update(f"{path.name}/{name}/{len(content)}/".encode())
            digest.update(content)
    return digest.hexdigest()[:16]


def _files(path: Path) -> Iterator[tuple[str, Path]]:
    if path.is_file():
        yield path.name, path
    for file in path.rglob("*.py"):
        yield file.relative_to(path).as_posix(), file


@dataclass(frozen=True, slots=True)
class Cache:
    """Results in a folder, a file each."""

    folder: Path

    def find(self, key: str) -> Any:
        """The result, or None."""
        try:
            return json.loads(self._path(key).read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            return None

    def keep(self, key: str, result: Any) -> None:
        """Whole or not at all, whenever the process ends."""
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        torn = path.with_suffix(f".{os.getpid()}")
        torn.write_text(json.dumps(result, separators=(",", ":")), encoding="utf-8")
        torn.replace(path)

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"
