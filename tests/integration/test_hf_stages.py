"""Layers over several devices: which module goes where, and that answers stay the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from uellm_deployer.backends.hf.language_model import LanguageModel, LoadOptions
from uellm_deployer.backends.hf.stages import Stage, device_map, parse_stages

from tests.support.tiny_model import make_tiny_model

TWO = (Stage("cuda:0", 1), Stage("cuda:1", 1))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "weights")


def test_embeddings_go_first_and_the_head_last(weights: Path) -> None:
    assert device_map(str(weights), TWO) == {
        "model.embed_tokens": "cuda:0",
        "model.rotary_emb": "cuda:0",
        "model.layers.0": "cuda:0",
        "model.layers.1": "cuda:1",
        "model.norm": "cuda:1",
        "lm_head": "cuda:1",
    }
    assert device_map(str(weights), (Stage("cuda:3", 2),)) == {"": "cuda:3"}


@pytest.mark.parametrize(
    "family", ["gpt2", "gpt_neox", "opt", "falcon", "bloom", "gemma3_text", "mixtral", "qwen3", "phi3"]
)
def test_every_parameter_of_other_families_has_its_device(tmp_path: Path, family: str) -> None:
    names = ("num_hidden_layers", "n_layer", "num_layers")
    config = AutoConfig.for_model(family)
    config.update({name: 4 for name in names if hasattr(config, name)})
    if kinds := getattr(config, "layer_types", None):
        config.update({"layer_types": kinds[:4]})
    config.save_pretrained(tmp_path)
    found = device_map(str(tmp_path), (Stage("cuda:0", 3), Stage("cuda:1", 1)))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    for name, _ in model.named_parameters(remove_duplicate=False):
        homes = [prefix for prefix in found if name.startswith(prefix + ".")]
        assert len(homes) == 1, name
    embedding = next(name for name, module in model.named_modules() if module is model.get_input_embeddings())
    assert found[embedding] == "cuda:0"
    output = next(name for name, module in model.named_modules() if module is model.get_output_embeddings())
    assert found[output] == "cuda:1"


def test_stages_that_are_not_the_model_are_refused(weights: Path) -> None:
    with pytest.raises(ValueError, match="hold 4 layers"):
        device_map(str(weights), (Stage("cpu", 3), Stage("cpu", 1)))
    for text in ("[]", "[1]", '[["cpu", 0]]', '[["cpu"]]', "{"):
        with pytest.raises(ValueError, match="model config parameter stages"):
            parse_stages(text)
    assert parse_stages("") == (Stage("cpu", 1),)


def test_two_stages_answer_as_one(weights: Path) -> None:
    prompt = torch.tensor([[5, 6, 7, 8]])

    def answer(stages: str) -> list[int]:
        parameters = {"weights": str(weights), "stages": stages, "threads": "1"}
        model = LanguageModel.load(LoadOptions.from_parameters(parameters))
        cache, tokens, made = model.new_cache(), prompt, []
        for at in range(12):
            positions = torch.arange(tokens.shape[1])[None] + (0 if at == 0 else 3 + at)
            logits = model.forward(tokens, None, positions, cache)
            assert logits.device.type == "cpu"
            tokens = logits.argmax(dim=-1)[None]
            made.append(int(tokens))
        return made

    with torch.inference_mode():
        assert answer('[["cpu", 1], ["cpu", 1]]') == answer('[["cpu", 2]]') == answer("")
