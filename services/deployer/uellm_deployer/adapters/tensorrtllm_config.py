"""Entries of TensorRT-LLM engines: the model of its own backend, and what the front before it is told.

Facts of the backend: its example `config.pbtxt` (tensors, parameters) and `model_state.cc` (how devices are named), in
`triton_backend` of the repository NVIDIA/TensorRT-LLM, 2025.
"""

from __future__ import annotations

import json

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig, ModelInstanceGroup

from uellm_deployer.adapters.entries import CONFIG, PLAN_HASH, VERSION, InvalidEntryError
from uellm_deployer.app.ports import RepositoryEntry
from uellm_deployer.backends.tensorrtllm import contract
from uellm_deployer.domain.names import engine_model, is_engine_model
from uellm_deployer.domain.plan import DeploymentPlan

_PREFIX = "cuda:"


def front_parameters(plan: DeploymentPlan) -> dict[str, str]:
    """What the front tells of its engine is what was planned."""
    facts = {
        "kv_bytes_per_token": plan.facts.kv_bytes_per_token,
        "kv_budget_bytes": plan.kv_budget_bytes,
        "weight_bytes": plan.facts.weight_bytes,
        "context_limit_tokens": plan.spec.context_tokens,
        "vocabulary": plan.facts.vocabulary_size,
        "device": " ".join(plan.devices),
        "dtype": plan.spec.dtype,
    }
    return {
        contract.ENGINE_MODEL: engine_model(plan.triton_model),
        contract.FACTS: json.dumps(facts),
        contract.ROWS: str(plan.spec.max_batch_rows),
    }


def engine_entry(plan: DeploymentPlan, engine_folder: str) -> RepositoryEntry:
    """The entry of the engine, parsed back and checked; InvalidEntryError.

    `engine_folder` is where Triton sees it.
    """
    config = ModelConfig(name=engine_model(plan.triton_model), backend=contract.ENGINE_BACKEND, max_batch_size=1)
    for tensor in contract.ENGINE_INPUTS:
        added = config.input.add(
            name=tensor.name,
            data_type=DataType.Value(tensor.data_type),
            dims=tensor.dims,
            optional=tensor.optional,
        )
        if tensor.scalar:
            added.reshape.SetInParent()  # to the batch alone
    for tensor in contract.ENGINE_OUTPUTS:
        config.output.add(name=tensor.name, data_type=DataType.Value(tensor.data_type), dims=tensor.dims)
    config.model_transaction_policy.decoupled = True
    # It places itself by its parameters. The kind must not name GPUs.
    config.instance_group.add(kind=ModelInstanceGroup.KIND_CPU, count=1)
    config.version_policy.specific.versions.append(int(VERSION))
    for key, value in _parameters(plan, engine_folder).items():
        config.parameters[key].string_value = value
    text = text_format.MessageToString(config)
    if text_format.Parse(text, ModelConfig()) != config:
        raise InvalidEntryError(f"{config.name}: its {CONFIG} does not read back as it was written")
    # Its version needs a folder, and the folder a file.
    entry = RepositoryEntry(config.name, {CONFIG: text.encode(), f"{VERSION}/engine.txt": engine_folder.encode()})
    check_engine(entry, sum(len(stage.device_ids) for stage in plan.stages))
    return entry


def _parameters(plan: DeploymentPlan, engine_folder: str) -> dict[str, str]:
    devices = [name.removeprefix(_PREFIX) for name in plan.devices]  # ranks are in the same order
    return {
        PLAN_HASH: plan.plan_hash,
        contract.ENGINE_PATH: engine_folder,
        contract.ENGINE_DEVICES: ",".join(devices),
        contract.ENGINE_CACHE_TOKENS: str(plan.kv_budget_bytes // plan.facts.kv_bytes_per_token),
        **contract.ENGINE_PARAMETERS,
    }


def check_engine(entry: RepositoryEntry, ranks: int) -> None:
    """Rules that the backend enforces late or not at all; raises InvalidEntryError."""
    config = text_format.Parse(entry.files[CONFIG].decode(), ModelConfig())
    devices = config.parameters[contract.ENGINE_DEVICES].string_value.split(",")
    rules = {
        "its name must be that of its folder and of an engine": config.name == entry.name
        and is_engine_model(entry.name),
        "it must be decoupled": config.model_transaction_policy.decoupled,
        "it must leave batching to TensorRT-LLM": config.max_batch_size == 1
        and config.WhichOneof("scheduling_choice") is None,
        "it must have one instance of KIND_CPU and no GPU list": len(config.instance_group) == 1
        and config.instance_group[0].count == 1
        and not config.instance_group[0].gpus
        and config.instance_group[0].kind == ModelInstanceGroup.KIND_CPU,
        "it must name a device by its ordinal for each rank, and none twice": len(devices) == ranks == len(set(devices))
        and all(device.isdecimal() for device in devices),
        "its parameters must be texts that are not empty": all(p.string_value for p in config.parameters.values()),
    }
    broken = [rule for rule, kept in rules.items() if not kept]
    if broken:
        raise InvalidEntryError(f"{entry.name}: {'; '.join(broken)}")
