"""Triton's model repository on disk, with `staging/` and `journal/` beside it on the same file system."""

from __future__ import annotations

import asyncio
import re
import shutil
from pathlib import Path, PurePosixPath

from filelock import FileLock, Timeout

from uellm_deployer.adapters.files import sync_folder, write_file
from uellm_deployer.app.ports import RepositoryEntry
from uellm_deployer.domain.names import engine_model, is_engine_model, is_triton_model

# Triton may run as another user: it reads, and writes nothing.
_FILE_MODE, _FOLDER_MODE = 0o644, 0o755
_COMPILED = "__pycache__"
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}")


class RepositoryBusyError(RuntimeError):
    """Another deployer has the repository."""


class UnsafeNameError(ValueError):
    """A name that must not become a path."""


class ModelRepository:
    """A repository with one active deployer: this one, until `close`."""

    def __init__(self, root: Path) -> None:
        """Take the repository; RepositoryBusyError if another process has it."""
        self.root = root.resolve()
        self.root.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.root / "deployer.lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise RepositoryBusyError(
                f"another deployer is active on {self.root}: stop it first, or give this one a repository of its own"
            ) from None
        for folder in (self.models, self._staging):
            if folder.is_symlink():
                raise UnsafeNameError(f"{folder} is a symbolic link")
            folder.mkdir(exist_ok=True)
            folder.chmod(_FOLDER_MODE)
        for left_over in self._staging.iterdir():  # of a crash: nothing staged outlives its operation
            _discard(left_over)

    @property
    def models(self) -> Path:
        """The folder that Triton sees."""
        return self.root / "models"

    @property
    def _staging(self) -> Path:
        return self.root / "staging"

    def close(self) -> None:
        """Let another deployer have it."""
        self._lock.release()

    def contains(self, name: str) -> bool:
        """Whether the entry is installed."""
        return _inside(self.models, name).is_dir()

    def entries(self) -> frozenset[str]:
        """The entries that are installed. What has no name of this deployer is none."""
        return frozenset(path.name for path in self.models.iterdir() if is_triton_model(path.name) and path.is_dir())

    async def read(self, name: str) -> RepositoryEntry:
        """An installed entry as it lies there; without files if there is none.

        Python writes what it compiled beside the sources where it may: that is not counted.
        """
        return await asyncio.to_thread(self._read, name)

    async def stage(self, entry: RepositoryEntry) -> None:
        """Write an entry beside the repository, down to the disk."""
        await asyncio.to_thread(self._stage, entry)

    async def install(self, name: str) -> None:
        """Move a staged entry into the repository in one step, after its engine if it has one."""
        if _inside(self._staging, engine_model(name)).exists():
            await asyncio.to_thread(self._install, engine_model(name))
        await asyncio.to_thread(self._install, name)

    async def touch(self, name: str) -> None:
        """Make an installed entry look new: Triton does not load again what it calls ready and finds unchanged."""
        for model in (engine_model(name), name):
            await asyncio.to_thread(_touch, _inside(self.models, model))

    async def remove(self, name: str) -> None:
        """Take an entry away, staged or installed; nothing if there is none."""
        for model in (name, engine_model(name)):
            await asyncio.to_thread(self._remove, model)

    def _read(self, name: str) -> RepositoryEntry:
        folder = _inside(self.models, name)
        files = [path for path in folder.rglob("*") if path.is_file() and _COMPILED not in path.parts]
        return RepositoryEntry(name, {path.relative_to(folder).as_posix(): path.read_bytes() for path in files})

    def _stage(self, entry: RepositoryEntry) -> None:
        if entry.engine is not None:
            self._stage(entry.engine)
        target = _inside(self._staging, entry.name)
        files = {_relative(path): content for path, content in entry.files.items()}
        _discard(target)
        folders = {target, *(target / parent for path in files for parent in path.parents)}
        for folder in sorted(folders):
            folder.mkdir()
            folder.chmod(_FOLDER_MODE)
        for path, content in files.items():
            write_file(target / path, content, _FILE_MODE)
        for folder in sorted(folders, reverse=True):
            sync_folder(folder)
        sync_folder(self._staging)

    def _install(self, name: str) -> None:
        source, target = _inside(self._staging, name), _inside(self.models, name)
        if target.exists():  # plan-unique names never change: what is there was left by a crash
            self._take_out(name)
        source.rename(target)
        sync_folder(self.models)
        sync_folder(self._staging)

    def _remove(self, name: str) -> None:
        if _inside(self.models, name).exists():
            self._take_out(name)
        _discard(_inside(self._staging, name))

    def _take_out(self, name: str) -> None:
        """Rename before deleting: Triton must never see half an entry."""
        trash = self._staging / f"removed-{name}"
        _discard(trash)
        _inside(self.models, name).rename(trash)
        sync_folder(self.models)
        _discard(trash)


def _inside(folder: Path, name: str) -> Path:
    """The entry's path, which is a direct child of the folder and no link out of it."""
    if not (is_triton_model(name) or is_engine_model(name)):
        raise UnsafeNameError(f"{name!r} is no name of a Triton model of this deployer")
    path = folder / name
    if path.is_symlink() or path.resolve().parent != folder:
        raise UnsafeNameError(f"{path} is a symbolic link")
    return path


def _relative(path: str) -> PurePosixPath:
    parts = path.split("/")
    if not all(_PART.fullmatch(part) for part in parts):
        raise UnsafeNameError(f"{path!r} is no path inside an entry")
    return PurePosixPath(*parts)


def _discard(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _touch(entry: Path) -> None:
    """All files: a config that alone is new changes the number of instances at most."""
    for path in entry.rglob("*"):
        if path.is_file():
            path.touch()
