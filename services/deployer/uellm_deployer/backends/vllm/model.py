"""The continuous engine as Triton loads it."""

from __future__ import annotations

import importlib.util
import locale
import os
import sys
from typing import TYPE_CHECKING

# The embedded interpreter starts in ASCII; torch and vLLM are imported after this, in `load`.
locale.setlocale(locale.LC_ALL, "C.UTF-8")

from uellm_backends.common.triton_model import TritonModel  # noqa: E402
from uellm_backends.vllm.contract import NOT_INSTALLED  # noqa: E402
from uellm_backends.vllm.options import EngineOptions, prepare  # noqa: E402

if TYPE_CHECKING:
    from uellm_backends.vllm.engine import Engine
    from uellm_backends.vllm.prompts import Prompts


class TritonPythonModel(TritonModel):  # type: ignore[misc]
    """Loaded by Triton's Python backend."""

    def load(self, parameters: dict[str, str]) -> tuple[Prompts, Engine]:
        """Load the weights with vLLM; raises ImportError if it is not there."""
        if importlib.util.find_spec("vllm") is None:
            raise ImportError(
                f"{NOT_INSTALLED} ({sys.prefix}): make one with `make vllm-env` and start Triton with its bin "
                "folder first on PATH, as `uellm up --engine vllm` does"
            )
        options = EngineOptions.from_parameters(parameters)
        prepare(os.environ, options)
        from uellm_backends.vllm.core import Core
        from uellm_backends.vllm.engine import Engine
        from uellm_backends.vllm.prompts import Prompts

        prompts = Prompts.load(options.weights, options.context_tokens)
        return prompts, Engine(prompts.limits, prompts.decode, lambda: Core(options))
