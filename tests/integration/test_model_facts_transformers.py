"""Facts from config.json alone against the models that transformers builds of it on the meta device: equal by layer."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from uellm_deployer.domain.facts import ModelShape, model_shape
from uellm_deployer.domain.families import KNOWN
from uellm_deployer.domain.tensors import TensorInfo

from tests.support.families import CONFIGS


def build(name: str) -> tuple[dict[str, Any], PreTrainedModel]:
    """The config.json that transformers writes, and the model."""
    kind, values = CONFIGS[name]
    config = AutoConfig.for_model(kind, **values)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return json.loads(model.config.to_json_string()) | {"architectures": [type(model).__name__]}, model


def by_layer(model: PreTrainedModel) -> Counter[str]:
    """Parameters of each decoder layer, and of all the rest together."""
    found: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        steps = name.split(".")
        found[next((step for step in steps if step.isdecimal()), "rest")] += parameter.numel()
    return found


def without_weights(config: dict[str, Any]) -> ModelShape:
    return model_shape(config, (), "")


def test_every_family_is_here() -> None:
    assert {kind for kind, _ in CONFIGS.values()} == set(KNOWN)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_config_alone_gives_the_parameters_of_every_layer(name: str) -> None:
    config, model = build(name)
    shape, found = without_weights(config), by_layer(model)
    layers = shape.layers
    assert [layer.weights.parameters for layer in layers.layers] == [found[str(i)] for i in range(len(layers.layers))]
    ends = layers.embedding.weights.parameters + layers.head.weights.parameters - layers.tied.parameters
    assert ends == found["rest"]
    assert shape.parameter_count == model.num_parameters()
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert shape.tied_head == (head.weight is embedding.weight)
    assert layers.tied.parameters == (head.weight.numel() if shape.tied_head else 0)
    assert layers.head.weights.parameters >= sum(part.numel() for part in head.parameters())


@pytest.mark.parametrize("name", CONFIGS)
def test_headers_give_the_same(name: str) -> None:
    config, model = build(name)
    tensors = [TensorInfo(name, "BF16", tuple(value.shape)) for name, value in model.named_parameters()]
    planned, stored = without_weights(config), model_shape(config, tensors, "")
    assert stored.layers == planned.layers
    assert (planned.has_weights, stored.has_weights) == (False, True)


def test_a_token_computes_with_the_experts_it_is_sent_to() -> None:
    config, model = build("mixtral")
    expert = sum(p.numel() for name, p in model.named_parameters() if ".0.mlp.experts." in name) // 4
    layer = without_weights(config).layers.layers[0]
    assert layer.weights.parameters - layer.active.parameters == (4 - 2) * expert
    facts = without_weights(config).layers.facts(2).layers[0]
    assert facts.active_weight_bytes == 2 * layer.active.parameters
    assert facts.flops_per_token == 2 * layer.active.parameters
