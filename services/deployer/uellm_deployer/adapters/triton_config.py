"""Repository entries: `config.pbtxt` from Triton's own message, and the backend's files."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig, ModelInstanceGroup

from uellm_deployer.adapters import nvidia_vllm_config, tensorrtllm_config
from uellm_deployer.adapters.entries import CONFIG, PLAN_HASH, VERSION, InvalidEntryError
from uellm_deployer.adapters.front_config import front_parameters
from uellm_deployer.app.ports import RepositoryEntry
from uellm_deployer.backends import backend_files
from uellm_deployer.backends.common import contract
from uellm_deployer.backends.hf import contract as hf
from uellm_deployer.backends.vllm import contract as vllm
from uellm_deployer.domain.engines import ENGINES
from uellm_deployer.domain.names import is_triton_model
from uellm_deployer.domain.plan import DeploymentPlan


class TritonRenderer:
    """Renders plans of every backend."""

    def __init__(self, repository: Path, repository_in_triton: Path | None = None) -> None:
        """Weights below `repository` are named to Triton below `repository_in_triton`, where Triton sees it."""
        self._here = repository
        self._in_triton = repository_in_triton or repository

    def render(self, plan: DeploymentPlan) -> RepositoryEntry:
        """The entry of a plan, parsed back and checked; InvalidEntryError."""
        config = self._config(plan)
        text = text_format.MessageToString(config)
        files = {f"{VERSION}/{path}": source.read_bytes() for path, source in backend_files(plan.spec.backend).items()}
        engine = None
        if behind := _BEHIND_A_FRONT.get(plan.spec.backend):
            engine = behind(plan, self._weights_in_triton(plan.spec.weights_path))
        entry = RepositoryEntry(config.name, {CONFIG: text.encode(), **files}, engine)
        if text_format.Parse(text, ModelConfig()) != config:
            raise InvalidEntryError(f"{config.name}: its {CONFIG} does not read back as it was written")
        check_entry(entry)
        return entry

    def _config(self, plan: DeploymentPlan) -> ModelConfig:
        config = ModelConfig(name=plan.triton_model, backend=contract.BACKEND, max_batch_size=0)
        for declared in contract.INPUTS:
            data_type = DataType.Value(declared.data_type)
            config.input.add(name=declared.name, data_type=data_type, dims=declared.dims, optional=True)
        for declared in contract.OUTPUTS:
            data_type = DataType.Value(declared.data_type)
            config.output.add(name=declared.name, data_type=data_type, dims=declared.dims)
        config.model_transaction_policy.decoupled = True
        # The backend places itself by its parameters: Triton's own placement stays out of it.
        on_cpu = all(device == "cpu" for device in plan.devices)
        kind = ModelInstanceGroup.KIND_CPU if on_cpu else ModelInstanceGroup.KIND_MODEL
        config.instance_group.add(kind=kind, count=1)
        config.version_policy.specific.versions.append(int(VERSION))
        for key, value in self._parameters(plan).items():
            config.parameters[key].string_value = value
        return config

    def _parameters(self, plan: DeploymentPlan) -> dict[str, str]:
        own = _OWN_PARAMETERS[plan.spec.backend](plan)
        return {
            PLAN_HASH: plan.plan_hash,
            contract.WEIGHTS: self._weights_in_triton(plan.spec.weights_path),
            contract.DTYPE: plan.spec.dtype,
            **own,
        }

    def _weights_in_triton(self, weights_path: str) -> str:
        path = Path(weights_path)
        if not path.is_relative_to(self._here):
            return weights_path
        return str(self._in_triton / path.relative_to(self._here))


def _hf_parameters(plan: DeploymentPlan) -> dict[str, str]:
    stages = zip(plan.stage_devices, plan.stages, strict=True)
    return {hf.STAGES: json.dumps([[device, stage.layer_count] for (device,), stage in stages])}


def _vllm_parameters(plan: DeploymentPlan) -> dict[str, str]:
    stages = zip(plan.stage_devices, plan.stages, strict=True)
    numbers = {
        vllm.ROWS: plan.spec.max_batch_rows,
        vllm.CONTEXT_TOKENS: plan.spec.context_tokens,
        vllm.KV_BYTES: max(stage.kv_bytes for stage in plan.stages),  # the others have as many pages, not more
        vllm.PAGE_TOKENS: ENGINES[plan.spec.backend].page_tokens,
    }
    return {
        vllm.MEMORY_SHARE: str(plan.memory_utilization),
        vllm.STAGES: json.dumps([[devices, stage.layer_count] for devices, stage in stages]),
        **{name: str(number) for name, number in numbers.items()},
    }


_OWN_PARAMETERS = {
    "hf": _hf_parameters,
    "vllm": _vllm_parameters,
    "nvidia_vllm": front_parameters,
    "tensorrtllm": front_parameters,
}
_BEHIND_A_FRONT = {"nvidia_vllm": nvidia_vllm_config.engine_entry, "tensorrtllm": tensorrtllm_config.engine_entry}


def check_entry(entry: RepositoryEntry) -> None:
    """Rules that Triton enforces late or not at all (its model_config.proto); raises InvalidEntryError."""
    config = text_format.Parse(entry.files[CONFIG].decode(), ModelConfig())
    rules = {
        "its name must be plan-unique and that of its folder": config.name == entry.name
        and is_triton_model(entry.name),
        "it must be decoupled and leave batching to the scheduler": config.model_transaction_policy.decoupled
        and config.max_batch_size == 0
        and config.WhichOneof("scheduling_choice") is None,
        "it must have one instance group with one instance and no GPU list": len(config.instance_group) == 1
        and config.instance_group[0].count == 1
        and not config.instance_group[0].gpus
        and config.instance_group[0].kind in (ModelInstanceGroup.KIND_CPU, ModelInstanceGroup.KIND_MODEL),
        "its parameters must be texts that are not empty": all(p.string_value for p in config.parameters.values()),
        "its plan hash must be the one in its name": entry.name.endswith(
            f"--{config.parameters[PLAN_HASH].string_value}"
        ),
        "it must have version 1 with a model.py, and no other": f"{VERSION}/model.py" in entry.files
        and {PurePosixPath(path).parts[0] for path in entry.files} == {CONFIG, VERSION},
    }
    broken = [rule for rule, kept in rules.items() if not kept]
    if broken:
        raise InvalidEntryError(f"{entry.name}: {'; '.join(broken)}")
