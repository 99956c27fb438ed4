"""Entries of NVIDIA's vLLM backend: its config, `model.json`, and the environment of its process.

Facts of the backend: `model.py` of triton-inference-server/vllm_backend, 2026. With KIND_MODEL it takes the devices
that its process sees, in their order; which these are, and which layers its stages hold, environment variables tell.
"""

from __future__ import annotations

import json
import shlex

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInstanceGroup

from uellm_deployer.adapters.entries import CONFIG, VERSION, InvalidEntryError
from uellm_deployer.adapters.front_config import engine_config, one_instance, written
from uellm_deployer.app.ports import RepositoryEntry
from uellm_deployer.backends.nvidia_vllm import contract
from uellm_deployer.domain.engines import ENGINES
from uellm_deployer.domain.names import is_engine_model
from uellm_deployer.domain.plan import DeploymentPlan

_PREFIX = "cuda:"
_ARGUMENTS = f"{VERSION}/{contract.ENGINE_ARGUMENTS}"
_ACTIVATE = f"{VERSION}/{contract.ACTIVATE}"
_PARTITION = "VLLM_PP_LAYER_PARTITION"

_ENVIRONMENT = """\
# Read by the shell in which Triton starts the process of this model.
devices=({devices})
# Numbers count within what Triton sees.
if [ -n "${{CUDA_VISIBLE_DEVICES+set}}" ]; then
  IFS=, read -ra seen <<< "${{CUDA_VISIBLE_DEVICES// /}}"
  for place in "${{!devices[@]}}"; do
    case ${{devices[place]}} in
      *[!0-9]*) ;;
      *) devices[place]=${{seen[devices[place]]:-none}} ;;
    esac
  done
fi
export CUDA_VISIBLE_DEVICES=$(IFS=,; echo "${{devices[*]}}")
export CUDA_DEVICE_ORDER=PCI_BUS_ID HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1
{partition}
"""


def engine_entry(plan: DeploymentPlan, weights: str) -> RepositoryEntry:
    """The entry of the engine, parsed back and checked; InvalidEntryError. `weights` is where Triton sees them."""
    tensors = contract.ENGINE_INPUTS, contract.ENGINE_OUTPUTS
    folder = f"$$TRITON_MODEL_DIRECTORY/{VERSION}/{contract.ENVIRONMENT}"
    config = engine_config(plan, contract.ENGINE_BACKEND, 0, tensors, {contract.ENVIRONMENT_PARAMETER: folder})
    config.instance_group.add(kind=ModelInstanceGroup.KIND_MODEL, count=1)
    arguments = json.dumps(engine_arguments(plan, weights), indent=2) + "\n"
    entry = written(config, {_ARGUMENTS: arguments.encode(), _ACTIVATE: environment(plan).encode()})
    check_engine(entry, len(plan.devices))
    return entry


def engine_arguments(plan: DeploymentPlan, weights: str) -> dict[str, object]:
    """Arguments of vLLM's `AsyncEngineArgs`."""
    spec, engine, stages = plan.spec, ENGINES[plan.spec.backend], plan.stages
    return {
        "model": weights,
        "trust_remote_code": False,
        "load_format": "safetensors",
        "dtype": spec.dtype,
        "max_model_len": spec.context_tokens,
        "max_num_seqs": spec.max_batch_rows,
        # What activations were planned for: a prompt is read whole.
        "max_num_batched_tokens": max(spec.context_tokens, spec.max_batch_rows, engine.prompt_tokens_at_once),
        "enable_chunked_prefill": False,
        "block_size": engine.page_tokens,
        # The cache is as large as planned, and the share is what must be free when vLLM starts.
        "kv_cache_memory_bytes": max(stage.kv_bytes for stage in stages),
        "gpu_memory_utilization": plan.memory_utilization,
        "tensor_parallel_size": len(stages[0].device_ids),
        "pipeline_parallel_size": len(stages),
        "disable_log_stats": True,
    }


def environment(plan: DeploymentPlan) -> str:
    """What a shell is to read before it starts the engine."""
    devices = " ".join(shlex.quote(name.removeprefix(_PREFIX)) for name in plan.devices)
    layers = ",".join(str(stage.layer_count) for stage in plan.stages)
    partition = f"export {_PARTITION}={layers}" if len(plan.stages) > 1 else f"unset {_PARTITION}"
    return _ENVIRONMENT.format(devices=devices, partition=partition)


def check_engine(entry: RepositoryEntry, workers: int) -> None:
    """Rules that the backend enforces late or not at all; raises InvalidEntryError."""
    config = text_format.Parse(entry.files[CONFIG].decode(), ModelConfig())
    arguments = json.loads(entry.files[_ARGUMENTS])
    size = arguments["tensor_parallel_size"] * arguments["pipeline_parallel_size"]
    rules = {
        "its name must be that of its folder and of an engine": config.name == entry.name
        and is_engine_model(entry.name),
        "it must be decoupled and leave batching to vLLM": config.model_transaction_policy.decoupled
        and config.max_batch_size == 0
        and config.WhichOneof("scheduling_choice") is None,
        "it must have one instance of KIND_MODEL and no GPU list": one_instance(config, ModelInstanceGroup.KIND_MODEL),
        "its process must have the environment that lies beside it": _ACTIVATE in entry.files
        and config.parameters[contract.ENVIRONMENT_PARAMETER].string_value.endswith(contract.ENVIRONMENT),
        "it must have a device for each worker": size == workers,
        "it must not run code that lies with the weights": arguments["trust_remote_code"] is False,
        "its share of memory must be above 0 and at most 1": 0 < arguments["gpu_memory_utilization"] <= 1,
        "its parameters must be texts that are not empty": all(p.string_value for p in config.parameters.values()),
    }
    broken = [rule for rule, kept in rules.items() if not kept]
    if broken:
        raise InvalidEntryError(f"{entry.name}: {'; '.join(broken)}")
