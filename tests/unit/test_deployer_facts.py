"""Model facts from config.json and safetensors headers."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from uellm_deployer.adapters.model_folder import read_shape
from uellm_deployer.domain.facts import model_shape
from uellm_deployer.domain.tensors import TensorInfo

from tests.support.deployer import CONFIG, safetensors_bytes
from tests.support.families import CONFIGS
from tests.support.quantised import SCHEMES
from uellm.cost.kv_cache import KvCacheGroup
from uellm.rpc.errors import InvalidArgumentError

WEIGHTS = {
    "model.embed_tokens.weight": ("F32", [8, 4], 128),
    **{f"model.layers.{layer}.mlp.weight": ("BF16", [3, 5], 30) for layer in range(30)},
    "model.layers.0.mask": ("BOOL", [7], 7),
}
MORE = ("head_dim", "mlp_only_layers", "layer_types", "decoder_sparse_step", "text_config", "tie_word_embeddings")
LAYERS = [TensorInfo(f"model.layers.{layer}.mlp.weight", "BF16", (3, 5)) for layer in range(30)]


def write(folder: Path, config: dict[str, Any] | None = None, weights: dict[str, Any] | None = None) -> Path:
    (folder / "config.json").write_text(json.dumps(config or CONFIG))
    (folder / "model.safetensors").write_bytes(safetensors_bytes(weights or WEIGHTS))
    return folder


def refused(folder: Path | str) -> str:
    with pytest.raises(InvalidArgumentError) as caught:
        read_shape(str(folder))
    assert caught.value.violations[0].field == "spec.weights_path"
    return caught.value.violations[0].description


def test_a_folder_is_read(tmp_path):
    shape = read_shape(str(write(tmp_path)))
    assert (shape.attention.kv_heads, shape.attention.head_size, shape.vocabulary_size) == (3, 64, 49152)
    assert shape.parameter_count == 8 * 4 + 30 * 3 * 5  # booleans are no parameters
    facts = shape.facts(4)
    assert (facts.layers, facts.attention_heads, facts.weight_bytes) == (30, 9, 482 * 4)
    assert facts.kv_bytes_per_token == 46_080  # as the engine measures it for SmolLM2-135M in float32


def test_the_gpt2_family_has_other_names():
    config = {
        "architectures": ["GPT2LMHeadModel"],
        "n_layer": 12,
        "n_embd": 768,
        "n_head": 12,
        "n_positions": 1024,
        "vocab_size": 50257,
    }
    shape = model_shape(config, [TensorInfo(f"h.{layer}.weight", "F32", (2, 2)) for layer in range(12)], "")
    assert (shape.attention.kv_heads, shape.attention.head_size, shape.hidden_size) == (12, 64, 768)


@pytest.mark.parametrize(("tied", "count"), [(True, 32), (False, 64)])
def test_a_tied_head_that_is_stored_counts_once(tied, count):
    tensors = [TensorInfo("model.embed_tokens.weight", "F32", (8, 4)), TensorInfo("lm_head.weight", "F32", (8, 4))]
    shape = model_shape(CONFIG | {"tie_word_embeddings": tied}, tensors + LAYERS, "")
    assert shape.parameter_count == count + 450


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"architectures": ["T5ForConditionalGeneration"]}, "decoder-only"),
        ({"architectures": ["BertModel"]}, "decoder-only"),
        ({"architectures": None}, "architectures"),
        ({"is_encoder_decoder": True}, "decoder-only"),
        ({"kv_lora_rank": 512}, "latent attention"),
        ({"model_type": "mamba", "state_size": 16}, "recurrent"),
        ({"layer_types": ["chunked_attention"] * 30, "attention_chunk_size": 8}, "chunked_attention"),
        ({"sliding_window": 64}, "layer_types"),
        ({"quantization_config": {"quant_method": "hqq"}}, "quant_method"),
        ({"layer_types": ["full_attention", "linear_attention"]}, "linear_attention"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"num_hidden_layers": 10**9}, "no model has"),
        ({"layer_types": 7}, "layer_types"),
        ({"num_hidden_layers": "30"}, "num_hidden_layers"),
        ({"max_position_embeddings": None}, "max_position_embeddings"),
        ({"num_attention_heads": 7}, "divisible"),
    ],
)
def test_what_is_not_understood_is_refused(tmp_path, change, says):
    assert says in refused(write(tmp_path, CONFIG | change))


def test_a_folder_must_be_whole(tmp_path):
    assert "no folder" in refused(tmp_path / "none")
    assert "absolute" in refused("models/smol")
    assert "config.json" in refused(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    assert "no JSON object" in refused(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    assert "neither" in refused(tmp_path)


@given(st.data())
def test_weights_cut_anywhere_are_refused(tmp_path_factory, data):
    folder = write(tmp_path_factory.mktemp("cut"))
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    refused(folder)


@pytest.mark.parametrize("change", [{"shape": ["8", 4]}, {"shape": [-8, 4]}, {"shape": 8}, {"data_offsets": [0, "x"]}])
def test_headers_with_nonsense_are_refused(tmp_path, change):
    header = {"model.embed_tokens.weight": {"dtype": "F32", "shape": [8, 4], "data_offsets": [0, 128]} | change}
    text = json.dumps(header).encode()
    write(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(128))
    assert "header" in refused(tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 9) | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)


@given(st.data())
def test_nonsense_in_a_config_is_understood_or_refused(data):
    kind, values = CONFIGS[data.draw(st.sampled_from(sorted(CONFIGS)))]
    section = data.draw(st.none() | st.sampled_from([scheme for scheme, _ in SCHEMES.values()]))
    config = {"architectures": ["TheirForCausalLM"], "model_type": kind, **values, "quantization_config": section}
    for key in data.draw(st.lists(st.sampled_from(sorted({*config, *MORE})), min_size=1, max_size=2)):
        config[key] = data.draw(JSON)
    if section and data.draw(st.booleans()):
        config["quantization_config"] = section | {data.draw(st.sampled_from(sorted(section))): data.draw(JSON)}
    with contextlib.suppress(InvalidArgumentError):
        assert model_shape(config, (), "").parameter_count > 0


def test_an_index_names_the_files(tmp_path):
    write(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "model-1.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    assert read_shape(str(tmp_path)).parameter_count == 482
    for outside in ("model-2.safetensors", "../secret.safetensors", "/etc/passwd"):
        index.write_text(json.dumps({"weight_map": {"a": outside}}))
        assert "does not have" in refused(tmp_path)


def test_other_contents_have_another_fingerprint(tmp_path):
    before = read_shape(str(write(tmp_path)))
    assert read_shape(str(tmp_path)) == before
    assert read_shape(str(write(tmp_path, CONFIG | {"rope_theta": 1}))).fingerprint != before.fingerprint


def test_a_sliding_window_and_latent_attention_are_understood():
    gemma = CONFIG | {"model_type": "gemma2", "head_dim": 64, "sliding_window": 512}
    facts = model_shape(gemma, LAYERS, "").facts(2)
    assert facts.kv_cache.groups == (KvCacheGroup(15, 2 * 3 * 64 * 2, 512), KvCacheGroup(15, 2 * 3 * 64 * 2))
    latent = {"model_type": "deepseek_v3", "kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128}
    facts = model_shape(CONFIG | latent | {"v_head_dim": 128}, LAYERS, "").facts(2)
    assert facts.kv_bytes_per_token == 30 * (512 + 64) * 2


def test_a_tied_head_that_the_engine_repacks_takes_memory_but_is_no_parameter():
    shape = model_shape(CONFIG, (), "")
    plain, apart = shape.facts(4), shape.facts(4, head_copies=1)
    assert apart.parameter_count == plain.parameter_count
    assert apart.weight_bytes - plain.weight_bytes == CONFIG["vocab_size"] * CONFIG["hidden_size"] * 4
    assert (shape.tied_head, replace(shape, tied_head=False).facts(4)) == (True, plain)


@pytest.mark.parametrize("fused", [True, False])
def test_experts_are_told_by_their_names_or_by_having_a_matrix_each(fused):
    """Of an unknown family, whose checkpoint is there: 2 of 4 experts compute a token."""
    config = CONFIG | {"model_type": "theirs", "num_hidden_layers": 1, "num_experts": 4, "num_experts_per_tok": 2}
    apart = [TensorInfo(f"model.layers.0.mlp.experts.{expert}.up.weight", "F16", (6, 5)) for expert in range(4)]
    together = [TensorInfo("model.layers.0.moe.input_linear.weight", "F16", (4, 6, 5))]
    router = [TensorInfo("model.layers.0.mlp.gate.weight", "F16", (4, 5))]
    (layer,) = model_shape(config, router + (together if fused else apart), "").layers.layers
    assert (layer.weights.parameters, layer.active.parameters) == (140, 80)


def test_experts_of_which_nobody_says_how_many_a_token_takes_are_refused():
    tensors = [TensorInfo("model.layers.0.mlp.experts.0.up.weight", "F16", (6, 5))]
    with pytest.raises(InvalidArgumentError, match="experts"):
        model_shape(CONFIG | {"num_hidden_layers": 1}, tensors, "")


def test_layers_without_weights_are_refused_and_those_beyond_the_config_are_not_loaded():
    """DeepSeek-V3's checkpoint has a layer more, which predicts several tokens at once."""
    with pytest.raises(InvalidArgumentError, match="layers 28, 29"):
        model_shape(CONFIG, LAYERS[:28], "")
    more = [*LAYERS, TensorInfo("model.layers.30.mlp.weight", "BF16", (3, 5))]
    assert model_shape(CONFIG, more, "") == model_shape(CONFIG, LAYERS, "")


