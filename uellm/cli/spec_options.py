"""Arguments and options that say what is to be deployed, and the fields of the contract that they become."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from uellm.cli.options import MAX_TOKENS, duration_option
from uellm.local.engine import Backend

Weights = Annotated[
    Path,
    typer.Argument(
        metavar="WEIGHTS",
        help="Folder with config.json, safetensors and the tokenizer, as the deployer and Triton see it; a relative "
        "one counts from here.",
    ),
]
ModelName = Annotated[str, typer.Option("--model", help="Logical name that clients use; default: the folder's.")]
Engine = Annotated[Backend, typer.Option("--backend", help="Engine that is to serve it.")]
Objective = Annotated[str, typer.Option("--objective", help="HELR, LR or HE (docs/placement.md).")]
Rows = Annotated[int, typer.Option("--concurrency", min=1, max=1024, help="Rows of one batch.")]
Context = Annotated[
    int,
    typer.Option("--context", min=0, max=MAX_TOKENS, help="Prompt and answer, in tokens; 0: the model's limit."),
]
Dtype = Annotated[str, typer.Option("--dtype", help="float32, float16 or bfloat16; default: the engine's.")]
Devices = Annotated[list[str] | None, typer.Option("--device", help="Keep to this device, by its id; may be repeated.")]
FirstTokenSlo = Annotated[float | None, duration_option("--first-token-slo", "Of a prompt of 128 tokens, e.g. 200ms.")]
OutputTokenSlo = Annotated[
    float | None, duration_option("--output-token-slo", "Of a token in a full batch, e.g. 30ms.")
]

ARGUMENTS = {
    "spec.weights_path": "WEIGHTS",
    "spec.model": "--model",
    "spec.backend": "--backend",
    "spec.max_batch_rows": "--concurrency",
    "spec.context_tokens": "--context",
    "spec.max_output_tokens": "--max-tokens",
    "spec.default_generation": "--default",
    "spec.dtype": "--dtype",
    "spec.device_ids": "--device",
    "spec.first_token_slo": "--first-token-slo",
    "spec.output_token_slo": "--output-token-slo",
    "spec.queue_shard": "--shard",
    "deployment_id": "--id",
}
"""What violations of a field are said of."""
