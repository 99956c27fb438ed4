"""The tokenizer of a model, and the tokens that end its answers."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase


class Text:
    """Between text and tokens. `encode` and `decode` may run in two threads at once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._decoder = copy.deepcopy(tokenizer)  # a fast tokenizer must not encode and decode at once

    @staticmethod
    def load(folder: str) -> Text:
        """The tokenizer of a folder; never runs code that lies there."""
        return Text(AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False))

    def encode(self, text: str, *, chat: bool) -> list[int]:
        """Token ids of a prompt, with the chat template (one user message) applied if `chat` and there is one."""
        if chat and self._tokenizer.chat_template:
            messages = [{"role": "user", "content": text}]
            encoded: Any = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
        else:
            encoded = self._tokenizer(text)
        return list(encoded["input_ids"])

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of the tokens without special ones."""
        return str(self._decoder.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def spelled(self, tokens: Sequence[int]) -> str:
        """Text of the tokens with special ones, which a tokenizer can read again."""
        return str(self._decoder.decode(list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def end_tokens(self, generation: GenerationConfig | None) -> frozenset[int]:
        """The tokens that end an answer: as the model's generation config says, else the tokenizer's."""
        configured = getattr(generation, "eos_token_id", None)
        if configured is None:
            configured = self._tokenizer.eos_token_id
        if configured is None:
            return frozenset()
        return frozenset(configured if isinstance(configured, list) else [configured])
