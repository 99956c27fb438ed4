"""The front of a TensorRT-LLM engine as Triton loads it."""

from __future__ import annotations

import locale
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

# The embedded interpreter starts in ASCII; the tokenizer is imported after this.
locale.setlocale(locale.LC_ALL, "C.UTF-8")

import triton_python_backend_utils as pb_utils  # noqa: E402
from transformers import GenerationConfig  # noqa: E402
from uellm_backends.common import contract as common  # noqa: E402
from uellm_backends.common.rows import Limits  # noqa: E402
from uellm_backends.common.text import Text  # noqa: E402
from uellm_backends.common.triton_model import TritonModel  # noqa: E402
from uellm_backends.tensorrtllm import contract  # noqa: E402
from uellm_backends.tensorrtllm.engine import Engine, EngineError, facts_of  # noqa: E402


@dataclass(frozen=True, slots=True)
class Prompts:
    """What requests are read with."""

    text: Text
    vocabulary: int
    context_limit: int

    def encode(self, text: str, *, chat: bool) -> list[int]:
        """Token ids of a prompt, with the chat template applied if `chat` and there is one."""
        tokens: list[int] = self.text.encode(text, chat=chat)
        return tokens


class TritonPythonModel(TritonModel):  # type: ignore[misc]
    """Loaded by Triton's Python backend, after the engine."""

    def load(self, parameters: dict[str, str]) -> tuple[Prompts, Engine]:
        """Load the tokenizer; the engine is a Triton model of its own."""
        folder, facts = parameters[common.WEIGHTS], facts_of(parameters[contract.FACTS])
        prompts = Prompts(Text.load(folder), facts["vocabulary"], facts["context_limit_tokens"])
        try:
            generation = GenerationConfig.from_pretrained(folder, local_files_only=True)
        except OSError:  # it has none of its own
            generation = None
        limits = Limits(prompts.text.end_tokens(generation), prompts.context_limit)
        ask = EngineModel(parameters[contract.ENGINE_MODEL])
        return prompts, Engine(limits, prompts.text.decode, facts, int(parameters[contract.ROWS]), ask)


class EngineModel:
    """The TensorRT-LLM model in the same Triton."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, request_id: str, tensors: dict[str, Any]) -> Iterator[Sequence[int]]:
        """As `Ask`."""
        request = pb_utils.InferenceRequest(
            model_name=self._name,
            request_id=request_id,
            requested_output_names=[tensor.name for tensor in contract.ENGINE_OUTPUTS],
            inputs=[pb_utils.Tensor(name, value) for name, value in tensors.items()],
            preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0),
        )
        for response in request.exec(decoupled=True):
            if response.has_error():
                raise EngineError(response.error().message())
            if response.output_tensors():  # the last one may have none
                ids = pb_utils.get_output_tensor_by_name(response, "output_ids").as_numpy()
                length = pb_utils.get_output_tensor_by_name(response, "sequence_length").as_numpy()
                yield ids.reshape(-1)[: int(length.reshape(-1)[0])].tolist()
