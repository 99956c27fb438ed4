"""The static engine as Triton loads it."""

from __future__ import annotations

import locale
import os
from dataclasses import replace
from typing import TYPE_CHECKING

# The embedded interpreter starts in ASCII; torch and transformers are imported after this, in `load`.
locale.setlocale(locale.LC_ALL, "C.UTF-8")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from uellm_backends.common.triton_model import TritonModel  # noqa: E402
from uellm_backends.common.visible import show_by_ordinal  # noqa: E402

if TYPE_CHECKING:
    from uellm_backends.hf.engine import Engine
    from uellm_backends.hf.language_model import LanguageModel


class TritonPythonModel(TritonModel):  # type: ignore[misc]
    """Loaded by Triton's Python backend."""

    def load(self, parameters: dict[str, str]) -> tuple[LanguageModel, Engine]:
        """Load the weights with transformers."""
        from uellm_backends.hf.engine import Engine
        from uellm_backends.hf.language_model import LanguageModel, LoadOptions

        options = LoadOptions.from_parameters(parameters)
        names = show_by_ordinal(os.environ, [stage.device for stage in options.stages])
        stages = tuple(replace(stage, device=names[stage.device]) for stage in options.stages)
        model = LanguageModel.load(replace(options, stages=stages))
        return model, Engine(model)
