"""The model config of NVIDIA's vLLM backend as far as it is used; plain data.

Tensors, parameters and files are those of its `model.py` and `utils/request.py`, in the repository
triton-inference-server/vllm_backend, 2026.
"""

from __future__ import annotations

from ..common.contract import EngineTensor

ENGINE_BACKEND = "vllm"

ENGINE_INPUTS = (
    EngineTensor("text_input", "TYPE_STRING", (1,), optional=False),
    EngineTensor("sampling_parameters", "TYPE_STRING", (1,)),
    EngineTensor("stream", "TYPE_BOOL", (1,)),
    EngineTensor("exclude_input_in_output", "TYPE_BOOL", (1,)),
    EngineTensor("return_finish_reason", "TYPE_BOOL", (1,)),
    EngineTensor("return_logprobs", "TYPE_BOOL", (1,)),
    EngineTensor("return_num_input_tokens", "TYPE_BOOL", (1,)),
    EngineTensor("return_num_output_tokens", "TYPE_BOOL", (1,)),
)

ENGINE_OUTPUTS = (
    EngineTensor("text_output", "TYPE_STRING", (-1,)),
    EngineTensor("finish_reason", "TYPE_STRING", (-1,)),
    EngineTensor("logprobs", "TYPE_STRING", (-1,)),
    EngineTensor("num_input_tokens", "TYPE_UINT32", (1,)),
    EngineTensor("num_output_tokens", "TYPE_UINT32", (-1,)),
)

ENGINE_ARGUMENTS = "model.json"
"""Beside the version's other files: arguments of vLLM's `AsyncEngineArgs`."""

ENVIRONMENT_PARAMETER = "EXECUTION_ENV_PATH"
"""Of Triton's Python backend, which runs this one: a folder whose `bin/activate` a shell reads before it starts the
model's process."""
ENVIRONMENT = "environment"
ACTIVATE = f"{ENVIRONMENT}/bin/activate"
