"""Quantised weights: the config's figures against tensors as the tools store them, and which backend serves them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from uellm_deployer.domain.engines import able_devices
from uellm_deployer.domain.facts import ModelShape, model_shape
from uellm_deployer.domain.placement import HelrPlanner
from uellm_deployer.domain.quantisation import quantisation
from uellm_deployer.domain.tensors import TensorInfo

from tests.support.deployer import CPU, a_spec, gpu, machine
from tests.support.quantised import (
    CONFIG,
    HIDDEN,
    LAYERS,
    SCHEMES,
    VOCABULARY,
    checkpoint,
    compressed,
    fp8_blocks,
    gptq,
)
from uellm.rpc.errors import InvalidArgumentError


def shapes(config: dict[str, Any], tensors: list[TensorInfo]) -> tuple[ModelShape, ModelShape]:
    """From the config alone, and from the headers."""
    return model_shape(config, (), ""), model_shape(config, tensors, "")


@pytest.mark.parametrize("name", SCHEMES)
def test_the_config_says_what_the_headers_say(name: str) -> None:
    section, stored = SCHEMES[name]
    config = CONFIG | {"quantization_config": section}
    planned, read = shapes(config, checkpoint(config, stored))
    assert planned.layers == read.layers
    unquantised = model_shape(CONFIG, (), "")
    assert planned.parameter_count == unquantised.parameter_count
    assert planned.layers.weight_bytes(2) < unquantised.layers.weight_bytes(2)
    ends = 2 * VOCABULARY * HIDDEN + (2 * LAYERS + 1) * HIDDEN  # which stay plain: embedding, head, norms
    assert planned.layers.weight_bytes(4) - planned.layers.weight_bytes(2) == 2 * ends


@settings(max_examples=20, deadline=None)
@given(
    hidden=st.integers(1, 6).map(lambda n: 128 * n),
    inner=st.integers(1, 9).map(lambda n: 128 * n),
    bits=st.sampled_from((2, 4, 8)),
    group=st.sampled_from((-1, 32, 64, 128)),
)
def test_any_sizes_of_gptq(hidden: int, inner: int, bits: int, group: int) -> None:
    section = {"quant_method": "gptq", "bits": bits, "group_size": group}
    config = CONFIG | {"hidden_size": hidden, "intermediate_size": inner, "quantization_config": section}
    planned, read = shapes(config, checkpoint(config, gptq(bits, group)))
    assert planned.layers == read.layers


@pytest.mark.parametrize(
    ("scheme", "key", "left", "plain"),
    [
        ("awq", "modules_to_not_convert", ["layers.1", "down_proj"], ("layers.1.", "down_proj")),
        ("fp8 blocks", "modules_to_not_convert", ["model.layers.0.mlp.up_proj"], ("layers.0.mlp.up_proj",)),
        ("bitsandbytes 8", "llm_int8_skip_modules", ["o_proj"], ("o_proj",)),
        ("compressed int8", "ignore", ["lm_head", "re:.*self_attn.*"], ("self_attn",)),
        ("compressed int8", "ignore", ["lm_head", "model.layers.2.mlp.gate_proj"], ("layers.2.mlp.gate_proj",)),
    ],
)
def test_what_is_left_alone_stays_plain(scheme: str, key: str, left: list[str], plain: tuple[str, ...]) -> None:
    section, stored = SCHEMES[scheme]
    config = CONFIG | {"quantization_config": section | {key: left}}
    planned, read = shapes(config, checkpoint(config, stored, plain))
    assert planned.layers == read.layers
    assert planned.layers != model_shape(CONFIG | {"quantization_config": section | {key: ["lm_head"]}}, (), "").layers


def test_headers_win_over_the_config() -> None:
    """A config that says 128 of groups of 32."""
    config = CONFIG | {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128}}
    planned, read = shapes(config, checkpoint(config, gptq(4, 32)))
    assert read.layers.weight_bytes(2) > planned.layers.weight_bytes(2)
    assert read.parameter_count == planned.parameter_count


def test_a_tied_head_is_never_quantised() -> None:
    section = SCHEMES["compressed int8"][0] | {"ignore": []}
    tied = CONFIG | {"quantization_config": section, "tie_word_embeddings": True}
    layers = model_shape(tied, (), "").layers
    assert layers.head.weights.packed_bytes == 0
    assert layers.tied.plain == VOCABULARY * HIDDEN


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"quant_method": "hqq"}, "quant_method"),
        ({"quant_method": None}, "quant_method"),
        ({"quant_method": "gptq", "bits": 5, "group_size": 128}, "`bits`"),
        ({"quant_method": "gptq", "bits": 4, "group_size": "128"}, "`group_size`"),
        ({"quant_method": "bitsandbytes"}, "load_in_4bit"),
        ({"quant_method": "fp8", "weight_block_size": [128]}, "`weight_block_size`"),
        ({"quant_method": "fp8", "modules_to_not_convert": "lm_head"}, "list of names"),
        ({"quant_method": "compressed-tensors"}, "config_groups"),
        (compressed("int-quantized", num_bits=8, strategy="channel") | {"ignore": ["re:("]}, "quantization_config"),
        (compressed("pack-quantized", num_bits=3, strategy="channel"), "num_bits"),
        # Only the headers say how large these are:
        ({"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemv"}, "put the weights beside it"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128, "dynamic": {"-:q": {}}}, "put the weights beside it"),
    ],
)
def test_what_is_not_understood_is_refused_with_advice(section: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        model_shape(CONFIG | {"quantization_config": section}, (), "")
    assert [violation.field for violation in caught.value.violations] == ["spec.weights_path"]
    assert says in str(caught.value)


def test_what_the_config_leaves_open_is_read_from_the_headers() -> None:
    section = {"quant_method": "gptq", "bits": 4, "group_size": 128, "dynamic": {"-:q": {}}}
    config = CONFIG | {"quantization_config": section}
    usual = CONFIG | {"quantization_config": SCHEMES["gptq 4"][0]}
    tensors = checkpoint(config, gptq(4, 128))
    assert model_shape(config, tensors, "").layers == model_shape(usual, (), "").layers


def test_formats_of_quantised_weights_need_the_config_to_say_so() -> None:
    with pytest.raises(InvalidArgumentError, match=r"F8_E4M3.*quantization_config"):
        model_shape(CONFIG, checkpoint(CONFIG, fp8_blocks), "")


def planned(name: str, backend: str, *devices: Any) -> Any:
    shape = model_shape(CONFIG | {"quantization_config": SCHEMES[name][0]}, (), "")
    spec = a_spec(backend=backend, context_tokens=256)
    return HelrPlanner().place(spec, shape, machine(*devices)).plan


@pytest.mark.parametrize("name", SCHEMES)
def test_a_backend_that_lacks_the_kernels_is_refused_by_name(name: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        planned(name, "hf", CPU, gpu("GPU-a"))
    (violation,) = caught.value.violations
    assert violation.field == "spec.backend"
    label = quantisation({"quantization_config": SCHEMES[name][0]}).label
    assert violation.description.startswith(f"hf cannot serve {label} weights on a cpu or gpu: ")
    assert ("use vllm" in violation.description) == (label in VLLM)


VLLM = {
    "gptq int4": {"cpu", "gpu"},
    "gptq int8": {"gpu"},
    "awq int4": {"cpu", "gpu"},
    "fp8 float8": {"gpu"},
    "compressed-tensors int4": {"cpu", "gpu"},
    "compressed-tensors int8": {"cpu", "gpu"},
    "compressed-tensors float8": {"gpu"},
}


@pytest.mark.parametrize("name", SCHEMES)
def test_devices_that_lack_the_kernels_are_left_out(name: str) -> None:
    scheme = quantisation({"quantization_config": SCHEMES[name][0]})
    devices = (CPU, gpu("GPU-a"))
    if scheme.label not in VLLM:
        with pytest.raises(InvalidArgumentError, match="deploy the model unquantised"):
            able_devices("vllm", scheme, devices)
    else:
        able = able_devices("vllm", scheme, devices)
        assert {device.kind.value for device in able} == VLLM[scheme.label]
        assert planned(name, "vllm", *devices).stages[0].device_ids == ("GPU-a",)
    assert able_devices("hf", None, devices) == list(devices)


def test_a_quantised_plan_takes_the_packed_bytes() -> None:
    plan = planned("gptq 4", "vllm", gpu("GPU-a"))
    shape = model_shape(CONFIG | {"quantization_config": SCHEMES["gptq 4"][0]}, (), "")
    assert plan.stages[0].weight_bytes == shape.layers.weight_bytes(2) == plan.facts.weight_bytes
    assert plan.facts.parameter_count == model_shape(CONFIG, (), "").parameter_count
