"""Model facts from config.json and safetensors headers."""

from __future__ import annotations

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
from uellm.cost.kv_cache import KvCacheGroup
from uellm.rpc.errors import InvalidArgumentError

WEIGHTS = {
    "model.embed_tokens.weight": ("F32", [8, 4], 128),
    **{f"model.layers.{layer}.mlp.weight": ("BF16", [3, 5], 30) for layer in range(30)},
    "model.layers.0.mask": ("BOOL", [7], 7),
}
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
