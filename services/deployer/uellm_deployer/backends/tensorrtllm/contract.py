"""The model config of TensorRT-LLM's Triton backend as far as it is used; plain data.

The engine's tensors are those that its own `config.pbtxt` declares. With a batch of one each has 1 as first dimension.
"""

from __future__ import annotations

from ..common.contract import EngineTensor

ENGINE_BACKEND = "tensorrtllm"

ENGINE_INPUTS = (
    EngineTensor("input_ids", "TYPE_INT32", (-1,), optional=False),
    EngineTensor("input_lengths", "TYPE_INT32", (1,), optional=False),
    EngineTensor("request_output_len", "TYPE_INT32", (1,), optional=False),
    EngineTensor("end_id", "TYPE_INT32", (1,)),
    EngineTensor("pad_id", "TYPE_INT32", (1,)),
    EngineTensor("temperature", "TYPE_FP32", (1,)),
    EngineTensor("runtime_top_k", "TYPE_INT32", (1,)),
    EngineTensor("runtime_top_p", "TYPE_FP32", (1,)),
    EngineTensor("repetition_penalty", "TYPE_FP32", (1,)),
    EngineTensor("seed", "TYPE_UINT64", (1,)),
    EngineTensor("exclude_input_in_output", "TYPE_BOOL", (1,)),
    EngineTensor("streaming", "TYPE_BOOL", (1,)),
    EngineTensor("stop", "TYPE_BOOL", (1,)),
)

ENGINE_OUTPUTS = (
    EngineTensor("output_ids", "TYPE_INT32", (-1, -1)),
    EngineTensor("sequence_length", "TYPE_INT32", (-1,)),
)

ENGINE_PARAMETERS = {
    "gpt_model_type": "inflight_fused_batching",
    "batch_scheduler_policy": "guaranteed_no_evict",  # a row that has begun is never read again
    "exclude_input_in_output": "true",
    "max_beam_width": "1",
    # The backend asks for these three and does not load without them; an unfilled placeholder is how it is told none.
    "tokenizer_dir": "${tokenizer_dir}",
    "xgrammar_tokenizer_info_path": "${xgrammar_tokenizer_info_path}",
    "guided_decoding_backend": "${guided_decoding_backend}",
}
ENGINE_PATH = "gpt_model_path"
ENGINE_DEVICES = "gpu_device_ids"
ENGINE_CACHE_TOKENS = "max_tokens_in_paged_kv_cache"
