"""What the model config of every engine declares (docs/engine-protocol.md); plain data, no Triton import."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

BACKEND = "python"

# Keys of the model config's `parameters`; every value is a string.
WEIGHTS = "weights"  # folder of a Hugging Face model with safetensors weights
DTYPE = "dtype"  # name of a torch dtype; default float32
THREADS = "threads"  # threads torch computes with; default: all cores

# Keys of a front's. It cannot ask its engine what it holds: the figures are the plan's.
ENGINE_MODEL = "engine_model"  # name of the Triton model that generates
FACTS = "facts"  # JSON: what the front says of it
ROWS = "rows"  # rows that are computed at once; more wait


@dataclass(frozen=True, slots=True)
class TensorDeclaration:
    """One input or output of the model config."""

    name: str
    data_type: Literal["TYPE_STRING", "TYPE_INT32"]
    dims: tuple[int, ...] = (-1,)


@dataclass(frozen=True, slots=True)
class EngineTensor:
    """An input or output of an engine behind a front."""

    name: str
    data_type: str
    dims: tuple[int, ...]
    optional: bool = True

    @property
    def scalar(self) -> bool:
        """One number a row."""
        return self.dims == (1,)


def _strings(*names: str) -> tuple[TensorDeclaration, ...]:
    return tuple(TensorDeclaration(name, "TYPE_STRING") for name in names)


def _integers(*names: str) -> tuple[TensorDeclaration, ...]:
    return tuple(TensorDeclaration(name, "TYPE_INT32") for name in names)


# All inputs are optional in the model config: which are required depends on the action.
INPUTS = (
    *_strings("row_id", "text_input", "sampling_parameters"),
    *_integers("prompt_token_ids", "prompt_lengths", "resume_token_ids", "resume_lengths"),
    *_strings("batch_id", "cancel_row_id"),
)

OUTPUTS = (
    *_strings("row_id", "text_output", "finish_reason", "error", "step_aggregates"),
    *_integers("token_ids", "token_counts", "first_token_index", "input_tokens"),
)
