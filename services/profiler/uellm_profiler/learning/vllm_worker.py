"""Generates answers with vLLM; a script of its own, run by the Python of the environment that has vLLM.

    python vllm_worker.py MODEL_FOLDER CONTEXT_TOKENS DTYPE

Reads one request a line from standard input (`key`, `prompt_token_ids`, `temperature`, `top_p`, `repetition_penalty`,
`max_tokens`, `seed`, `stop`) until it ends, and writes one answer a line to standard output as each ends, in any
order: `key`, `output_tokens`, `finish` (`stop`, or `length` for one that was cut), `text`. What vLLM itself prints goes
to standard error.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "3")  # GiB
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # one process: it ends with its parent's pipe
os.environ.setdefault("HF_HUB_OFFLINE", "1")

STREAMS = 64
"""Answers generated at once."""


def main(folder: str, context_tokens: int, dtype: str) -> None:
    """Answer until standard input ends."""
    # The real standard output is ours alone: what vLLM and its libraries print there goes to standard error.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    from vllm import LLM, SamplingParams
    from vllm.sampling_params import RequestOutputKind

    llm = LLM(
        model=folder,
        dtype=dtype,
        max_model_len=context_tokens,
        max_num_seqs=STREAMS,
        enforce_eager=True,
        # A prompt read in parts rewinds its random numbers, which vLLM can't on a CPU.
        enable_chunked_prefill=False,
        max_num_batched_tokens=max(context_tokens, 4096),
    )
    engine = llm.llm_engine

    def add(request: dict[str, Any]) -> None:
        params = SamplingParams(
            temperature=request["temperature"],
            top_p=request["top_p"],
            repetition_penalty=request["repetition_penalty"],
            max_tokens=request["max_tokens"],
            seed=request["seed"],
            stop=request["stop"],
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        engine.add_request(request["key"], {"prompt_token_ids": request["prompt_token_ids"]}, params)

    requests = map(json.loads, sys.stdin)
    running, more = 0, True
    while more or running:
        while more and running < STREAMS:
            request = next(requests, None)
            if request is None:
                more = False
            else:
                add(request)
                running += 1
        for output in engine.step():
            if output.finished:
                running -= 1
                (answer,) = output.outputs
                line = {
                    "key": output.request_id,
                    "output_tokens": len(answer.token_ids),
                    "finish": answer.finish_reason,
                    "text": answer.text,
                }
                answers.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
