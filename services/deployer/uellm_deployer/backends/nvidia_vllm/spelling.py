"""Tokens as text that the engine's tokenizer reads as these tokens: text is all that it takes."""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence

from ..common.detokenize import REPLACEMENT
from ..common.front import EngineError
from ..common.text import Text


class Speller:
    """A copy of the model's tokenizer, which is the engine's too. Safe from any thread."""

    def __init__(self, text: Text) -> None:
        self._text = copy.deepcopy(text)
        self._lock = threading.Lock()  # a fast tokenizer must not encode and decode at once
        self._added = tuple(self._text.encode("", chat=False))  # before any text: mostly a first token

    def spell(self, prompt: Sequence[int], resume: Sequence[int] = ()) -> tuple[str, int]:
        """Text, and how many tokens will be read of it.

        Of an answer that goes on, the text counts, where its tokens are not those that a tokenizer makes of it.

        Raises EngineError if the prompt is read otherwise, or the answer breaks off within a character.
        """
        tokens = (*prompt, *resume)
        with self._lock:
            text, read = self._spelled(tokens)
            if read == tokens:
                return text, len(read)
            if not resume or self._spelled(tuple(prompt))[1] != tuple(prompt):
                raise EngineError(
                    "NVIDIA's vLLM backend takes text, and there is none that is read as these prompt tokens: send "
                    "text, or serve the model with the backend vllm"
                )
            if text.endswith(REPLACEMENT) or self._spelled(read)[0] != text:
                raise EngineError(
                    "NVIDIA's vLLM backend takes text, and the answer breaks off where it is none: it cannot be resumed"
                )
            return text, len(read)

    def _spelled(self, tokens: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
        """The text of tokens, and how that is read."""
        begun = len(self._added) if tokens[: len(self._added)] == self._added else 0
        text = self._text.spelled(tokens[begun:])
        return text, tuple(self._text.encode(text, chat=False))
