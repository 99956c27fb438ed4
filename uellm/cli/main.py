"""The commands and their options. What they do is imported when one is called, so that the others start fast."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from uellm.cli.benching import benching
from uellm.cli.changing import changing
from uellm.cli.deploying import deploying
from uellm.cli.letters import letters
from uellm.cli.model import model as model_commands
from uellm.cli.options import MAX_TOKENS, Json, Model, State, Tenant, duration_option
from uellm.cli.predictor import predictor
from uellm.cli.simulating import simulating
from uellm.local.engine import DEFAULT_BACKEND, Backend
from uellm.local.ports import DEFAULT_BASE, MAX_BASE
from uellm.local.predictor import DEFAULT_PREDICTOR, PredictorKind
from uellm.local.state import default_folder

app = typer.Typer(
    help="Serves large language models on NVIDIA Triton with deadlines kept.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
cache = typer.Typer(help="The cache of converted models.", no_args_is_help=True)
app.add_typer(cache, name="cache")
app.add_typer(predictor, name="predictor")
app.add_typer(letters, name="dead-letters")
app.add_typer(model_commands, name="model")
app.add_typer(deploying)
app.add_typer(changing)
app.add_typer(simulating)
app.add_typer(benching)


def _prompt(text: str) -> str:
    content = sys.stdin.read() if text == "-" else text
    try:
        content.encode()
    except UnicodeEncodeError:
        raise typer.BadParameter("must be UTF-8 text") from None
    return content


PromptText = Annotated[str, typer.Argument(parser=_prompt, metavar="PROMPT", help="What to answer; - reads stdin.")]
MaxTokens = Annotated[
    int | None, typer.Option("--max-tokens", min=1, max=MAX_TOKENS, help="Longest answer, in tokens.")
]
Policy = Annotated[str, typer.Option("--policy", help="Batching policy of the scheduler, e.g. fifo.")]
ENGINE_HELP = "What generates: hf, transformers in static batches; vllm, continuously (`make vllm-env`)."


@app.command()
def up(
    state: State = default_folder(),
    port_base: Annotated[
        int,
        typer.Option(
            min=0,
            max=MAX_BASE,
            help="Ports: the services here and at the next two, Redis and Triton ten further on; 0: free ones.",
        ),
    ] = DEFAULT_BASE,
    policy: Policy = "uellm",
    weights: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="Folder of another model, safetensors. Needs --model."),
    ] = None,
    model: Annotated[str, typer.Option("--model", help="Name under which --weights is served.")] = "",
    length_predictor: Annotated[
        PredictorKind, typer.Option("--predictor", help="What predicts the length of answers.")
    ] = DEFAULT_PREDICTOR,
    engine: Annotated[Backend, typer.Option("--engine", help=ENGINE_HELP)] = DEFAULT_BACKEND,
    detach: Annotated[bool, typer.Option("--detach", help="Return when it is ready; `uellm down` ends it.")] = False,
) -> None:
    """Run the whole stack on this machine until Ctrl-C: Redis, Triton, the three services, a model."""
    from uellm.cli import up as command

    if (weights is None) != (not model):
        raise typer.BadParameter("--weights and --model belong together")
    wanted = command.Wanted(state, port_base, policy, weights, model, length_predictor, engine)
    if detach:
        command.up_detached(wanted)
    else:
        command.up(wanted)


@app.command()
def down(state: State = default_folder()) -> None:
    """End the stack that runs in the state folder."""
    from uellm.cli.up import down as command

    command(state)


@app.command()
def generate(
    prompt: PromptText,
    slo: Annotated[float | None, duration_option("--slo", "The whole answer within this, e.g. 20s.")] = None,
    first_token_slo: Annotated[
        float | None, duration_option("--first-token-slo", "The first token within this, e.g. 500ms.")
    ] = None,
    max_tokens: MaxTokens = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.")] = None,
    seed: Annotated[int | None, typer.Option(min=-(2**63), max=2**63 - 1, help="Of the sampling.")] = None,
    model: Model = "",
    state: State = default_folder(),
    as_json: Json = False,
) -> None:
    """Answer a prompt: the text streams to stdout, then stderr gets predicted against actual."""
    from uellm.cli import ask

    options = ask.options(model, slo, first_token_slo, max_tokens, temperature, seed)
    raise typer.Exit(ask.generate(state, prompt, options, as_json=as_json))


@app.command()
def profile(
    prompt: PromptText,
    max_tokens: MaxTokens = None,
    model: Model = "",
    state: State = default_folder(),
    as_json: Json = False,
) -> None:
    """Show what a prompt would cost. Nothing runs."""
    from uellm.cli import ask

    ask.profile(state, prompt, ask.options(model, max_tokens=max_tokens), as_json=as_json)


@app.command()
def status(state: State = default_folder()) -> None:
    """Show the parts of the stack, what is deployed, and the queues."""
    from uellm.cli.status import status as command

    command(state)


@app.command()
def cancel(
    name: Annotated[str, typer.Argument(help="Resource name of a query.")], state: State = default_folder()
) -> None:
    """End a query that waits or runs."""
    from uellm.cli import ask

    ask.cancel(state, name)


@app.command()
def queries(
    watch: Annotated[bool, typer.Option("--watch", help="Show outcomes as they come, until Ctrl-C.")] = False,
    model: Model = "",
    tenant: Tenant = "",
    state: State = default_folder(),
    as_json: Json = False,
) -> None:
    """List a tenant's queries, oldest first: those that wait or run, and those that ended lately."""
    from uellm.cli.queries import show, watch_outcomes

    command = watch_outcomes if watch else show
    command(state, model, tenant, as_json=as_json)


