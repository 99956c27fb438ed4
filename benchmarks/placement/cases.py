"""Machines and models to place: published captures of `nvidia-smi topo`, shapes of published models."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from uellm_deployer.adapters.topology_file import read_topology
from uellm_deployer.domain.facts import model_shape
from uellm_deployer.domain.helr.problem import Problem
from uellm_deployer.domain.placing import problem_of
from uellm_deployer.domain.plan import DeploymentSpec
from uellm_deployer.domain.sizing import Sizing
from uellm_deployer.domain.topology import DeviceKind, Topology

SHARED = Path(os.environ.get("UELLM_SHARED", Path(__file__).resolve().parents[3] / "shared")) / "data"
"""Captures and estimates that others published: not part of the project."""

GPU_MODELS = {
    "2x_nv2": "Quadro RTX 8000",
    "2x_phb_consumer": "RTX 3090",
    "3x_nv4_pair_plus_single_2nic": "RTX A6000",
    "4x_gh200_nv6": "GH200 480GB",
    "4x_h200nvl_pcie_pix_node": "H200 NVL",
    "4x_k80_soc_legacy_legend": "Tesla K80",
    "4x_l40s_nebius": "L40S",
    "4x_nv4_bridge_pairs_one_nic": "RTX A5000",
    "7x_gtx_pix_phb": "GTX 1080 Ti",
    "8x_a100_hgx_nps4_one_nic": "A100 80GB",
    "8x_a100_nv12_narrow": "A100 40GB",
    "8x_a40_nv4_pairs": "A40",
    "8x_gke_a4_8nic": "B200",
    "8x_h100_nv18_ht_affinity": "H100",
    "8x_h100_nv18_narrow": "H100",
    "8x_h100_p2p_read": "H100",
    "8x_rtx4090_dual_epyc": "RTX 4090",
    "8x_v100_sxm2_hybrid_cube_mesh": "V100 16GB",
}
"""Of each capture, which names none: what its name says, or a GPU with such links."""

MIXED = """
devices:
  - {id: GPU, count: 2, model: A10, numa_node: 0}
  - {id: BIG, count: 2, model: A100 80GB PCIe, numa_node: 1}
"""
"""A machine of ours with two sorts of GPUs, the small and slow ones first."""


def llama(layers: int, hidden: int, inner: int, heads: int, kv_heads: int, context: int = 4096) -> dict[str, Any]:
    """The config of a model of that family."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": 32000,
        "max_position_embeddings": context,
        "tie_word_embeddings": False,
    }


MODELS = {
    "7B": llama(32, 4096, 11008, 32, 32),
    "13B": llama(40, 5120, 13824, 40, 40),
    "34B": llama(48, 8192, 22016, 64, 8, 16384),
    "70B": llama(80, 8192, 28672, 64, 8),
    "8x7B": llama(32, 4096, 14336, 32, 8, 32768)
    | {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    },
}
"""Llama-2-7B, -13B, CodeLlama-34B, Llama-2-70B, Mixtral-8x7B."""

NUMBERS: dict[str, dict[str, Any]] = {
    "fp16": {},
    "int4": {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128}},
}

ROWS, CONTEXT = 8, 2048
IN_FLIGHT = 4
"""Micro-batches into which the rows are divided where throughput is compared: memory stays the same."""


@dataclass(frozen=True, slots=True)
class Case:
    """A model on a machine, as one batch for latency and in micro-batches for throughput: of the same memory."""

    machine: str
    model: str
    numbers: str
    batch: Problem
    stream: Problem

    @property
    def name(self) -> str:
        """All of it."""
        return f"{self.machine}, {self.model} {self.numbers}"


def machines() -> Iterator[tuple[str, Topology]]:
    """Each in both states."""
    for file in sorted((SHARED / "topo").glob("*.txt")):
        yield from with_states(file.stem, read_topology(file.read_text(), GPU_MODELS[file.stem]))
    yield from with_states("4x_mixed", read_topology(MIXED))


def with_states(name: str, machine: Topology) -> Iterator[tuple[str, Topology]]:
    """The machine with all its memory free, and with every second GPU half taken by others; GPUs only."""
    gpus = [device for device in machine.devices if device.kind is DeviceKind.GPU]
    yield name, replace(machine, devices=tuple(gpus))
    shared = [replace(gpu, free_memory_bytes=gpu.free_memory_bytes // (1 + n % 2)) for n, gpu in enumerate(gpus)]
    yield f"{name}, shared", replace(machine, devices=tuple(shared))


def cases(models: dict[str, dict[str, Any]] = MODELS) -> Iterator[Case]:
    """Every machine with every model in every number format."""
    for machine, topology in machines():
        for model, config in models.items():
            for numbers, scheme in NUMBERS.items():
                yield case(machine, topology, model, config, numbers, scheme)


def case(
    machine: str, topology: Topology, model: str, config: dict[str, Any], numbers: str, scheme: dict[str, Any]
) -> Case:
    """One of them: half precision, the static engine, 8 rows of 2,048 tokens."""
    shape = model_shape(config | scheme, (), "")
    whole, part = (
        problem_of(
            Sizing.of(
                DeploymentSpec(model, "", dtype="float16", max_batch_rows=rows, context_tokens=CONTEXT),
                shape,
                DeviceKind.GPU,
            ),
            topology.devices,
            topology,
        )
        for rows in (ROWS, ROWS // IN_FLIGHT)
    )
    layers = tuple(
        replace(small, kv_bytes=large.kv_bytes)
        for small, large in zip(part.model.layers, whole.model.layers, strict=True)
    )
    stream = replace(
        part,
        model=replace(part.model, layers=layers, activation_bytes=whole.model.activation_bytes),
        workload=replace(part.workload, micro_batches=IN_FLIGHT),
    )
    return Case(machine, model, numbers, whole, stream)
