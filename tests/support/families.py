"""Tiny configs of every family that the deployer knows, with its variants: model type and values by name."""

from __future__ import annotations

from typing import Any

BASE: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GROUPED = BASE | {"num_key_value_heads": 2}
GPT2: dict[str, Any] = {"vocab_size": 96, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}
FALCON = {key: value for key, value in BASE.items() if key != "intermediate_size"}
OPT = FALCON | {"ffn_dim": 80}
QWEN_MOE = GROUPED | {
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 40,
}
DEEPSEEK = BASE | {
    "kv_lora_rank": 16,
    "q_lora_rank": 12,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
    "n_routed_experts": 4,
    "n_shared_experts": 2,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", BASE),
    "llama grouped, tied": ("llama", GROUPED | {"tie_word_embeddings": True}),
    "llama multi-query, biased": ("llama", BASE | {"num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True}),
    "llama with wide heads": ("llama", GROUPED | {"head_dim": 24}),
    "granite": ("granite", GROUPED),
    "mistral": ("mistral", GROUPED | {"sliding_window": 6}),
    "qwen2": ("qwen2", GROUPED),
    "qwen2 windowed above": (
        "qwen2",
        GROUPED | {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    ),
    "qwen3": ("qwen3", GROUPED | {"head_dim": 16}),
    "gemma": ("gemma", GROUPED | {"head_dim": 16}),
    "gemma2": ("gemma2", GROUPED | {"head_dim": 16, "sliding_window": 6}),
    "gemma3": ("gemma3_text", GROUPED | {"head_dim": 16, "sliding_window": 6, "num_hidden_layers": 7}),
    "phi": ("phi", BASE),
    "phi with norms of heads": ("phi", GROUPED | {"qk_layernorm": True}),
    "phi3": ("phi3", GROUPED),
    "gpt2": ("gpt2", GPT2),
    "gpt2, untied, with a width": ("gpt2", GPT2 | {"n_inner": 50, "tie_word_embeddings": False}),
    "gpt_bigcode": ("gpt_bigcode", GPT2 | {"multi_query": True}),
    "gpt_bigcode multi-head": ("gpt_bigcode", GPT2 | {"multi_query": False}),
    "gpt_neox": ("gpt_neox", BASE),
    "gpt_neox without biases": ("gpt_neox", BASE | {"attention_bias": False}),
    "opt": ("opt", OPT),
    "opt, narrow embedding, norms behind": ("opt", OPT | {"word_embed_proj_dim": 16, "do_layer_norm_before": False}),
    "opt without biases": ("opt", OPT | {"enable_bias": False, "layer_norm_elementwise_affine": False}),
    "falcon": ("falcon", FALCON),
    "falcon multi-head, serial": ("falcon", FALCON | {"multi_query": False, "parallel_attn": False, "bias": True}),
    "falcon new decoder": ("falcon", FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon new decoder, one norm": (
        "falcon",
        FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
    ),
    "starcoder2": ("starcoder2", GROUPED),
    "starcoder2 without biases": ("starcoder2", GROUPED | {"use_bias": False}),
    "mixtral": ("mixtral", GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2_moe": ("qwen2_moe", QWEN_MOE),
    "qwen2_moe with odd layers": ("qwen2_moe", QWEN_MOE | {"mlp_only_layers": [1]}),
    "qwen3_moe, every other layer": ("qwen3_moe", QWEN_MOE | {"decoder_sparse_step": 2, "head_dim": 16}),
    "deepseek_v2": ("deepseek_v2", DEEPSEEK),
    "deepseek_v2 lite": ("deepseek_v2", DEEPSEEK | {"q_lora_rank": None}),
    "deepseek_v3": ("deepseek_v3", DEEPSEEK),
}
