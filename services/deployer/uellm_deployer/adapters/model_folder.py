"""Model folders: `config.json`, the headers of safetensors files, `facts.json`. Nothing of the weights is loaded."""

from __future__ import annotations

import asyncio
import hashlib
import json
from pathlib import Path
from typing import Any

from uellm_deployer.adapters.facts_file import FACTS_FILE, read_inspection
from uellm_deployer.domain.built import built_shape, is_built, rank_count
from uellm_deployer.domain.facts import ModelShape, model_shape, needs_inspection, refusal
from uellm_deployer.domain.tensors import TensorInfo

TOKENIZER_FILE = "tokenizer.json"
MAX_CONFIG_BYTES = 1 << 20
MAX_HEADER_BYTES = 100 << 20  # the format's own limit
_LENGTH_BYTES = 8
_OTHER_FORMATS = ("*.safetensors", "pytorch_model*.bin", "*.gguf")


class ModelFolders:
    """Reads model folders of this machine."""

    async def shape(self, weights_path: str) -> ModelShape:
        """What the model in the folder is; InvalidArgumentError if it cannot be deployed."""
        return await asyncio.to_thread(read_shape, weights_path)


def read_shape(weights_path: str) -> ModelShape:
    """As `ModelFolders.shape`. Where the folder has no weights, or a `config.json` is named, sizes follow from that."""
    folder = Path(weights_path)
    if not folder.is_absolute():
        raise refusal("must be an absolute path")
    if folder.is_file() and folder.suffix == ".json":
        return _shape(folder, [], folder.with_name(FACTS_FILE))
    if not folder.is_dir():
        raise refusal(f"{weights_path} is no folder that the deployer can read")
    return _shape(folder / "config.json", _weight_files(folder), folder / FACTS_FILE)


def _shape(config_file: Path, weight_files: list[Path], facts_file: Path) -> ModelShape:
    config = read_config(config_file)
    if is_built(config):
        return _engine(config_file.parent, config)
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    tensors: list[TensorInfo] = []
    for file in weight_files:
        header, status = _header(file), file.stat()
        # Contents may take minutes to read; size and time of change tell an exchanged file as well.
        digest.update(f"{file.name} {status.st_size} {status.st_mtime_ns} ".encode() + header)
        tensors += _tensors(file, header, status.st_size)
    inspection = None
    if needs_inspection(config) and facts_file.exists():
        inspection = read_inspection(_bytes(facts_file, MAX_CONFIG_BYTES), config)
    return model_shape(config, tensors, digest.hexdigest(), inspection)


def _engine(folder: Path, config: dict[str, Any]) -> ModelShape:
    """An engine of TensorRT-LLM: its files are as large as what its ranks hold."""
    files = [folder / f"rank{rank}.engine" for rank in range(rank_count(config))]
    missing = [file.name for file in [*files, folder / TOKENIZER_FILE] if not file.is_file()]
    if missing:
        raise refusal(
            f"{folder} is a TensorRT-LLM engine without {', '.join(missing)}: it needs all of its ranks, and beside "
            "them the tokenizer files of the checkpoint"
        )
    sizes = [file.stat() for file in files]
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for status in sizes:
        digest.update(f"{status.st_size} {status.st_mtime_ns} ".encode())
    return built_shape(config, [status.st_size for status in sizes], digest.hexdigest())


def read_config(file: Path) -> dict[str, Any]:
    """A `config.json`; InvalidArgumentError if it is none."""
    return _json_object(file, MAX_CONFIG_BYTES)


def _weight_files(folder: Path) -> list[Path]:
    """None if the weights are not there yet."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        alone = folder / "model.safetensors"
        if alone.is_file():
            return [alone]
        others = sorted(file.name for pattern in _OTHER_FORMATS for file in folder.glob(pattern))
        if others:
            raise refusal(f"{folder} has {others[0]}, but neither model.safetensors nor {index.name}: convert it")
        return []
    weight_map = _json_object(index, MAX_HEADER_BYTES).get("weight_map")
    if not isinstance(weight_map, dict):
        raise refusal(f"{index.name} has no weight_map")
    names = sorted({str(name) for name in weight_map.values()})
    missing = [name for name in names if Path(name).name != name or not (folder / name).is_file()]
    if missing:
        raise refusal(f"{index.name} names {', '.join(missing)}, which the folder does not have")
    return [folder / name for name in names]


def _bytes(file: Path, limit: int) -> bytes:
    try:
        if file.stat().st_size > limit:
            raise refusal(f"{file.name} has more than {limit:,} bytes")
        return file.read_bytes()
    except OSError as error:
        raise refusal(f"{file.name} cannot be read: {error.strerror}") from None


def _json_object(file: Path, limit: int) -> dict[str, Any]:
    try:
        content = json.loads(_bytes(file, limit))
    except ValueError:
        raise refusal(f"{file.name} is no JSON") from None
    if not isinstance(content, dict):
        raise refusal(f"{file.name} is no JSON object")
    return content


def _header(file: Path) -> bytes:
    """The JSON header of a safetensors file."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
            header = stream.read(length) if length <= MAX_HEADER_BYTES else b""
    except OSError as error:
        raise refusal(f"{file.name} cannot be read: {error.strerror}") from None
    if not length or len(header) != length:
        raise refusal(f"{file.name} is no safetensors file, or is cut off")
    return header


def _tensors(file: Path, header: bytes, file_size: int) -> list[TensorInfo]:
    try:
        entries = {name: entry for name, entry in json.loads(header).items() if name != "__metadata__"}
        tensors = [TensorInfo(name, str(entry["dtype"]), _sizes(entry["shape"])) for name, entry in entries.items()]
        end = max((int(entry["data_offsets"][1]) for entry in entries.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise refusal(f"{file.name} has a header that is no safetensors header") from None
    expected = _LENGTH_BYTES + len(header) + end
    if file_size != expected:
        raise refusal(f"{file.name} has {file_size:,} bytes instead of {expected:,}: it is cut off or damaged")
    return tensors


def _sizes(shape: list[Any]) -> tuple[int, ...]:
    if not all(isinstance(size, int) and size >= 0 for size in shape):
        raise ValueError
    return tuple(shape)
