"""Lengths that a served model gave: one JSON object a line, appended as they come."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from uellm_profiler.learning.prompts import DataError


@dataclass(frozen=True, slots=True)
class Decoding:
    """How an answer was generated."""

    temperature: float
    """0 is greedy."""
    top_p: float = 1.0
    repetition_penalty: float = 1.0


@dataclass(frozen=True, slots=True)
class Label:
    """The length of one answer."""

    model: str
    """Served model."""
    source: str
    id: str
    """Source and id of the prompt."""
    prompt_tokens: int
    """Chat template included."""
    temperature: float
    top_p: float
    repetition_penalty: float
    sample: int
    """0 for the only answer of a greedy model, else its number among those to the same prompt."""
    max_tokens: int
    """Where the answer was cut at the latest."""
    output_tokens: int
    """The end-of-text token included."""
    censored: bool
    """Whether it was cut, so that its own length is unknown but longer."""

    @property
    def prompt(self) -> tuple[str, str]:
        """Key of the prompt."""
        return self.source, self.id

    @property
    def decoding(self) -> Decoding:
        """How it was generated."""
        return Decoding(self.temperature, self.top_p, self.repetition_penalty)

    @property
    def key(self) -> str:
        """What makes it the same label: a second one of the same key would be a repetition."""
        return label_key(self.model, self.prompt, self.decoding, self.sample)


def label_key(model: str, prompt: tuple[str, str], decoding: Decoding, sample: int) -> str:
    """Key of the label that a run would give."""
    how = f"t{decoding.temperature:g}_p{decoding.top_p:g}_r{decoding.repetition_penalty:g}"
    return "/".join((model, *prompt, how, str(sample)))


def read_labels(file: Path) -> list[Label]:
    """Read a file of labels; a torn last line (the writer was killed) is left out.

    Raises DataError for any other line that is no label.
    """
    labels = []
    lines = file.read_text("utf-8").split("\n")
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            labels.append(Label(**json.loads(line)))
        except (ValueError, TypeError) as error:
            if number == len(lines):  # no newline behind it
                break
            raise DataError(f"{file.name}, line {number}: no label: {error}") from error
    return labels


@contextlib.contextmanager
def appending(file: Path) -> Iterator[Callable[[Label], None]]:
    """Gives what appends a label to the file at once; a torn last line is cut off first."""
    with file.open("ab+") as stream:
        stream.seek(0)
        stream.truncate(stream.read().rfind(b"\n") + 1)

        def append(label: Label) -> None:
            stream.write(json.dumps(asdict(label)).encode() + b"\n")
            stream.flush()

        yield append


def write_labels(file: Path, labels: Iterable[Label]) -> None:
    """Write a whole file."""
    file.write_text("".join(json.dumps(asdict(label)) + "\n" for label in labels), "utf-8")
