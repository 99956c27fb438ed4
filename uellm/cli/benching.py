"""`uellm bench`: its options. What it does is imported when it is called."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from uellm.cli.options import MAX_TOKENS, Json, Model, State
from uellm.local.engine import DEFAULT_BACKEND, Backend
from uellm.local.predictor import DEFAULT_PREDICTOR, PredictorKind
from uellm.local.state import default_folder

benching = typer.Typer()


@benching.command("bench")
def bench(
    trace: Annotated[
        Path | None,
        typer.Argument(
            exists=True,
            dir_okay=False,
            help="Times and tenants from Azure 2023 (.csv) or Mooncake (.jsonl); without one, they are drawn.",
        ),
    ] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            "--policy",
            help="Policy or peer (dynamic-batcher, engine-directly, morphling); may be repeated, the first is compared "
            "with the others. Default: uellm and fifo.",
        ),
    ] = None,
    load: Annotated[
        list[float] | None,
        typer.Option(
            min=0.01, max=10, help="Arrivals, of what full engines serve; may be repeated. Default: 0.8, 1.2."
        ),
    ] = None,
    rate: Annotated[float, typer.Option(min=0, help="Arrivals a second instead, and no burst before.")] = 0.0,
    rounds: Annotated[int, typer.Option(min=1, max=1000, help="Turns of each, with other arrivals each time.")] = 5,
    queries: Annotated[int, typer.Option(min=2, max=100_000, help="Of a run, that count.")] = 60,
    warm_up: Annotated[int, typer.Option(min=0, max=10_000, help="Of a run, before those that count.")] = 5,
    arrivals: Annotated[str, typer.Option(help="Without a trace: poisson, gamma:CV, or onoff:SHARE.")] = "poisson",
    tenants: Annotated[int, typer.Option(min=1, max=1000, help="Without a trace: as many ask.")] = 1,
    service_class: Annotated[
        list[str] | None,
        typer.Option(
            "--class",
            metavar="NAME=SHARE[:ANSWER[:FIRST]]",
            help="Share of queries, and when answer and first token are wanted; - or nothing: no objective. "
            "Default: interactive=0.3:12s standard=0.4:30s relaxed=0.2:90s best-effort=0.1.",
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="JSON lines with prompt and id. Default: held-out ones."),
    ] = None,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", min=1, max=MAX_TOKENS, help="Longest answer, in tokens.")
    ] = 192,
    seed: Annotated[int, typer.Option(min=0, max=10**6, help="Of arrivals, classes and prompts.")] = 0,
    engine: Annotated[Backend, typer.Option("--engine", help="Of the embedded stack: hf or vllm.")] = DEFAULT_BACKEND,
    length_predictor: Annotated[
        PredictorKind, typer.Option("--predictor", help="Of the embedded stack.")
    ] = DEFAULT_PREDICTOR,
    weights: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="Another model for the embedded stack. Needs --model."),
    ] = None,
    attach: Annotated[
        bool,
        typer.Option(
            "--attach", help="Measure the stack that runs in --state, or that the environment names; start none."
        ),
    ] = False,
    endpoint: Annotated[
        str,
        typer.Option(
            metavar="PROFILER,SCHEDULER,DEPLOYER", help="Measure the services at these host:port; start none."
        ),
    ] = "",
    model: Model = "",
    state: State = default_folder(),
    out: Annotated[
        Path | None, typer.Option("--out", dir_okay=False, help="Write every query of every run there, as JSON.")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the tables as Markdown.")] = False,
    as_json: Json = False,
) -> None:
    """Measure policies, and peers beside them, live: open-loop traffic, in turns, with paired intervals.

    Without --attach or --endpoint an embedded stack is started for it, and ended. Ctrl-C keeps the complete runs.
    """
    from uellm.cli.errors import needing

    with needing("simulator,local"):
        from uellm.cli import bench as command

    if load and rate:
        raise typer.BadParameter("takes the place of --load: say one of them", param_hint="--rate")
    if weights is not None and (attach or endpoint or not model):
        raise typer.BadParameter("belongs to an embedded stack, and needs --model", param_hint="--weights")
    traffic = command.Traffic(trace, arrivals, tenants, service_class or (), prompts, max_tokens)
    where = command.Where(engine, length_predictor, weights, attach, endpoint, model, state)
    plan = command.plan_of(policy, load, rate, rounds, queries, warm_up, seed)
    raise typer.Exit(command.bench(traffic, where, plan, command.Shown(out, markdown, as_json)))
