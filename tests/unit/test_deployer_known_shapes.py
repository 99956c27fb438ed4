"""Published models, from the figures of their configs: parameters as their pages state them."""

from __future__ import annotations

from typing import Any

import pytest
from uellm_deployer.domain.facts import ModelShape, model_shape

LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "tie_word_embeddings": False}


def llama(layers: int, hidden: int, inner: int, heads: int, kv_heads: int, vocabulary: int, context: int) -> dict:
    return LLAMA | {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": context,
    }


LLAMA_2_7B = llama(32, 4096, 11008, 32, 32, 32000, 4096)
LLAMA_2_13B = llama(40, 5120, 13824, 40, 40, 32000, 4096)
CODELLAMA_34B = llama(48, 8192, 22016, 64, 8, 32000, 16384)
LLAMA_3_70B = llama(80, 8192, 28672, 64, 8, 128256, 8192)
MISTRAL_7B = llama(32, 4096, 14336, 32, 8, 32000, 32768) | {"model_type": "mistral", "sliding_window": 4096}
MIXTRAL_8X7B = llama(32, 4096, 14336, 32, 8, 32000, 32768) | {
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "sliding_window": None,
}
GPT_2 = {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "n_layer": 12,
    "n_embd": 768,
    "n_head": 12,
    "n_positions": 1024,
    "vocab_size": 50257,
}
GPT_NEOX_20B = llama(44, 6144, 24576, 64, 64, 50432, 2048) | {"model_type": "gpt_neox"}
QWEN_2_7B = llama(28, 3584, 18944, 28, 4, 152064, 131072) | {"model_type": "qwen2"}
QWEN_3_30B_A3B = llama(48, 2048, 6144, 32, 4, 151936, 40960) | {
    "model_type": "qwen3_moe",
    "head_dim": 128,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
}
GEMMA_7B = llama(28, 3072, 24576, 16, 16, 256000, 8192) | {
    "model_type": "gemma",
    "head_dim": 256,
    "tie_word_embeddings": True,
}
PHI_2 = llama(32, 2560, 10240, 32, 32, 51200, 2048) | {"model_type": "phi"}
FALCON_7B = {
    "architectures": ["FalconForCausalLM"],
    "model_type": "falcon",
    "num_hidden_layers": 32,
    "hidden_size": 4544,
    "num_attention_heads": 71,
    "multi_query": True,
    "parallel_attn": True,
    "vocab_size": 65024,  # and no context limit, as published
}
DEEPSEEK_V2_LITE = llama(27, 2048, 10944, 16, 16, 102400, 163840) | {
    "model_type": "deepseek_v2",
    "kv_lora_rank": 512,
    "q_lora_rank": None,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "num_experts_per_tok": 6,
    "moe_intermediate_size": 1408,
    "first_k_dense_replace": 1,
}

KIB = 1024


def shape_of(config: dict[str, Any]) -> ModelShape:
    return model_shape(config, (), "")


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        pytest.param(LLAMA_2_7B, 6_738_415_616, id="Llama-2-7B"),
        pytest.param(LLAMA_2_13B, 13_015_864_320, id="Llama-2-13B"),
        pytest.param(CODELLAMA_34B, 33_743_970_304, id="CodeLlama-34B"),
        pytest.param(LLAMA_3_70B, 70_553_706_496, id="Llama-3-70B"),
        pytest.param(MISTRAL_7B, 7_241_732_096, id="Mistral-7B"),
        pytest.param(MIXTRAL_8X7B, 46_702_792_704, id="Mixtral-8x7B"),
        pytest.param(GPT_2, 124_439_808, id="GPT-2"),
        pytest.param(GPT_NEOX_20B, 20_554_567_680, id="GPT-NeoX-20B"),
        pytest.param(QWEN_2_7B, 7_615_616_512, id="Qwen2-7B"),
        pytest.param(QWEN_3_30B_A3B, 30_532_122_624, id="Qwen3-30B-A3B"),
        pytest.param(GEMMA_7B, 8_537_680_896, id="Gemma-7B"),
        pytest.param(PHI_2, 2_779_683_840, id="Phi-2"),
        pytest.param(FALCON_7B, 6_921_720_704, id="Falcon-7B"),
        pytest.param(DEEPSEEK_V2_LITE, 15_706_484_224, id="DeepSeek-V2-Lite"),
    ],
)
def test_parameters(config: dict[str, Any], parameters: int) -> None:
    assert shape_of(config).parameter_count == parameters


