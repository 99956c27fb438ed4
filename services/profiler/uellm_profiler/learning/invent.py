"""Have the served model invent prompts (self-instruct): more of what users of a small model might type."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from uellm.v1.query_pb2 import Query
from uellm_profiler.adapters.tokenizer import ServedTokenizer
from uellm_profiler.learning.generators import Generator, Request
from uellm_profiler.learning.prompts import DataError, NearDuplicates, Prompt

EXAMPLES = 6
TEMPERATURE, TOP_P = 0.7, 0.9
"""At a temperature of 1 most of what a 135M-parameter model invents makes no sense."""
LONGEST_EXAMPLE = 240
"""Characters: long examples make a small model ramble."""
LONGEST_TOKENS = 96
FEWEST_WORDS, MOST_WORDS = 3, 70
_HEAD = "A list of different things that people typed to an assistant, one a line.\n\n"


@dataclass(frozen=True, slots=True)
class Invented:
    """What came of it."""

    prompts: list[Prompt]
    asked: int
    """Continuations that were generated."""


def invent(
    seeds: Sequence[Prompt],
    wanted: int,
    tokenizer_folder: Path,
    generator: Generator,
    *,
    most_tries: int,
    seed: int = 0,
    progress: Callable[[int, int], None],
) -> Invented:
    """Invent `wanted` prompts that nearly repeat neither a seed nor each other, in at most `most_tries` tries.

    Each try shows the model six seeds and takes the line that it continues with. `progress(kept, wanted)` is called
    after each. Raises GeneratorError, UnavailableError for a folder without a tokenizer, DataError for too few seeds.
    """
    known = NearDuplicates()
    for prompt in seeds:
        known.add(prompt.text)
    kept: list[Prompt] = []
    asked = 0
    requests = _requests(seeds, most_tries, ServedTokenizer.load(tokenizer_folder), seed)
    # Closing the answers stops what generates them: more may be under way than are still wanted.
    with contextlib.closing(generator.generate(requests)) as answers:
        while len(kept) < wanted and (answer := next(answers, None)) is not None:
            asked += 1
            text = "" if answer.censored else clean(answer.text)
            if text and known.add(text):
                kept.append(Prompt("invented", f"{len(kept) + 1:05}", "invented", text))
            progress(len(kept), wanted)
    return Invented(kept, asked)


def clean(line: str) -> str:
    """The prompt in a line; empty if there is none."""
    text = line.strip().strip('"').strip()
    words = len(text.split())
    fits = FEWEST_WORDS <= words <= MOST_WORDS and text.isascii() and text[0].isalnum()
    # Numbering that goes on, markup and code fences are the list's, not a user's.
    return text if fits and not text[0].isdigit() and "`" not in text and "<" not in text else ""


def _requests(seeds: Sequence[Prompt], tries: int, tokenizer: ServedTokenizer, seed: int) -> Iterator[Request]:
    texts = [prompt.text for prompt in seeds if len(prompt.text) <= LONGEST_EXAMPLE and "\n" not in prompt.text]
    if len(texts) < EXAMPLES:
        raise DataError(f"{EXAMPLES} seeds of at most {LONGEST_EXAMPLE} characters in one line are needed")
    draw = random.Random(seed)  # noqa: S311  (not for secrets)
    for number in range(tries):
        lines = "".join(f"- {text}\n" for text in draw.sample(texts, EXAMPLES))
        encoded = tokenizer.encode(Query(prompt=f"{_HEAD}{lines}-", raw_prompt=True))
        ids = tuple(encoded.token_ids)
        yield Request(f"{number}", ids, TEMPERATURE, TOP_P, 1.0, LONGEST_TOKENS, draw.getrandbits(31), ("\n",))
