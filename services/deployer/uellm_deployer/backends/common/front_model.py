"""A front as Triton loads it: the tokenizer, and the way to the engine in the same Triton."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from transformers import GenerationConfig

from . import contract
from .engine_model import EngineModel, server_address
from .front import Ask, Behind, Engine, facts_of
from .rows import Limits
from .text import Text
from .triton_model import TritonModel


@dataclass(frozen=True, slots=True)
class Prompts:
    """What requests are read with."""

    text: Text
    vocabulary: int
    context_limit: int

    def encode(self, text: str, *, chat: bool) -> list[int]:
        """Token ids of a prompt, with the chat template applied if `chat` and there is one."""
        return self.text.encode(text, chat=chat)


class FrontModel(TritonModel):
    """Loaded by Triton's Python backend, after the engine."""

    outputs: Sequence[str] = ()
    """Of the engine, by name."""

    @abstractmethod
    def behind(self, ask: Ask, text: Text, end_tokens: Collection[int]) -> Behind:
        """The engine, asked so."""

    def load(self, parameters: dict[str, str]) -> tuple[Prompts, Engine]:
        """Load the tokenizer; the engine is a Triton model of its own."""
        folder, facts = parameters[contract.WEIGHTS], facts_of(parameters[contract.FACTS])
        prompts = Prompts(Text.load(folder), facts["vocabulary"], facts["context_limit_tokens"])
        try:
            generation = GenerationConfig.from_pretrained(folder, local_files_only=True)
        except OSError:  # it has none of its own
            generation = None
        limits = Limits(prompts.text.end_tokens(generation), prompts.context_limit)
        ask = EngineModel(server_address(os.getppid()), parameters[contract.ENGINE_MODEL], self.outputs)
        behind = self.behind(ask, prompts.text, limits.end_tokens)
        return prompts, Engine(limits, prompts.text.decode, facts, int(parameters[contract.ROWS]), behind)
