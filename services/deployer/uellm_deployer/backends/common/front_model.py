"""A front as Triton loads it: the tokenizer, and the way to the engine in the same Triton."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Generator, Sequence
from dataclasses import dataclass
from typing import Any

import triton_python_backend_utils as pb_utils
from transformers import GenerationConfig

from . import contract
from .front import Ask, Behind, Engine, EngineError, Outputs, facts_of
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
        ask = EngineModel(parameters[contract.ENGINE_MODEL], self.outputs)
        behind = self.behind(ask, prompts.text, limits.end_tokens)
        return prompts, Engine(limits, prompts.text.decode, facts, int(parameters[contract.ROWS]), behind)


class EngineModel:
    """Another model in the same Triton."""

    def __init__(self, name: str, outputs: Sequence[str]) -> None:
        self._name = name
        self._outputs = list(outputs)

    def __call__(self, request_id: str, tensors: dict[str, Any]) -> Generator[Outputs]:
        """As `Ask`. Closed early it cancels the request where Triton can, and waits for its end."""
        request = pb_utils.InferenceRequest(
            model_name=self._name,
            request_id=request_id,
            requested_output_names=self._outputs,
            inputs=[pb_utils.Tensor(name, value) for name, value in tensors.items()],
            preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0),
        )
        responses = request.exec(decoupled=True)
        answers = iter(responses)
        try:
            while (response := next(answers, None)) is not None:
                if response.has_error():
                    raise EngineError(response.error().message())
                if response.output_tensors():  # the last one may have none
                    yield {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}
        except GeneratorExit:
            if cancel := getattr(responses, "cancel", None):  # Triton 2.51 has none
                cancel()
            while next(answers, None) is not None:
                pass
            raise
