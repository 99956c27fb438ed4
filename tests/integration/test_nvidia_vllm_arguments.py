"""What is sent to NVIDIA's vLLM backend, taken by vLLM itself: its arguments, its sampling parameters, what it tells.

Without NVIDIA's code: a script does what that does with them. Needs `make vllm-env`; `make test-vllm`.
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from uellm_deployer.adapters.model_folder import read_shape
from uellm_deployer.adapters.nvidia_vllm_config import engine_arguments
from uellm_deployer.backends.common.request import Row, SamplingParameters
from uellm_deployer.backends.common.rows import Limits, LiveRow
from uellm_deployer.backends.nvidia_vllm.requests import row_tensors
from uellm_deployer.domain.placement import HelrPlanner

from tests.support.deployer import a_spec
from tests.support.tiny_model import make_tiny_model, make_tokenizer
from tests.unit.test_deployer_built import EIGHT, nvlinked
from uellm.local.engine import VllmNotInstalledError, vllm_environment

try:
    ENVIRONMENT = vllm_environment()
except VllmNotInstalledError as missing:
    pytest.skip(str(missing), allow_module_level=True)

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

SCRIPT = """
import asyncio, json, sys
from vllm import AsyncEngineArgs, SamplingParams
from vllm.v1.engine.async_llm import AsyncLLM

async def main(arguments, text, sampling):
    engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))
    cache = engine.vllm_config.cache_config
    told, prompt, reason, drawn = [], 0, None, []
    async for output in engine.generate({"prompt": text}, SamplingParams(**sampling), "r"):
        (answer,) = output.outputs
        told = [list(one) for one in answer.logprobs]
        prompt, reason, drawn = len(output.prompt_token_ids), answer.finish_reason, list(answer.token_ids)
    blocks = cache.num_gpu_blocks * cache.block_size
    engine.shutdown()
    print("ANSWER", json.dumps([told, drawn, prompt, reason, blocks]), flush=True)

if __name__ == "__main__":
    asyncio.run(main(*json.loads(sys.argv[1])))
"""


def ask(folder: Path, arguments: dict[str, Any], tensors: dict[str, Any]) -> list[Any]:
    script = folder / "ask.py"
    script.write_text(SCRIPT)
    values = [arguments, tensors["text_input"].item().decode(), json.loads(tensors["sampling_parameters"].item())]
    variables = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    command = [str(ENVIRONMENT / "bin" / "python"), str(script), json.dumps(values)]
    done = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("ANSWER")]
    assert lines, done.stderr[-3000:]
    answer: list[Any] = json.loads(lines[-1].removeprefix("ANSWER"))
    return answer


def test_vllm_takes_what_is_written_and_tells_the_ids(tmp_path):
    """On a processor: but for the number format, the arguments are those of a GPU."""
    folder = make_tiny_model(tmp_path / "model", head_size=32)
    tokenizer = make_tokenizer()
    spec = replace(a_spec(weights_path=str(folder), backend="nvidia_vllm"), context_tokens=512)
    plan = HelrPlanner().place(spec, read_shape(str(folder)), nvlinked(*EIGHT)).plan
    arguments = engine_arguments(plan, str(folder)) | {"dtype": "float32"}
    arguments["kv_cache_memory_bytes"] *= 2  # numbers are twice as wide

    prompt = tuple(tokenizer("hello")["input_ids"])
    row = Row("r", prompt, (), SamplingParameters(max_tokens=12, temperature=0.8, seed=5, ignore_eos=True))
    tensors = row_tensors("hello", LiveRow(row, Limits(frozenset({256}), 512), tokenizer.decode), {256})
    told, drawn, read, reason, tokens = ask(tmp_path, arguments, tensors)
    assert [int(one) for (one,) in told] == drawn, "one id a token, the drawn one"
    assert (len(drawn), read, reason) == (12, len(prompt), "length")
    assert spec.max_batch_rows * 512 <= tokens <= spec.max_batch_rows * 512 + 64, "the cache is as large as planned"
