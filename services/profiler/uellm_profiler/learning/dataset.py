"""Labelled prompts, split once and for all into training, validation and test."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from uellm_profiler.learning.examples import Example
from uellm_profiler.learning.labels import Label
from uellm_profiler.learning.prompts import Prompt, without_near_duplicates

Part = Literal["train", "validation", "test"]
TEST_SHARE, VALIDATION_SHARE = 0.28, 0.07


@dataclass(frozen=True, slots=True)
class LabelledPrompt:
    """A prompt and all its labels."""

    prompt: Prompt
    labels: tuple[Label, ...]

    @property
    def examples(self) -> list[Example]:
        """One example a label."""
        return [Example(self.prompt, label) for label in self.labels]


def part_of(prompt: tuple[str, str]) -> Part:
    """Where a prompt belongs: by a hash of source and id, so that more prompts leave the others where they are."""
    digest = hashlib.sha256("/".join(("split", *prompt)).encode()).digest()
    share = int.from_bytes(digest[:8], "big") / 2**64
    if share < TEST_SHARE:
        return "test"
    return "validation" if share < TEST_SHARE + VALIDATION_SHARE else "train"


def label_prompts(prompts: Sequence[Prompt], labels: Iterable[Label]) -> list[LabelledPrompt]:
    """Prompts that have labels, near-duplicates left out (the first stays), with their labels."""
    by_prompt: defaultdict[tuple[str, str], list[Label]] = defaultdict(list)
    for label in labels:
        by_prompt[label.prompt].append(label)
    kept = without_near_duplicates([prompt for prompt in prompts if prompt.key in by_prompt])
    return [LabelledPrompt(prompt, tuple(sorted(by_prompt[prompt.key], key=lambda one: one.key))) for prompt in kept]


def select(labelled: Iterable[LabelledPrompt], part: Part) -> list[LabelledPrompt]:
    """Those of one part."""
    return [one for one in labelled if part_of(one.prompt.key) == part]
