"""What traffic would do: the commands and their options. What they do is imported when one is called."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from uellm.cli.options import Json

simulating = typer.Typer()


class EngineChoice(StrEnum):
    """Kinds of engines that are simulated."""

    STATIC = "static"
    CONTINUOUS = "continuous"


TraceFile = Annotated[
    Path | None,
    typer.Argument(
        exists=True, dir_okay=False, help="Azure 2023 (.csv) or Mooncake (.jsonl); without one, arrivals are drawn."
    ),
]
Count = Annotated[int, typer.Option(min=1, help="Requests that are played; of a trace, from another place by seed.")]
Arrivals = Annotated[
    str,
    typer.Option(
        help="Without a trace: poisson, gamma:CV (of the gaps), onoff:SHARE (of time that is on), clients:COUNT, or a "
        "file of clients (.json)."
    ),
]
EngineOption = Annotated[EngineChoice, typer.Option("--engine", help="Fixed batches, or rows that join at any step.")]
Gpus = Annotated[int, typer.Option(min=1, max=64, help="Engines, one model each.")]
Rows = Annotated[int, typer.Option(min=0, max=1024, help="Rows of one engine; 0: its default.")]
Predictions = Annotated[
    str,
    typer.Option(help="measured (as the shipped predictor), oracle, normal:SPREAD of ln(length), or a table (.json)."),
]
Noise = Annotated[float, typer.Option(min=0, max=3, help="Further error of ln(length), of which nobody knows.")]
Tightness = Annotated[float, typer.Option(min=0.01, max=100, help="Deadlines are divided by it.")]
Seed = Annotated[int, typer.Option(min=0, max=10**6, help="The first one.")]
Jobs = Annotated[int, typer.Option(min=0, max=256, help="Processes; 0: as many as cores.")]


@simulating.command("simulate")
def simulate(
    trace: TraceFile = None,
    policy: Annotated[
        list[str] | None, typer.Option("--policy", help="May be repeated: the first is compared with. Default: uellm.")
    ] = None,
    what_if: Annotated[
        list[str] | None,
        typer.Option("--what-if", metavar="KEY=VALUE", help="Compare with another gpus, policy, rows, tightness, ..."),
    ] = None,
    load: Annotated[float, typer.Option(min=0, max=10, help="Arrivals, of what full engines serve; 0: as told.")] = 1.0,
    engine: EngineOption = EngineChoice.STATIC,
    gpus: Gpus = 1,
    rows: Rows = 0,
    count: Count = 1_000,
    arrivals: Arrivals = "poisson",
    predictions: Predictions = "measured",
    noise: Noise = 0.0,
    tightness: Tightness = 1.0,
    seed: Seed = 0,
    seeds: Annotated[int, typer.Option(min=1, max=100, help="Runs of each, with other draws.")] = 1,
    trace_out: Annotated[
        Path | None, typer.Option("--trace-out", dir_okay=False, help="Write the first run there, for ui.perfetto.dev.")
    ] = None,
    decisions: Annotated[
        Path | None,
        typer.Option("--decisions", dir_okay=False, help="Write the first run's decisions there, for uellm replay."),
    ] = None,
    jobs: Jobs = 0,
    as_json: Json = False,
) -> None:
    """Play traffic through the scheduler's own core and policies, with virtual clock and engines."""
    from uellm.cli.errors import needing

    with needing("simulator"):
        from uellm.cli import simulate as command

    asked = command.Asked(
        trace, engine.value, gpus, rows, load, count, arrivals, predictions, noise, tightness, seed, jobs
    )
    command.simulate(asked, policy or ["uellm"], what_if or (), seeds, trace_out, decisions, as_json=as_json)


@simulating.command("capacity")
def capacity(
    trace: TraceFile = None,
    attainment: Annotated[float, typer.Option(min=0.01, max=1, help="Share of deadlines that are to be kept.")] = 0.95,
    rate: Annotated[float, typer.Option(min=0, help="Requests a second; 0: as the trace.")] = 0.0,
    policy: Annotated[str, typer.Option("--policy")] = "uellm",
    engine: EngineOption = EngineChoice.STATIC,
    rows: Rows = 0,
    count: Count = 1_000,
    arrivals: Arrivals = "poisson",
    predictions: Predictions = "measured",
    tightness: Tightness = 1.0,
    most: Annotated[int, typer.Option("--most", min=1, max=64, help="GPUs that could be had.")] = 32,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Say how many GPUs traffic needs for a share of its deadlines."""
    from uellm.cli.errors import needing

    with needing("simulator"):
        from uellm.cli import simulate as command

    asked = command.Asked(trace, engine.value, 1, rows, 0.0, count, arrivals, predictions, 0.0, tightness, seed, 1)
    raise typer.Exit(command.capacity_command(asked, policy, attainment, rate, most, as_json=as_json))
