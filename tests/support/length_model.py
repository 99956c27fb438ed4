"""A length model whose every answer can be told, and which computes only when it is let."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Sequence
from pathlib import Path

from uellm_profiler.app.ports import PredictorError
from uellm_profiler.domain.predictor import PredictorInput

from uellm.cost.lengths import LengthDistribution
from uellm.v1.query_pb2 import GenerationParameters

WAIT_SECONDS = 30.0


def expected(content: str, limit: int, version: str = "1") -> LengthDistribution:
    """What `HashModel` of that version says: another distribution for another content, limit or version."""
    ends = zlib.crc32(f"{version}/{content}/{limit}".encode()) % 10_007 / 10_007
    return LengthDistribution((limit,), (1.0,), ends)


def prompt(content: str, tokens: int = 10, limit: int = 100) -> PredictorInput:
    return PredictorInput("m", content, tokens, GenerationParameters(), limit)


class HashModel:
    """Predicts by a hash of the content; fails on prompts that contain `poison`."""

    kind = "fast"
    description = "A hash of the prompt."

    def __init__(self, version: str = "1") -> None:
        self.version = version
        self.batches: list[list[PredictorInput]] = []
        self.threads: set[int] = set()
        self._open = threading.Event()
        self._open.set()
        self._entered = threading.Semaphore(0)

    def predict(self, prompts: Sequence[PredictorInput]) -> list[LengthDistribution]:
        self.batches.append(list(prompts))
        self.threads.add(threading.get_ident())
        self._entered.release()
        assert self._open.wait(WAIT_SECONDS)
        if any("poison" in one.content for one in prompts):
            raise ValueError("poisoned")
        return [expected(one.content, one.limit_tokens, self.version) for one in prompts]

    def hold(self) -> None:
        """Let the next batch wait."""
        self._open.clear()

    def release(self) -> None:
        """Let what waits go on, and what comes."""
        self._open.set()

    def entered(self) -> None:
        """Wait until one more batch has begun."""
        assert self._entered.acquire(timeout=WAIT_SECONDS)


def read_hash_adapter(folder: Path, base: Path | None) -> HashModel:
    """Reads a folder whose file `version` says what it holds."""
    file = folder / "version"
    if not file.is_file():
        raise PredictorError(f"{folder} holds no adapter")
    return HashModel(file.read_text().strip())


def write_hash_adapter(folder: Path, version: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "version").write_text(version)
    return folder
