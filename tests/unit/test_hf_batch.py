"""The padded batch against transformers' own generation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    DeepseekV2Config,
    DeepseekV3Config,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from uellm_deployer.backends.hf import batch as batch_module
from uellm_deployer.backends.hf import cache as cache_module
from uellm_deployer.backends.hf.batch import StaticBatch
from uellm_deployer.backends.hf.language_model import LanguageModel, LoadOptions
from uellm_deployer.backends.hf.packed import pack_linear_layers
from uellm_deployer.domain.engines import ENGINES

from tests.support.live_tensors import LiveTensors
from tests.support.tiny_model import make_tiny_model, make_tokenizer
from uellm.cost import kv_cache
from uellm.cost.kv_config import layout_from_config
from uellm.cost.memory import activation_shape

PROMPTS = ([3, 4, 5, 6, 7, 8, 9, 10, 11], [20, 21], [30, 31, 32, 33])
STEPS = 100  # more than the room that a cache buffer has at first


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def model(folder: Path) -> LanguageModel:
    return LanguageModel.load(LoadOptions.from_parameters({"weights": str(folder), "threads": "2"}))


def reference(model: PreTrainedModel, prompt: Sequence[int], steps: int = STEPS) -> list[int]:
    inputs = torch.tensor([prompt])
    output = model.generate(
        inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=steps, do_sample=False, eos_token_id=None
    )
    return list(output[0, len(prompt) :].tolist())


@torch.inference_mode()
def generate(model: LanguageModel, leave: dict[int, int], steps: int = STEPS) -> list[list[int]]:
    """Greedy tokens of PROMPTS; row r leaves after `leave[r]` tokens."""
    batch = StaticBatch(model, PROMPTS)
    tokens = batch.prefill().argmax(-1)
    answers: list[list[int]] = [[] for _ in PROMPTS]
    rows = list(range(len(PROMPTS)))
    for step in range(1, steps + 1):
        for row, token in zip(rows, tokens.tolist(), strict=True):
            answers[row].append(token)
        stay = [i for i, row in enumerate(rows) if leave.get(row, steps) > step]
        if len(stay) < len(rows) and stay:
            batch.keep(stay)
            rows, tokens = [rows[i] for i in stay], tokens[stay]
        if step < steps and stay:
            tokens = batch.step(tokens).argmax(-1)
            assert not batch._trimmable or batch.padded == max(batch.contexts)  # padding that no row needs is gone
            assert batch.contexts == [len(PROMPTS[row]) + step for row in rows]
    return answers


def test_rows_generate_what_they_generate_alone(folder: Path, model: LanguageModel) -> None:
    plain = AutoModelForCausalLM.from_pretrained(folder)
    assert generate(model, leave={}) == [reference(plain, prompt) for prompt in PROMPTS]


@pytest.mark.parametrize("leave", [{0: 7}, {1: 1, 2: 30}, {0: 70, 2: 65}])
def test_rows_that_leave_do_not_change_the_others(model: LanguageModel, leave: dict[int, int]) -> None:
    undisturbed = generate(model, leave={})
    assert generate(model, leave) == [tokens[: leave.get(row, STEPS)] for row, tokens in enumerate(undisturbed)]


def test_prefill_in_parts_is_the_same(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.inference_mode():
        whole = StaticBatch(model, PROMPTS).prefill()
        monkeypatch.setattr(batch_module, "PREFILL_TOKENS", 2 * len(PROMPTS))
        parts = StaticBatch(model, PROMPTS).prefill()
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-4)


SMALL = {
    "vocab_size": 264,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
HYBRID = {"head_dim": 8, "sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}
LATENT = {
    "kv_lora_rank": 16,
    "q_lora_rank": None,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}


def random_model(config: PreTrainedConfig) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return AutoModelForCausalLM.from_config(config).train(mode=False)


@pytest.mark.parametrize("prefill_tokens", [batch_module.PREFILL_TOKENS, 2 * len(PROMPTS)], ids=["whole", "parts"])
@pytest.mark.parametrize(
    "config",
    [
        MistralConfig(**SMALL, sliding_window=6),
        Gemma2Config(**SMALL | HYBRID),
        Gemma3TextConfig(**SMALL | HYBRID),
        DeepseekV2Config(**SMALL | LATENT),
        DeepseekV3Config(**SMALL | LATENT),
        FalconConfig(**SMALL, num_kv_heads=2, new_decoder_architecture=True),
    ],
    ids=lambda config: config.model_type,
)
def test_every_kind_of_cache(config: PreTrainedConfig, prefill_tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = random_model(config)
    alone = [reference(plain, prompt, 20) for prompt in PROMPTS]
    monkeypatch.setattr(batch_module, "PREFILL_TOKENS", prefill_tokens)
    model = LanguageModel(plain, make_tokenizer())
    assert generate(model, leave={0: 5}, steps=20) == [alone[0][:5], *alone[1:]]
    assert StaticBatch(model, PROMPTS)._trimmable


@torch.inference_mode()
def test_a_window_lets_go_of_the_prompt() -> None:
    model = LanguageModel(random_model(Gemma2Config(**SMALL | HYBRID)), make_tokenizer())
    batch = StaticBatch(model, [list(range(3, 60)), list(range(3, 40))])
    batch.prefill()
    window, full = batch._cache.layers
    for step in range(4):
        assert window.keys.shape == (2, 2, 5, 8)
        assert window.keys.untyped_storage().nbytes() <= 2 * 2 * 6 * 8 * 4
        assert full.keys.shape[2] == window.get_seq_length() == 57 + step
        batch.step(torch.tensor([1, 2]))
    batch.keep([1])
    assert window.get_seq_length() == full.get_seq_length() == batch.padded == 41


def test_what_the_planner_reckons_with() -> None:
    assert ENGINES["hf"].prompt_tokens_at_once == batch_module.PREFILL_TOKENS
    assert kv_cache.BUFFER_ROOM_TOKENS == cache_module.ROOM


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**SMALL | {"num_hidden_layers": 3, "max_position_embeddings": 512}),
        MistralConfig(**SMALL, sliding_window=30),
        Gemma2Config(**SMALL | HYBRID),
        DeepseekV3Config(**SMALL | LATENT),
    ],
    ids=lambda config: config.model_type,
)
def test_a_batch_stays_within_the_memory_that_is_planned(config: PreTrainedConfig) -> None:
    """Every tensor that is alive at any moment, from the prefill over growing buffers to rows that leave."""
    model = LanguageModel(random_model(config), make_tokenizer())
    content = model._model.config.to_dict()
    prompts = [list(range(3, 103)), [5] * 80, [6] * 20]
    with LiveTensors() as live, torch.inference_mode():
        batch = StaticBatch(model, prompts)
        batch.prefill()
        for _ in range(cache_module.ROOM + 2):  # buffers grow once
            batch.step(torch.tensor([1, 2, 3]))
        context = batch.padded
        batch.keep([1, 2])
        batch.step(torch.tensor([2, 3]))
    planned = layout_from_config(content, 4).buffered_bytes(3, context)
    planned += activation_shape(content).bytes_of(3, 100, context, 4)
    batch_own = batch._mask.nbytes * 4  # ids, positions and mask
    assert live.peak <= planned + batch_own


def test_facts_of_the_model(model: LanguageModel) -> None:
    assert model.kv_bytes_per_token == 2 * 2 * 2 * 16 * 4  # keys and values, layers, heads, head size, float32
    assert model.weight_bytes >= 4 * (264 * 64 + 2 * (64 * 64 + 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96))
    assert (model.vocabulary, model.context_limit, model.end_tokens) == (264, 512, frozenset({256}))
    assert model.decode(model.encode("héllo", chat=False)) == "héllo"
    assert model.decode(model.encode("hi", chat=True)) == "user\nhi\nassistant\n"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_layers_compute_the_same(dtype: torch.dtype) -> None:
    plain = torch.nn.Sequential(torch.nn.Linear(48, 80), torch.nn.Linear(80, 16, bias=False)).to(dtype)
    states = torch.randn(3, 5, 48, dtype=dtype)
    with torch.inference_mode():
        expected = plain(states)
        assert pack_linear_layers(plain) == 2
        assert not any(type(layer) is torch.nn.Linear for layer in plain)
        torch.testing.assert_close(plain(states), expected)
