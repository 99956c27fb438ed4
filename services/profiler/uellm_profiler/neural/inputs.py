"""What the network reads of a query: token ids of its own tokenizer, and a few numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from uellm_profiler.domain.predictor import PredictorInput
from uellm_profiler.neural.errors import AdapterError

NUMBERS = 5
"""Numbers of one query."""


def numbers(prompt: PredictorInput) -> tuple[float, ...]:
    """Prompt length and generation parameters, each of about the size of 1."""
    generation = prompt.generation
    return (
        math.log1p(prompt.prompt_tokens) / 5,
        generation.temperature,
        float(generation.temperature == 0),
        generation.top_p,
        5 * math.log(generation.repetition_penalty),
    )


@dataclass(frozen=True, slots=True)
class Framing:
    """How a prompt is put to the backbone."""

    before: str
    after: str
    """Text around the prompt, in the backbone's own special tokens."""
    head_tokens: int
    tail_tokens: int
    """Of a longer prompt only its first and last tokens are read: the request stands at either end."""


CHAT = Framing("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", 160, 96)
"""For SmolLM2, without the system message that it would be served with: it is the same every time."""
ENCODER = Framing("[CLS]", "[SEP]", 160, 94)
"""For MiniLM, which was trained on 256 tokens."""


class PromptEncoder:
    """Encodes prompts for a backbone."""

    def __init__(self, tokenizer: Tokenizer, framing: Framing) -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._tokenizer = tokenizer
        self._framing = framing
        self._before, self._after = (self._plain([text])[0] for text in (framing.before, framing.after))

    @classmethod
    def load(cls, folder: Path, framing: Framing) -> PromptEncoder:
        """Read `tokenizer.json`; raises AdapterError."""
        try:
            return cls(Tokenizer.from_file(str(folder / "tokenizer.json")), framing)
        except Exception as error:  # the library's errors have no class of their own
            raise AdapterError(f"{folder / 'tokenizer.json'} can't be read: {error}") from error

    def encode(self, contents: Sequence[str]) -> list[list[int]]:
        """Token ids of each prompt, framed and cut."""
        head, tail = self._framing.head_tokens, self._framing.tail_tokens
        # A token holds at least one character of what is left of it, so that far more than needed is not read at all.
        most = 32 * (head + tail)
        short = [text if len(text) <= most else text[: most // 2] + text[-most // 2 :] for text in contents]
        ids = [one if len(one) <= head + tail else one[:head] + one[-tail:] for one in self._plain(short)]
        return [[*self._before, *one, *self._after] for one in ids]

    def _plain(self, texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