@pytest.mark.parametrize(
    ("config", "active"),
    [
        pytest.param(MIXTRAL_8X7B, 12.9e9, id="Mixtral-8x7B"),
        pytest.param(QWEN_3_30B_A3B, 3.3e9, id="Qwen3-30B-A3B"),
        pytest.param(DEEPSEEK_V2_LITE, 2.4e9, id="DeepSeek-V2-Lite"),
    ],
)
def test_active_parameters_of_a_mixture_of_experts(config: dict[str, Any], active: float) -> None:
    """As their authors count them: rounded, some with the embedding and some without."""
    facts = shape_of(config).layers.facts(2)
    inside = sum(layer.active_parameters for layer in facts.layers)
    whole = inside + facts.head.parameters + facts.embedding.parameters
    assert inside * 0.98 <= active <= whole * 1.02


@pytest.mark.parametrize(
    ("config", "bytes_per_token"),
    [
        pytest.param(LLAMA_2_7B, 512 * KIB, id="Llama-2-7B"),
        pytest.param(LLAMA_2_13B, 800 * KIB, id="Llama-2-13B"),
        pytest.param(CODELLAMA_34B, 192 * KIB, id="CodeLlama-34B"),
        pytest.param(LLAMA_3_70B, 320 * KIB, id="Llama-3-70B"),
        pytest.param(MIXTRAL_8X7B, 128 * KIB, id="Mixtral-8x7B"),
        pytest.param(DEEPSEEK_V2_LITE, 27 * 576 * 2, id="DeepSeek-V2-Lite"),
    ],
)
def test_cache_in_half_precision(config: dict[str, Any], bytes_per_token: int) -> None:
    shape = shape_of(config)
    assert shape.facts(2).kv_bytes_per_token == bytes_per_token
    assert sum(layer.kv_bytes_per_token for layer in shape.layers.facts(2).layers) == bytes_per_token


@pytest.mark.parametrize(
    ("config", "changes", "gigabytes"),
    [
        pytest.param(LLAMA_2_7B, {"quant_method": "gptq", "bits": 4, "group_size": 128}, 3.90, id="7B-GPTQ"),
        pytest.param(LLAMA_2_7B, {"quant_method": "awq", "bits": 4, "group_size": 128}, 3.89, id="7B-AWQ"),
        pytest.param(LLAMA_2_13B, {"quant_method": "gptq", "bits": 4, "group_size": 128}, 7.26, id="13B-GPTQ"),
        pytest.param(LLAMA_2_13B, {"quant_method": "awq", "bits": 4, "group_size": 128}, 7.25, id="13B-AWQ"),
        pytest.param(
            MIXTRAL_8X7B,
            {"quant_method": "awq", "bits": 4, "group_size": 128, "modules_to_not_convert": ["gate"]},
            24.65,
            id="8x7B-AWQ",
        ),
    ],
)
def test_published_quantised_files(config: dict[str, Any], changes: dict[str, Any], gigabytes: float) -> None:
    """Sizes that TheBloke's model cards state for these checkpoints, to the last digit given."""
    shape = shape_of(config | {"quantization_config": changes})
    assert shape.parameter_count == shape_of(config).parameter_count
    assert shape.layers.weight_bytes(2) / 1e9 == pytest.approx(gigabytes, abs=0.011)


def test_a_stage_holds_its_layers_and_ends() -> None:
    """Cut anywhere, the stages hold the model, and a tied head once more if it lies apart from the embedding."""
    for config, again in ((LLAMA_2_7B, 0), (GEMMA_7B, 256000 * 3072 * 2)):
        facts = shape_of(config).layers.facts(2)
        whole = facts.weight_bytes(0, len(facts.layers), embedding=True, head=True)
        assert whole == 2 * shape_of(config).parameter_count == shape_of(config).facts(2).weight_bytes
        for cut in (1, 13, len(facts.layers) - 1):
            first = facts.weight_bytes(0, cut, embedding=True, head=False)
            second = facts.weight_bytes(cut, len(facts.layers) - cut, embedding=False, head=True)
            assert first + second == whole + again


def test_operations_follow_from_active_parameters_and_context() -> None:
    facts = shape_of(LLAMA_2_7B).layers.facts(2)
    layer = facts.layers[0]
    assert layer.flops_per_token == 2 * layer.parameters == layer.active_weight_bytes
    assert layer.flops_per_context_token == 4 * 4096  # queries with keys, weights with values: each two operations
    assert (facts.embedding.flops_per_token, facts.embedding.active_weight_bytes) == (0, 2 * 4096)
    assert facts.head.flops_per_token == 2 * (32000 * 4096 + 4096)
