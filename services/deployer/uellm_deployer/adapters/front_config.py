"""Entries of engines behind a front: what all of them have in common, and what the front is told."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig, ModelInstanceGroup

from uellm_deployer.adapters.entries import CONFIG, PLAN_HASH, VERSION, InvalidEntryError
from uellm_deployer.app.ports import RepositoryEntry
from uellm_deployer.backends.common import contract
from uellm_deployer.domain.names import engine_model
from uellm_deployer.domain.plan import DeploymentPlan


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


def engine_config(
    plan: DeploymentPlan,
    backend: str,
    max_batch_size: int,
    tensors: tuple[Sequence[contract.EngineTensor], Sequence[contract.EngineTensor]],
    parameters: Mapping[str, str],
) -> ModelConfig:
    """Of the decoupled model behind the front, but for its instance group; `tensors` are its inputs and outputs."""
    config = ModelConfig(name=engine_model(plan.triton_model), backend=backend, max_batch_size=max_batch_size)
    for tensor in tensors[0]:
        added = config.input.add(
            name=tensor.name,
            data_type=DataType.Value(tensor.data_type),
            dims=tensor.dims,
            optional=tensor.optional,
        )
        if max_batch_size and tensor.scalar:
            added.reshape.SetInParent()  # to the batch alone
    for tensor in tensors[1]:
        config.output.add(name=tensor.name, data_type=DataType.Value(tensor.data_type), dims=tensor.dims)
    config.model_transaction_policy.decoupled = True
    config.version_policy.specific.versions.append(int(VERSION))
    for key, value in {PLAN_HASH: plan.plan_hash, **parameters}.items():
        config.parameters[key].string_value = value
    return config


def written(config: ModelConfig, files: Mapping[str, bytes]) -> RepositoryEntry:
    """The entry with that config, parsed back; InvalidEntryError."""
    text = text_format.MessageToString(config)
    if text_format.Parse(text, ModelConfig()) != config:
        raise InvalidEntryError(f"{config.name}: its {CONFIG} does not read back as it was written")
    return RepositoryEntry(config.name, {CONFIG: text.encode(), **files})


def one_instance(config: ModelConfig, kind: ModelInstanceGroup.Kind) -> bool:
    """Whether there is one instance of that kind, and no GPU list."""
    return (
        len(config.instance_group) == 1
        and config.instance_group[0].count == 1
        and not config.instance_group[0].gpus
        and config.instance_group[0].kind == kind
    )