@app.command("policy")
def show_or_set_policy(
    name: Annotated[str | None, typer.Argument(help="Policy that is to decide from now on.")] = None,
    model: Model = "",
    state: State = default_folder(),
) -> None:
    """List the batching policies, or change the one that serves a model; nothing that waits or runs is touched."""
    from uellm.cli.policy import change, show

    if name is None:
        show(state, model)
    else:
        change(state, model, name)


@app.command()
def explain(
    name: Annotated[str, typer.Argument(help="Resource name of a query.")],
    state: State = default_folder(),
    as_json: Json = False,
) -> None:
    """Say why a query was served when it was, or refused."""
    from uellm.cli import ask

    ask.explain(state, name, as_json=as_json)


@app.command("replay")
def replay_decisions(
    policy: Annotated[str, typer.Option("--policy", help="Ask this one instead of those that decided.")] = "",
    model: Model = "",
    shard: Annotated[int, typer.Option(min=0, help="Of the model's queue, if it has several.")] = 0,
    file: Annotated[
        Path | None,
        typer.Option("--file", exists=True, dir_okay=False, help="A recording of `uellm simulate --decisions`."),
    ] = None,
    state: State = default_folder(),
    as_json: Json = False,
) -> None:
    """Take the recorded decisions again: check that they come out the same, or see what another policy had done."""
    from uellm.cli.errors import needing

    with needing("scheduler"):
        from uellm.cli import replay as command

    source = command.Source(state, model, shard, file)
    if policy:
        raise typer.Exit(command.compare(source, policy, as_json=as_json))
    raise typer.Exit(command.verify(source, as_json=as_json))


@app.command("demo")
def run_demo(
    requests: Annotated[int, typer.Option(min=1, max=10_000, help="How many prompts.")] = 36,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of the order of prompts and their arrivals.")] = 1,
    rate: Annotated[float, typer.Option(min=0.01, max=1000, help="Mean arrivals a second.")] = 1.5,
    policy: Policy = "",
    engine: Annotated[Backend | None, typer.Option("--engine", help=ENGINE_HELP)] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", dir_okay=False, help="Write the results there, too.")
    ] = None,
    state: State = default_folder(),
) -> None:
    """Serve real prompts that arrive over time, in three classes, and show predicted against actual."""
    from uellm.cli.demo import Plan, demo

    raise typer.Exit(demo(state, Plan(requests, seed, rate, policy, engine), json_file))


@cache.command("clear")
def cache_clear() -> None:
    """Remove the converted default model; the next start converts it again."""
    from uellm.local.model import clear_cache

    typer.echo(f"removed {clear_cache()}")


def main() -> None:
    """Entry point. Exit status 1: something is wrong, said on stderr; 2: wrong usage."""
    from uellm.cli.errors import expected, say

    try:
        app()
    except Exception as error:
        if not expected(error):
            raise
        say(error)
        sys.exit(1)


if __name__ == "__main__":
    main()
