"""`uellm predictor`: the commands and their options. What they do is imported when one is called."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from uellm.cli.options import Json, Model, State
from uellm.local.state import default_folder

predictor = typer.Typer(help="The predictor of answer lengths.", no_args_is_help=True)


@predictor.command()
def show(state: State = default_folder(), as_json: Json = False) -> None:
    """Show which predictor is in force, and how well it has done lately."""
    from uellm.cli.predictor_service import show as command

    command(state, as_json=as_json)


@predictor.command()
def install(
    folder: Annotated[
        Path, typer.Argument(exists=True, file_okay=False, help="Folder of an adapter, as `train` writes it.")
    ],
    validate_only: Annotated[
        bool, typer.Option("--validate-only", help="Load and check it, but do not switch.")
    ] = False,
    state: State = default_folder(),
) -> None:
    """Switch the running profilers to an adapter; queries in flight end with the one before."""
    from uellm.cli.predictor_service import install as command

    command(state, folder.absolute(), validate_only=validate_only)


@predictor.command()
def rollback(state: State = default_folder()) -> None:
    """Return to the predictor before the last installation."""
    from uellm.cli.predictor_service import rollback as command

    command(state)


PromptFiles = Annotated[
    list[Path] | None,
    typer.Option(
        "--prompts", exists=True, dir_okay=False, help="JSON lines with `id` and `prompt`; default: the project's."
    ),
]
Engine = Annotated[
    Literal["served", "vllm"], typer.Option(help="The stack that runs, or vLLM (`make vllm-env`), which is faster.")
]
VllmPython = Annotated[Path, typer.Option(help="Python of the environment that has vLLM.")]
VLLM_PYTHON = Path(".venv-vllm/bin/python")
Weights = Annotated[
    Path | None, typer.Option(exists=True, file_okay=False, help="Folder of the model; default: the default model.")
]
Seed = Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Of everything that is drawn.")]
Public = Annotated[
    Path | None,
    typer.Option(
        exists=True,
        file_okay=False,
        help="Folder with the public prompt sets (prompts_mt_bench.jsonl, ...), whose texts are not in the package.",
    ),
]


@predictor.command()
def collect(
    labels: Annotated[Path, typer.Argument(dir_okay=False, help="Labels are appended here; run again, it goes on.")],
    prompts: PromptFiles = None,
    engine: Engine = "served",
    greedy: Annotated[bool, typer.Option(help="Answer each prompt once greedily.")] = True,
    samples: Annotated[int, typer.Option(min=0, max=64, help="Answer it so many times more, sampled.")] = 0,
    sampled_prompts: Annotated[
        int | None, typer.Option(min=1, help="Sample only for so many prompts, drawn at random.")
    ] = None,
    temperature: Annotated[float, typer.Option(min=0.01, max=2.0, help="Of the samples.")] = 0.7,
    top_p: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Of the samples; below 1, vLLM is half as fast on a CPU.")
    ] = 1.0,
    repetition_penalty: Annotated[
        float, typer.Option(min=0.01, max=10.0, help="Of all answers; without one small models run away.")
    ] = 1.15,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longer answers are cut, and labelled so.")] = 512,
    longest_prompt: Annotated[int, typer.Option(min=1, help="In tokens; longer ones are left out.")] = 1_024,
    weights: Weights = None,
    model: Model = "",
    seed: Seed = 0,
    vllm_python: VllmPython = VLLM_PYTHON,
    dtype: Annotated[
        Literal["float32", "bfloat16"],
        typer.Option(help="Of vLLM; bfloat16 is faster, but near-ties of greedy answers may fall otherwise."),
    ] = "float32",
    state: State = default_folder(),
) -> None:
    """Run prompts through the served model and write down how long its answers are."""
    from uellm_profiler.learning.collect import CollectPlan
    from uellm_profiler.learning.labels import Decoding

    from uellm.cli import predictor_learning as command

    def plan(name: str) -> CollectPlan:
        greedily = Decoding(0.0, 1.0, repetition_penalty) if greedy else None
        sampled = Decoding(temperature, top_p, repetition_penalty) if samples else None
        return CollectPlan(name, greedily, sampled, samples, sampled_prompts, max_tokens, longest_prompt, seed)

    source = command.Source(engine, state, vllm_python, weights, model, dtype)
    command.run_collect(prompts or command.own_prompts(), labels, source, plan)


@predictor.command()
def invent(
    out: Annotated[Path, typer.Argument(dir_okay=False, help="File of prompts to write.")],
    count: Annotated[int, typer.Option(min=1, max=100_000, help="How many.")] = 1_000,
    prompts: PromptFiles = None,
    engine: Engine = "served",
    weights: Weights = None,
    model: Model = "",
    seed: Seed = 0,
    vllm_python: VllmPython = VLLM_PYTHON,
    state: State = default_folder(),
) -> None:
    """Have the served model invent prompts like those in --prompts (self-instruct)."""
    from uellm.cli import predictor_learning as command

    source = command.Source(engine, state, vllm_python, weights, model)
    command.run_invent(prompts or command.own_prompts(), out, count, seed, source)


@predictor.command()
def train(
    out: Annotated[Path, typer.Argument(file_okay=False, help="Folder of the adapter; run again, training goes on.")],
    kind: Annotated[
        Literal["lora", "fast"], typer.Option(help="A causal language model, or the MiniLM encoder.")
    ] = "lora",
    layers: Annotated[int | None, typer.Option(min=1, help="First layers of the base model that are kept.")] = None,
    epochs: Annotated[int, typer.Option(min=1, max=1_000, help="Passes over the prompts.")] = 3,
    seed: Seed = 0,
    version: Annotated[str, typer.Option(help="Of the adapter.")] = "1",
    prompts: PromptFiles = None,
    labels: Annotated[
        list[Path] | None,
        typer.Option(exists=True, dir_okay=False, help="What `collect` wrote; default: the project's."),
    ] = None,
    public: Public = None,
    base: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="Folder of another base model.")
    ] = None,
) -> None:
    """Train a predictor on labelled prompts."""
    from uellm.cli import predictor_training as command

    if kind == "fast" and base is not None:
        raise typer.BadParameter("the encoder of --kind fast comes in a package: leave --base out")
    data = command.Data(tuple(prompts or ()), tuple(labels or ()), public)
    command.train(command.Wanted(data, out, kind, layers, epochs, seed, version, base))


@predictor.command()
def evaluate(
    adapter: Annotated[
        list[Path] | None,
        typer.Option(exists=True, file_okay=False, help="Adapters to evaluate; default: those of the package."),
    ] = None,
    publish: Annotated[
        Path | None,
        typer.Option(file_okay=False, help="Train the baselines anew and write the card there. Needs --public."),
    ] = None,
    public: Public = None,
    base: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="Folder of another base model.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Score the predictors on held-out prompts, and check that it is to the digit what the package's card says.

    Exit status 1: it is not.
    """
    from uellm.cli import predictor_evaluation as command

    raise typer.Exit(command.evaluate(adapter or [], publish, public, base, as_json=as_json))
