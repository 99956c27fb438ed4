"""The cache layout read from configs, and its arithmetic."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uellm.cost.kv_cache import KvCacheGroup, KvCacheLayout
from uellm.cost.kv_config import CacheForm, UnknownCacheError, attention_shape, layout_from_config
from uellm.cost.lengths import LengthDistribution, log_normal_cdf
from uellm.cost.memory import PeakMemory, activation_shape
from uellm.v1.stream_pb2 import ModelFacts

CHATGLM2_6B = {
    "model_type": "chatglm",
    "num_layers": 28,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "kv_channels": 128,
    "ffn_hidden_size": 13696,
    "padded_vocab_size": 65024,
    "seq_length": 32768,
}
LLAMA_3_70B = {
    "model_type": "llama",
    "num_hidden_layers": 80,
    "hidden_size": 8192,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "intermediate_size": 28672,
    "vocab_size": 128256,
}
DEEPSEEK_V3 = {
    "model_type": "deepseek_v3",
    "num_hidden_layers": 61,
    "hidden_size": 7168,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "vocab_size": 129280,
}
FALCON_40B = {
    "model_type": "falcon",
    "num_hidden_layers": 60,
    "hidden_size": 8192,
    "num_attention_heads": 128,
    "num_kv_heads": 8,
    "new_decoder_architecture": True,
}
GEMMA_3_4B = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "model_type": "gemma3",
    "text_config": {
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "hidden_size": 2560,
        "sliding_window": 1024,
        "intermediate_size": 10240,
    },
}
QWEN2 = {
    "model_type": "qwen2",
    "num_hidden_layers": 8,
    "hidden_size": 512,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "sliding_window": 128,
    "max_window_layers": 6,
}

groups = st.builds(
    KvCacheGroup, st.integers(1, 9), st.integers(0, 999), st.sampled_from([0, 2, 3, 17, 64]), st.integers(0, 99)
)
layouts = st.builds(KvCacheLayout, st.lists(groups, min_size=1, max_size=3).map(tuple))
contexts = st.integers(0, 400)


def test_chatglm2_by_arithmetic():
    layout = layout_from_config(CHATGLM2_6B, 2)
    assert layout.groups == (KvCacheGroup(28, 2 * 2 * 128 * 2),)
    assert layout.bytes_per_token == 28_672  # 28 KiB: 28 layers, 2 groups of 128, keys and values, half precision
    assert layout.row_bytes(32_768) == 896 << 20
    # A padded batch takes rows times the longest prompt with the longest answer; the waste is what the sum leaves.
    rows = [(100, 20), (30, 200)]
    assert layout.padded_bytes(2, 300) == 2 * 300 * 28_672
    assert layout.padded_bytes(2, 300) - sum(layout.row_bytes(s + n) for s, n in rows) == 250 * 28_672
    assert activation_shape(CHATGLM2_6B).vocabulary == 65_024


def test_chatglm_without_groups_keeps_every_head():
    assert layout_from_config(CHATGLM2_6B | {"multi_query_attention": False}, 2).bytes_per_token == 16 * 28_672


def test_grouped_queries():
    assert layout_from_config(LLAMA_3_70B, 2).bytes_per_token == 327_680
    assert layout_from_config(LLAMA_3_70B | {"num_key_value_heads": None}, 2).bytes_per_token == 8 * 327_680


def test_latent_attention_in_both_forms():
    compressed = layout_from_config(DEEPSEEK_V3, 2)
    assert compressed == layout_from_config(DEEPSEEK_V3, 2, CacheForm.COMPACT)
    assert compressed.bytes_per_token == 61 * (512 + 64) * 2
    assert layout_from_config(DEEPSEEK_V3, 2, CacheForm.EXPANDED).bytes_per_token == 61 * 128 * (192 + 128) * 2


def test_falcon_in_both_forms():
    assert layout_from_config(FALCON_40B, 2, CacheForm.COMPACT).bytes_per_token == 60 * 2 * 8 * 64 * 2
    assert layout_from_config(FALCON_40B, 2).bytes_per_token == 60 * 2 * 128 * 64 * 2
    old = FALCON_40B | {"new_decoder_architecture": False, "num_kv_heads": 128}
    assert layout_from_config(old, 2).bytes_per_token == 60 * 2 * 64 * 2
    assert layout_from_config(old | {"multi_query": False}, 2).bytes_per_token == 60 * 2 * 128 * 64 * 2


def test_what_a_config_leaves_out_is_the_models_default():
    # Five layers with a window, then one without; 4 heads of 256 are Gemma 3's default.
    layer = 2 * 4 * 256 * 2
    assert layout_from_config(GEMMA_3_4B, 2).groups == (KvCacheGroup(29, layer, 1024), KvCacheGroup(5, layer))


def test_a_window_that_is_switched_off_is_none():
    assert attention_shape(QWEN2).windows == (0,) * 8
    assert attention_shape(QWEN2 | {"use_sliding_window": True}).windows == (0,) * 6 + (128,) * 2


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"model_type": "mamba2", "state_size": 128}, "mamba2"),
        (LLAMA_3_70B | {"mamba_d_state": 128}, "state-space"),
        (LLAMA_3_70B | {"layer_types": ["linear_attention"] * 80}, "linear_attention"),
        (LLAMA_3_70B | {"layer_types": ["full_attention"]}, "names 1 layers"),
        (LLAMA_3_70B | {"sliding_window": 512}, "without `layer_types`"),
        (LLAMA_3_70B | {"attention_chunk_size": 512}, "chunks"),
        (LLAMA_3_70B | {"num_key_value_heads": "8"}, "num_key_value_heads"),
        (LLAMA_3_70B | {"num_hidden_layers": None}, "num_hidden_layers"),
        (LLAMA_3_70B | {"num_attention_heads": 60}, "not divisible"),
        (LLAMA_3_70B | {"kv_lora_rank": 512}, "latent"),
        (LLAMA_3_70B | {"model_type": "mistral", "sliding_window": 1}, "at least 2"),
        (DEEPSEEK_V3 | {"index_topk": 2048}, "index"),
        (DEEPSEEK_V3 | {"qk_rope_head_dim": None}, "qk_rope_head_dim"),
        (QWEN2 | {"num_kv_shared_layers": 2}, "share"),
    ],
)
def test_what_is_not_understood_is_said(config: dict[str, Any], says: str):
    with pytest.raises(UnknownCacheError) as caught:
        layout_from_config(config, 2)
    assert says in str(caught.value)


def test_a_group_of_nonsense_is_refused():
    for numbers in ((0, 1), (1, -1), (1, 1, 1)):
        with pytest.raises(ValueError, match="a"):
            KvCacheGroup(*numbers)


@given(layouts, contexts, contexts)
def test_more_tokens_never_take_less(layout: KvCacheLayout, one: int, other: int):
    low, high = sorted((one, other))
    for measure in (
        layout.row_bytes,
        layout.paged_row_bytes,
        lambda tokens: layout.allocated_row_bytes(tokens, tokens),
        lambda tokens: layout.buffered_bytes(3, tokens),
    ):
        assert measure(low) <= measure(high)


@given(layouts, contexts)
def test_a_window_caps_what_a_row_takes(layout: KvCacheLayout, context: int):
    full = KvCacheLayout(tuple(KvCacheGroup(g.layers, g.bytes_per_token, 0, g.fixed_bytes) for g in layout.groups))
    fixed = layout.row_bytes(0)
    assert full.row_bytes(context) == fixed + context * layout.bytes_per_token
    assert layout.row_bytes(context) <= full.row_bytes(context)
    capped = fixed + sum(
        g.layers * g.bytes_per_token * (min(context, g.window_tokens - 1) if g.window_tokens else context)
        for g in layout.groups
    )
    assert layout.row_bytes(context) == capped


@given(layouts, st.integers(1, 16), contexts)
def test_rows_add_up(layout: KvCacheLayout, rows: int, context: int):
    assert layout.padded_bytes(rows, context) == rows * layout.row_bytes(context)
    assert layout.buffered_bytes(rows, context) == rows * layout.buffered_bytes(1, context)
    assert layout.buffered_bytes(rows, context) >= layout.padded_bytes(rows, context)
    assert layout.paged_bytes([context] * rows) == rows * layout.paged_row_bytes(context)


@given(layouts, st.lists(st.integers(1, 60), min_size=1, max_size=8))
def test_what_a_cache_holds_is_allocated(layout: KvCacheLayout, passes: list[int]):
    context = 0
    for new in passes:
        context += new
        assert (
            layout.row_bytes(context)
            <= layout.allocated_row_bytes(context, new)
            <= layout.allocated_row_bytes(context, context)
        )


@given(
    st.integers(2, 70), st.integers(1, 17), st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(1, 120)
)
def test_pages_of_a_window_against_page_tables(window: int, page: int, prefill: list[int], answer: int):
    """Plays a paged engine's passes: pages wholly before what the pass may see are given back before it."""
    layout = KvCacheLayout((KvCacheGroup(1, 1, window),))
    computed = most = 0
    for new in [*prefill, *[1] * answer]:
        given_back = max(0, computed - window + 1) // page
        computed += new
        most = max(most, -(-computed // page) - given_back)
    bound = layout.paged_row_bytes(computed, page, max(prefill))
    assert most * page <= bound
    if set(prefill) == {1}:
        assert most * page == bound


def test_pages_are_whole():
    layout = layout_from_config(LLAMA_3_70B, 2)
    assert layout.paged_row_bytes(1) == layout.paged_row_bytes(16) == 16 * 327_680
    assert layout.paged_bytes([17, 16], 16) == 48 * 327_680


def test_a_batch_outgrows_its_rows_quantiles_more_often():
    layout = layout_from_config(CHATGLM2_6B, 2)
    length = LengthDistribution.from_cdf(log_normal_cdf(4.0, 0.8), 2048)
    alone = layout.padded_quantile_bytes([50], [length], 0.9)
    batch = layout.padded_quantile_bytes([50] * 16, [length] * 16, 0.9)
    assert alone == layout.row_bytes(50 + int(length.quantile(0.9)) + 1)
    # Sixteen rows all stay under one length with probability 0.9 if each does with 0.9 ** (1 / 16).
    assert batch == 16 * layout.row_bytes(50 + int(length.quantile(0.9 ** (1 / 16))) + 1)
    assert batch > 16 * alone
    assert layout.padded_quantile_bytes([50], [length], 1.0) == layout.row_bytes(50 + 2048)


@given(layouts)
def test_a_record_carries_the_layout(layout: KvCacheLayout):
    facts = ModelFacts(kv_bytes_per_token=layout.bytes_per_token, kv_cache_layers=layout.to_proto())
    assert KvCacheLayout.from_facts(ModelFacts.FromString(facts.SerializeToString())) == layout


def test_a_record_without_layers_means_full_attention():
    layout = KvCacheLayout.from_facts(ModelFacts(kv_bytes_per_token=46_080))
    assert layout.row_bytes(1000) == 46_080_000


def test_peak_memory_adds_up():
    layout = layout_from_config(LLAMA_3_70B, 2)
    activations = activation_shape(LLAMA_3_70B)
    one, two = (activations.bytes_of(rows, 512, 2048, 2) for rows in (1, 2))
    assert two == 2 * one
    assert activations.bytes_of(1, 1, 2048, 2) < one < activations.bytes_of(1, 2048, 2048, 2)
    peak = PeakMemory(140 << 30, layout.padded_bytes(4, 4096), one, 1 << 30)
    assert peak.total == (141 << 30) + 4 * 4096 * 327_680 + one
