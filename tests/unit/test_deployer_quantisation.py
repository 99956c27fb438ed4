"""Quantised weights: the config's figures against tensors as the tools store them, and which backend serves them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from uellm_deployer.domain.engines import able_devices
from uellm_deployer.domain.facts import ModelShape, model_shape
from uellm_deployer.domain.placement import OneDevicePlanner
from uellm_deployer.domain.quantisation import quantisation
from uellm_deployer.domain.tensors import TensorInfo

from tests.support.deployer import CPU, a_spec, gpu, machine
from uellm.rpc.errors import InvalidArgumentError

HIDDEN, INNER, VOCABULARY, LAYERS = 256, 512, 1000, 3
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": LAYERS,
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}

Tensors = list[tuple[str, str, tuple[int, ...]]]
"""Suffix, format and shape of what a linear layer of so many outputs and inputs is stored as."""


def gptq(bits: int, group: int):
    def stored(out: int, inp: int) -> Tensors:
        groups = inp // group if group > 0 else 1
        return [
            (".qweight", "I32", (inp * bits // 32, out)),
            (".qzeros", "I32", (groups, out * bits // 32)),
            (".scales", "F16", (groups, out)),
            (".g_idx", "I32", (inp,)),
        ]

    return stored


def awq(group: int):
    def stored(out: int, inp: int) -> Tensors:
        return [
            (".qweight", "I32", (inp, out // 8)),
            (".qzeros", "I32", (inp // group, out // 8)),
            (".scales", "F16", (inp // group, out)),
        ]

    return stored


def four_bit(*, nested: bool):
    def stored(out: int, inp: int) -> Tensors:
        blocks = out * inp // 64
        scales: Tensors = [(".weight.absmax", "F32", (blocks,))]
        if nested:
            scales = [
                (".weight.absmax", "U8", (blocks,)),
                (".weight.nested_absmax", "F32", (-(-blocks // 256),)),
                (".weight.nested_quant_map", "F32", (256,)),
            ]
        return [(".weight", "U8", (out * inp // 2, 1)), (".weight.quant_map", "F32", (16,)), *scales]

    return stored


def eight_bit(out: int, inp: int) -> Tensors:
    return [(".weight", "I8", (out, inp)), (".SCB", "F32", (out,))]


def fp8_blocks(out: int, inp: int) -> Tensors:
    return [(".weight", "F8_E4M3", (out, inp)), (".weight_scale_inv", "F32", (-(-out // 128), -(-inp // 128)))]


def fp8_static(out: int, inp: int) -> Tensors:
    return [(".weight", "F8_E4M3", (out, inp)), (".weight_scale", "F32", ()), (".input_scale", "F32", ())]


def fp8_rows(out: int, inp: int) -> Tensors:
    return [(".weight", "F8_E4M3", (out, inp)), (".weight_scale", "F32", (out, 1))]


def packed(bits: int, group: int, *, zeros: bool):
    def stored(out: int, inp: int) -> Tensors:
        tensors: Tensors = [
            (".weight_packed", "I32", (out, inp * bits // 32)),
            (".weight_scale", "BF16", (out, inp // group)),
            (".weight_shape", "I64", (2,)),
        ]
        return [*tensors, (".weight_zero_point", "I32", (out * bits // 32, inp // group))] if zeros else tensors

    return stored


def channels(dtype: str):
    def stored(out: int, inp: int) -> Tensors:
        return [(".weight", dtype, (out, inp)), (".weight_scale", "BF16", (out, 1))]

    return stored


def nvfp4(out: int, inp: int) -> Tensors:
    return [
        (".weight_packed", "U8", (out, inp // 2)),
        (".weight_scale", "F8_E4M3", (out, inp // 16)),
        (".weight_global_scale", "F32", (1,)),
        (".input_global_scale", "F32", (1,)),
    ]


def compressed(layout: str, inputs: Any = None, **weights: Any) -> dict[str, Any]:
    group = {
        "targets": ["Linear"],
        "weights": {"type": "int", "symmetric": True} | weights,
        "input_activations": inputs,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
    }


DYNAMIC = {"num_bits": 8, "dynamic": True}
SCHEMES: dict[str, tuple[dict[str, Any], Any]] = {
    "gptq 4": ({"quant_method": "gptq", "bits": 4, "group_size": 128}, gptq(4, 128)),
    "gptq 8": ({"quant_method": "gptq", "bits": 8, "group_size": 32}, gptq(8, 32)),
    "gptq 3": ({"quant_method": "gptq", "bits": 3, "group_size": 64}, gptq(3, 64)),
    "gptq 4, one group": ({"quant_method": "gptq", "bits": 4, "group_size": -1}, gptq(4, -1)),
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemm"}, awq(64)),
    "bitsandbytes 4": ({"quant_method": "bitsandbytes", "load_in_4bit": True}, four_bit(nested=False)),
    "bitsandbytes 4, nested": (
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_use_double_quant": True},
        four_bit(nested=True),
    ),
    "bitsandbytes 8": ({"quant_method": "bitsandbytes", "load_in_8bit": True}, eight_bit),
    "fp8 blocks": ({"quant_method": "fp8", "weight_block_size": [128, 128]}, fp8_blocks),
    "fp8 static": ({"quant_method": "fp8", "activation_scheme": "static"}, fp8_static),
    "fp8 rows": ({"quant_method": "fbgemm_fp8"}, fp8_rows),
    "compressed 4": (
        compressed("pack-quantized", num_bits=4, strategy="group", group_size=128),
        packed(4, 128, zeros=False),
    ),
    "compressed 4 with zeros": (
        compressed("pack-quantized", num_bits=4, strategy="group", group_size=32, symmetric=False),
        packed(4, 32, zeros=True),
    ),
    "compressed int8": (compressed("int-quantized", DYNAMIC, num_bits=8, strategy="channel"), channels("I8")),
    "compressed float8": (
        compressed("float-quantized", DYNAMIC, num_bits=8, type="float", strategy="channel"),
        channels("F8_E4M3"),
    ),
    "compressed nvfp4": (
        compressed("nvfp4-pack-quantized", DYNAMIC, num_bits=4, type="float", strategy="tensor_group", group_size=16),
        nvfp4,
    ),
}


def checkpoint(config: dict[str, Any], stored: Any, plain: tuple[str, ...] = ()) -> list[TensorInfo]:
    """Tensors of a Llama; modules whose names contain one of `plain` are not quantised."""
    hidden, inner, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    keys = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    linears = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    tensors = [
        TensorInfo("model.embed_tokens.weight", "F16", (vocabulary, hidden)),
        TensorInfo("model.norm.weight", "F16", (hidden,)),
        TensorInfo("lm_head.weight", "F16", (vocabulary, hidden)),
    ]
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        tensors += [TensorInfo(f"{prefix}{norm}.weight", "F16", (hidden,)) for norm in ("input_norm", "post_norm")]
        for name, (out, inp) in linears.items():
            left = any(part in f"{prefix}{name}" for part in plain)
            parts = [(".weight", "F16", (out, inp))] if left else stored(out, inp)
            tensors += [TensorInfo(f"{prefix}{name}{suffix}", dtype, shape) for suffix, dtype, shape in parts]
    return tensors


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
    return OneDevicePlanner().place(spec, shape, machine(*devices)).plan


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
