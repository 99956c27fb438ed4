"""The front of a TensorRT-LLM engine as Triton loads it."""

from __future__ import annotations

import locale
from collections.abc import Collection

# The embedded interpreter starts in ASCII; the tokenizer is imported after this.
locale.setlocale(locale.LC_ALL, "C.UTF-8")

from uellm_backends.common.front import Ask  # noqa: E402
from uellm_backends.common.front_model import FrontModel  # noqa: E402
from uellm_backends.common.text import Text  # noqa: E402
from uellm_backends.tensorrtllm.contract import ENGINE_OUTPUTS  # noqa: E402
from uellm_backends.tensorrtllm.engine import TensorRtLlm  # noqa: E402


class TritonPythonModel(FrontModel):  # type: ignore[misc]
    """Loaded by Triton's Python backend, after the engine."""

    outputs = tuple(tensor.name for tensor in ENGINE_OUTPUTS)

    def behind(self, ask: Ask, text: Text, end_tokens: Collection[int]) -> TensorRtLlm:  # noqa: ARG002
        """As `FrontModel`."""
        return TensorRtLlm(ask, end_tokens)
