"""Entries of TensorRT-LLM engines: the model of its own backend.

Facts of the backend: its example `config.pbtxt` (tensors, parameters) and `model_state.cc` (how devices are named), in
`triton_backend` of the repository NVIDIA/TensorRT-LLM, 2025.
"""

from __future__ import annotations

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInstanceGroup

from uellm_deployer.adapters.entries import CONFIG, VERSION, InvalidEntryError
from uellm_deployer.adapters.front_config import engine_config, one_instance, written
from uellm_deployer.app.ports import RepositoryEntry
from uellm_deployer.backends.tensorrtllm import contract
from uellm_deployer.domain.names import is_engine_model
from uellm_deployer.domain.plan import DeploymentPlan

_PREFIX = "cuda:"


def engine_entry(plan: DeploymentPlan, engine_folder: str) -> RepositoryEntry:
    """The entry of the engine, parsed back and checked; InvalidEntryError.

    `engine_folder` is where Triton sees it.
    """
    tensors = contract.ENGINE_INPUTS, contract.ENGINE_OUTPUTS
    config = engine_config(plan, contract.ENGINE_BACKEND, 1, tensors, _parameters(plan, engine_folder))
    # It places itself by its parameters. The kind must not name GPUs.
    config.instance_group.add(kind=ModelInstanceGroup.KIND_CPU, count=1)
    # Its version needs a folder, and the folder a file.
    entry = written(config, {f"{VERSION}/engine.txt": engine_folder.encode()})
    check_engine(entry, sum(len(stage.device_ids) for stage in plan.stages))
    return entry


def _parameters(plan: DeploymentPlan, engine_folder: str) -> dict[str, str]:
    devices = [name.removeprefix(_PREFIX) for name in plan.devices]  # ranks are in the same order
    return {
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
        "it must have one instance of KIND_CPU and no GPU list": one_instance(config, ModelInstanceGroup.KIND_CPU),
        "it must name a device by its ordinal for each rank, and none twice": len(devices) == ranks == len(set(devices))
        and all(device.isdecimal() for device in devices),
        "its parameters must be texts that are not empty": all(p.string_value for p in config.parameters.values()),
    }
    broken = [rule for rule, kept in rules.items() if not kept]
    if broken:
        raise InvalidEntryError(f"{entry.name}: {'; '.join(broken)}")