def test_masks_and_frequencies_of_older_checkpoints_are_no_weights():
    computed = [
        TensorInfo("h.0.attn.bias", "F32", (1, 1, 64, 64)),
        TensorInfo("h.0.attn.masked_bias", "F32", ()),
        TensorInfo("model.layers.0.self_attn.rotary_emb.inv_freq", "F32", (32,)),
    ]
    assert model_shape(CONFIG, LAYERS + computed, "").parameter_count == 450


def test_a_tied_head_that_is_stored_alone_is_the_embedding():
    head = [TensorInfo("lm_head.weight", "F16", (8, 4))]
    layers = model_shape(CONFIG, LAYERS + head, "").layers
    assert (layers.embedding.weights.parameters, layers.tied.parameters, layers.parameter_count) == (32, 32, 482)


def test_a_config_may_be_named_by_itself(tmp_path):
    file = tmp_path / "llama.json"
    file.write_text(json.dumps(CONFIG))
    assert read_shape(str(file)).parameter_count == 134_515_008
    assert not read_shape(str(file)).has_weights


def test_a_head_is_tied_by_habit_of_the_family():
    gemma = {key: value for key, value in CONFIG.items() if key != "tie_word_embeddings"} | {"model_type": "gemma"}
    assert model_shape(gemma, (), "").tied_head
    assert not model_shape(gemma | {"model_type": "llama"}, (), "").tied_head
    assert not model_shape(gemma | {"tie_word_embeddings": False}, (), "").tied_head
