"""A tiny Llama's tensors as the tools for quantisation store them, with the `quantization_config` of each."""

from __future__ import annotations

from typing import Any

from uellm_deployer.domain.tensors import TensorInfo

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


DYNAMIC = {"num_bits": 8, "type": "int", "strategy": "token", "symmetric": True, "dynamic": True}
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
        compressed("float-quantized", DYNAMIC | {"type": "float"}, num_bits=8, type="float", strategy="channel"),
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
