"""Prompts to label, and which of them say the same."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SHINGLE_WORDS = 3
NEAR_DUPLICATE = 0.6
"""Jaccard similarity of the shingles of two prompts from which they count as the same."""
_COMMON_SHINGLE = 60
"""A shingle in more prompts than this says nothing about any two of them."""
_WORD = re.compile(r"[^\W_]+")


class DataError(ValueError):
    """A file of prompts or labels holds something else; the message names the line."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt of a user."""

    source: str
    """Collection it belongs to."""
    id: str
    """Unique within its source."""
    family: str
    """Kind of task."""
    text: str

    @property
    def key(self) -> tuple[str, str]:
        """Source and id."""
        return self.source, self.id


def read_prompts(file: Path, source: str | None = None) -> list[Prompt]:
    """Read JSON lines with `prompt` (or `turns`, of which the first is taken) and `id`, `uid` or `question_id`.

    `source` is by default the file's name without `prompts_`. Raises DataError for a line that is none.
    """
    name = source or file.stem.removeprefix("prompts_")
    prompts = []
    for number, line in enumerate(file.read_text("utf-8").splitlines(), 1):
        try:
            prompts.append(_parse(name, json.loads(line)))
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise DataError(f"{file.name}, line {number}: no prompt: {error!r}") from error
    return prompts


def _parse(source: str, row: dict[str, Any]) -> Prompt:
    text = row["prompt"] if "prompt" in row else row["turns"][0]
    identity = next(row[key] for key in ("id", "uid", "question_id") if key in row)
    return Prompt(source, str(identity), str(row.get("family", row.get("category", source))), str(text))


def write_prompts(file: Path, prompts: Iterable[Prompt]) -> None:
    """Write what `read_prompts` reads."""
    lines = []
    for prompt in prompts:
        row = asdict(prompt)
        del row["source"]
        row["prompt"] = row.pop("text")
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    file.write_text("".join(lines), "utf-8")


def shingles(text: str) -> frozenset[str]:
    """Runs of three words, in small letters; of a shorter text the whole of it."""
    words = _WORD.findall(text.lower())
    if len(words) <= SHINGLE_WORDS:
        return frozenset([" ".join(words) or text.strip()])
    return frozenset(" ".join(words[i : i + SHINGLE_WORDS]) for i in range(len(words) - SHINGLE_WORDS + 1))


class NearDuplicates:
    """Finds prompts that say nearly the same as one before."""

    def __init__(self, threshold: float = NEAR_DUPLICATE) -> None:
        self._threshold = threshold
        self._shingles: list[frozenset[str]] = []
        self._holders: defaultdict[str, list[int]] = defaultdict(list)

    def add(self, text: str) -> bool:
        """Whether the text is new; if it is, later ones are compared with it."""
        mine = shingles(text)
        shared: defaultdict[int, int] = defaultdict(int)
        for shingle in mine:
            holders = self._holders[shingle]
            if len(holders) <= _COMMON_SHINGLE:
                for index in holders:
                    shared[index] += 1
        for index, count in shared.items():
            if count / (len(mine) + len(self._shingles[index]) - count) >= self._threshold:
                return False
        for shingle in mine:
            self._holders[shingle].append(len(self._shingles))
        self._shingles.append(mine)
        return True


def without_near_duplicates(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts in order, without those that nearly repeat one before."""
    known = NearDuplicates()
    return [prompt for prompt in prompts if known.add(prompt.text)]
