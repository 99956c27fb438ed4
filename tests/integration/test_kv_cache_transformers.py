"""The cache arithmetic against the caches of tiny random models in transformers: exact, byte by byte."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    DeepseekV2Config,
    DeepseekV3Config,
    DynamicCache,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTBigCodeConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Attention
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention

from tests.support.live_tensors import LiveTensors
from uellm.cost.kv_cache import KvCacheLayout
from uellm.cost.kv_config import CacheForm, layout_from_config
from uellm.cost.memory import activation_shape

WINDOW = 6
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
BASE: dict[str, Any] = IDS | {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}
GPT2_BASE: dict[str, Any] = IDS | {"vocab_size": 64, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 256}
FALCON_BASE = {key: value for key, value in BASE.items() if key != "intermediate_size"}
LATENT = BASE | {
    "kv_lora_rank": 16,
    "q_lora_rank": None,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
FAMILIES: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**BASE, num_key_value_heads=4),
    "llama grouped": LlamaConfig(**BASE, num_key_value_heads=2),
    "llama multi-query": LlamaConfig(**BASE, num_key_value_heads=1),
    "qwen2": Qwen2Config(**BASE, num_key_value_heads=2, use_sliding_window=False, sliding_window=WINDOW),
    "qwen2 windowed": Qwen2Config(
        **BASE, num_key_value_heads=2, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1
    ),
    "qwen3": Qwen3Config(**BASE, num_key_value_heads=2, head_dim=16),
    "mistral": MistralConfig(**BASE, num_key_value_heads=2, sliding_window=None),
    "mistral windowed": MistralConfig(**BASE, num_key_value_heads=2, sliding_window=WINDOW),
    "mixtral": MixtralConfig(**BASE, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2),
    "gemma2": Gemma2Config(**BASE, num_key_value_heads=2, head_dim=16, sliding_window=WINDOW),
    "gemma3": Gemma3TextConfig(
        **BASE | {"num_hidden_layers": 4},
        num_key_value_heads=1,
        head_dim=16,
        sliding_window=WINDOW,
        layer_types=["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
    ),
    "phi3": Phi3Config(**BASE, num_key_value_heads=2),
    "phi3 windowed": Phi3Config(**BASE, num_key_value_heads=2, sliding_window=WINDOW),
    "gpt2": GPT2Config(**GPT2_BASE),
    "gpt_bigcode": GPTBigCodeConfig(**GPT2_BASE, multi_query=True),
    "falcon multi-query": FalconConfig(**FALCON_BASE, multi_query=True, new_decoder_architecture=False),
    "falcon multi-head": FalconConfig(**FALCON_BASE, multi_query=False, new_decoder_architecture=False),
    "falcon new decoder": FalconConfig(**FALCON_BASE, num_kv_heads=2, new_decoder_architecture=True),
    "deepseek_v2": DeepseekV2Config(**LATENT),
    "deepseek_v3": DeepseekV3Config(**LATENT),
}
ROWS = 2
# Passes, in tokens: the prompt below, at and beyond the window, whole and in parts, then the answer token by token.
PASSES = ([1] * 9, [4, 1, 1, 1, 1], [WINDOW - 1, 1, 1], [WINDOW, 1, 1], [20, 1, 1], [7, 8, 1])

families = pytest.mark.parametrize("name", FAMILIES)


def random_model(config: PreTrainedConfig, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, dtype=dtype).train(mode=False)


def config_json(config: PreTrainedConfig) -> dict[str, Any]:
    """What `save_pretrained` writes."""
    return dict(json.loads(config.to_json_string()))


def cached(cache: DynamicCache) -> list[torch.Tensor]:
    return [part for layer in cache.layers for part in (layer.keys, layer.values)]


def run_pass(model: PreTrainedModel, cache: DynamicCache, tokens: int) -> None:
    model(torch.ones(ROWS, tokens, dtype=torch.long), past_key_values=cache, use_cache=True, logits_to_keep=1)


@families
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.inference_mode()
def test_the_cache_holds_what_the_layout_says(name: str, dtype: torch.dtype) -> None:
    model = random_model(FAMILIES[name], dtype)
    layout = layout_from_config(config_json(model.config), dtype.itemsize)
    for passes in PASSES:
        cache, context = DynamicCache(config=model.config), 0
        for new in passes:
            run_pass(model, cache, new)
            context += new
            held = sum(part.numel() * part.element_size() for part in cached(cache))
            assert held == layout.padded_bytes(ROWS, context), (passes, context)
            behind = sum(part.untyped_storage().nbytes() for part in cached(cache))
            assert behind == ROWS * layout.allocated_row_bytes(context, new), (passes, context)


@families
def test_layer_types_that_an_older_config_leaves_out_are_derived(name: str) -> None:
    """Files on the hub from before `layer_types` existed."""
    config = FAMILIES[name]
    if name == "gemma3":  # whose pattern it then names
        config = Gemma3TextConfig(**BASE, head_dim=16, sliding_window=WINDOW, sliding_window_pattern=2)
    content = config_json(config)
    content.pop("layer_types", None)
    if name == "gemma3":
        content["sliding_window_pattern"] = 2
    windows = [getattr(layer, "sliding_window", 0) for layer in DynamicCache(config=config).layers]
    groups = layout_from_config(content, 2).groups
    assert sorted(windows) == sorted(w for g in groups for w in [g.window_tokens] * g.layers)


@pytest.mark.parametrize(
    ("name", "attention"), [("deepseek_v2", DeepseekV2Attention), ("deepseek_v3", DeepseekV3Attention)]
)
@torch.inference_mode()
def test_the_expanded_form_is_what_latent_attention_unpacks(
    name: str, attention: type[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys and values of every head, which a cache in expanded form would keep: as the model itself computes them."""
    model = random_model(FAMILIES[name])
    unpacked: list[torch.Tensor] = []
    expand = attention.expand_kv

    def recorded(self: Any, *parts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        states: tuple[torch.Tensor, torch.Tensor] = expand(self, *parts)
        unpacked.extend(states)
        return states

    monkeypatch.setattr(attention, "expand_kv", recorded)
    cache = DynamicCache(config=model.config)
    run_pass(model, cache, 9)
    unpacked.clear()
    run_pass(model, cache, 1)
    layout = layout_from_config(config_json(model.config), 4, CacheForm.EXPANDED)
    assert sum(part.numel() * 4 for part in unpacked) == layout.padded_bytes(ROWS, 10)


@torch.inference_mode()
def test_falcons_new_decoder_keeps_every_shared_head_repeatedly() -> None:
    """The compact form is one head of each group; the others in transformers' cache are copies of it."""
    model = random_model(FAMILIES["falcon new decoder"])
    cache = DynamicCache(config=model.config)
    run_pass(model, cache, 5)
    distinct = 0
    for part in cached(cache):
        heads = [head for i, head in enumerate(part[0]) if not any(torch.equal(head, old) for old in part[0, :i])]
        distinct += len(heads) * heads[0].numel() * 4
    compact = layout_from_config(config_json(model.config), 4, CacheForm.COMPACT)
    assert distinct == compact.row_bytes(5)


def peak_and_cache(model: PreTrainedModel, tokens: int, *, padded: bool) -> tuple[int, int]:
    """Most bytes of tensors alive in a prefill, besides the weights; and those of them that are the cache."""
    mask = torch.ones(ROWS, tokens, dtype=torch.long)
    mask[0, : 3 if padded else 0] = 0
    cache = DynamicCache(config=model.config)
    with torch.inference_mode(), LiveTensors() as live:
        prompt = torch.ones(ROWS, tokens, dtype=torch.long)
        model(prompt, attention_mask=mask, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return live.peak, sum(part.untyped_storage().nbytes() for part in cached(cache))


@families
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_peak_memory_of_a_prefill_is_bounded_closely(name: str, dtype: torch.dtype) -> None:
    model = random_model(FAMILIES[name], dtype)
    content = config_json(model.config)
    layout: KvCacheLayout = layout_from_config(content, dtype.itemsize)
    activations = activation_shape(content)
    for tokens, padded in ((64, False), (64, True), (160, True)):
        peak, held = peak_and_cache(model, tokens, padded=padded)
        assert held == ROWS * layout.allocated_row_bytes(tokens, tokens)
        bound = held + activations.bytes_of(ROWS, tokens, tokens, dtype.itemsize)
        assert peak <= bound, f"{peak / bound:.2f} of the bound"
        assert bound <= 2 * peak, f"the bound is {bound / peak:.2f} times what was measured"
