"""Prompts and answers of a model outside of vLLM, which sees token ids only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import AutoConfig, GenerationConfig

from ..common.rows import Limits
from ..common.text import Text


@dataclass(frozen=True, slots=True)
class Prompts:
    """What requests are read with."""

    text: Text
    vocabulary: int
    context_limit: int
    end_tokens: frozenset[int]

    @staticmethod
    def load(folder: str, context_tokens: int) -> Prompts:
        """Read tokenizer and configs of a folder; never runs code that lies there."""
        text = Text.load(folder)
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        try:
            generation = GenerationConfig.from_pretrained(folder, local_files_only=True)
        except OSError:  # it has none of its own
            generation = GenerationConfig.from_model_config(config)
        vocabulary = int(config.get_text_config(decoder=True).vocab_size)
        return Prompts(text, vocabulary, context_tokens, text.end_tokens(generation))

    @property
    def limits(self) -> Limits:
        """What ends a row besides its own parameters."""
        return Limits(self.end_tokens, self.context_limit)

    def encode(self, text: str, *, chat: bool) -> list[int]:
        """Token ids of a prompt, with the chat template applied if `chat` and there is one."""
        return self.text.encode(text, chat=chat)

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of the tokens without special ones."""
        return self.text.decode(tokens)
