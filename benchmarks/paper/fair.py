"""The policies under equal conditions: the same answers, none cut, the same GPU, useful tokens."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from statistics import fmean

from uellm_scheduler.app.core import SchedulerCore
from uellm_scheduler.policies import POLICIES
from uellm_simulator.arrivals import Gamma, Generated, LogNormal
from uellm_simulator.runs import Paired, Source, capacity, run
from uellm_simulator.scenario import MODEL, Engine, Scenario
from uellm_simulator.workload import MEASURED, Predictions
from uellm_simulator.world import World

from benchmarks.paper.fitting import Fitted
from benchmarks.paper.section import Cell, Section
from benchmarks.paper.workload import (
    ANSWER_MEDIAN,
    ANSWER_SPREAD,
    CONTEXT_TOKENS,
    PROMPTS,
    RUNAWAY,
    QuerySpec,
    answers,
    as_published,
    queries,
    requests,
)
from uellm.cost.lengths import LengthDistribution
from uellm.cost.steps import StepTime

ROWS = 10
NAMES = ("fifo", "edf", "sjf", "s3", "odbs", "slo-dbs", "slo-odbs", "saber", "uellm")
"""The first is what the others are compared with."""
SEEDS = 8
TIGHTNESS = (1.0, 2.0)
PREDICTIONS = {"characters": None, "measured": MEASURED, "oracle": Predictions()}
"""The authors' character counts; as far off as this project's predictor; the truth."""
LOADS = (0.7, 0.9, 1.1)
ARRIVALS, WARM_UP = 400, 50
TICK_SECONDS = 1.0


def engine_of(step: StepTime, *, continuous: bool = False) -> Engine:
    """One GPU of the testbed. Where rows join at any step, a prefill counts as one step, for it is not known."""
    if continuous:
        step = replace(step, startup=step.base)
    # 24 GiB less 12.3 of the model, at 28 KiB a token.
    return Engine(continuous, ROWS, CONTEXT_TOKENS, step, kv_tokens=430_000)


def _predicted(asked: Sequence[QuerySpec], lengths: Sequence[int], kind: str, seed: int) -> list[LengthDistribution]:
    predictions = PREDICTIONS[kind]
    if predictions is None:
        return as_published(asked)
    rooms = [CONTEXT_TOKENS - query.prompt_tokens for query in asked]
    return [
        predictions.of(min(length, room), room, random.Random(f"{seed}/{number}"))
        for number, (length, room) in enumerate(zip(lengths, rooms, strict=True))
    ]


@dataclass(frozen=True, slots=True)
class Closed:
    """What became of a hundred queries that were there at once."""

    makespan: float
    latency: float
    """Mean, of the answers."""
    useful_tokens: float
    """A second."""
    missed: float
    """Late or refused, of all."""
    refused: float
    busy: float
    """Share of the makespan in which the GPUs computed."""


def closed(
    policy: str, kind: str, tightness: float, seed: int, step: StepTime, gpus: int = 1, *, continuous: bool = False
) -> Closed:
    """Serve them; objectives are the paper's, but of no particular position, divided by `tightness`."""
    asked = queries(seed)
    slos = [query.slo_seconds for query in asked]
    random.Random(f"slos/{seed}").shuffle(slos)
    asked = [replace(query, slo_seconds=slo) for query, slo in zip(asked, slos, strict=True)]
    lengths = [
        min(length, CONTEXT_TOKENS - query.prompt_tokens)
        for query, length in zip(asked, answers(asked, f"fair/{seed}"), strict=True)
    ]
    played = requests(asked, lengths, _predicted(asked, lengths, kind, seed), tightness=tightness)
    scenario = Scenario(engine=engine_of(step, continuous=continuous), deployments=gpus)
    core = SchedulerCore(MODEL, 1, POLICIES[policy], seed=seed)
    world = World(core, scenario.records(), played, tick_seconds=TICK_SECONDS)
    fates = world.run()
    served = [fate for fate in fates if fate.completed]
    makespan = max(fate.finish_seconds for fate in served)
    computing = sum(deployed.engine.busy_seconds for deployed in world.deployed.values())
    return Closed(
        makespan=makespan,
        latency=fmean(fate.latency for fate in served),
        useful_tokens=sum(fate.output_tokens for fate in served) / makespan,
        missed=sum(not fate.in_time for fate in fates) / len(fates),
        refused=sum(fate.refused for fate in fates) / len(fates),
        busy=computing / makespan / gpus,
    )


CLOSED = (
    [(name, "measured", tightness) for tightness in TIGHTNESS for name in NAMES]
    + [(name, kind, 1.0) for kind in ("characters", "oracle") for name in ("fifo", "s3", "odbs", "slo-odbs", "uellm")]
)  # fmt: skip


def closed_section(pool: Executor, fitted: Mapping[int, Fitted], seeds: int = SEEDS) -> tuple[Section, dict[str, str]]:
    """All policies, a hundred queries at once; and the paper's policy against first come, first served, by figure."""
    step = fitted[1].step
    futures = {one: [pool.submit(closed, *one, seed, step) for seed in range(seeds)] for one in CLOSED}
    found = {one: [future.result() for future in some] for one, some in futures.items()}
    rows: list[tuple[Cell, ...]] = []
    for (name, kind, tightness), runs in found.items():
        first = found[NAMES[0], kind, tightness]
        rows.append(
            (
                _objectives(tightness),
                kind,
                name,
                fmean(one.makespan for one in runs),
                _against(runs, first, "makespan"),
                fmean(one.latency for one in runs),
                _against(runs, first, "latency"),
                fmean(one.useful_tokens for one in runs),
                _share(one.missed for one in runs),
                _points(runs, first),
                _share(one.refused for one in runs),
            )
        )
    notes = (
        (
            f"One GPU, batches of {ROWS}, rows that leave as they end, nothing cut, the same answers for every policy, "
            f"objectives drawn without regard to position; {seeds} seeds, differences to fifo with paired 95 % "
            "intervals. "
            "Makespan is the paper's latency; where a policy refuses, it does less work, and its makespan is no gain."
        ),
        (
            "Predictions: the authors' character counts of other answers; as far off as this project's predictor on "
            "prompts that it never saw; the truth."
        ),
    )
    header = (
        "objectives", "predictions", "policy", "makespan, s", "to fifo", "mean latency, s", "to fifo ",
        "useful tokens/s", "missed", "to fifo, points", "of these refused",
    )  # fmt: skip
    theirs, first = found["slo-odbs", "characters", 1.0], found["fifo", "characters", 1.0]
    left = {
        "latency": _against(theirs, first, "makespan"),
        "throughput": _against(theirs, first, "useful_tokens"),
        "busy": _against(theirs, first, "busy"),
        "missed": f"{_share(one.missed for one in theirs)} (fifo {_share(one.missed for one in first)})",
        "missed twice as tight": _share(one.missed for one in found["slo-odbs", "measured", 2.0]),
    }
    return Section("Fair: a hundred queries at once", notes, header, tuple(rows)), left


def _objectives(tightness: float) -> str:
    return f"{90 / tightness:.0f} to {250 / tightness:.0f} s"


def _share(values: object) -> str:
    return f"{100 * fmean(values):.1f} %"  # type: ignore[arg-type]


def _against(runs: Sequence[Closed], first: Sequence[Closed], figure: str) -> str:
    ratios = [getattr(one, figure) / getattr(other, figure) - 1 for one, other in zip(runs, first, strict=True)]
    pair = Paired.of(ratios, [0.0] * len(ratios))
    return f"{100 * pair.mean:+.1f} % ({100 * pair.low:+.1f} to {100 * pair.high:+.1f})"


def _points(runs: Sequence[Closed], first: Sequence[Closed]) -> str:
    pair = Paired.of([100 * one.missed for one in runs], [100 * one.missed for one in first])
    return f"{pair.mean - pair.other:+.1f} ({pair.low:+.1f} to {pair.high:+.1f})"


class Answers(LogNormal):
    """Some run away."""

    def draw(self, random: random.Random) -> int:
        """One of them."""
        return self.most if random.random() < RUNAWAY else super().draw(random)


SOURCE = Source(
    generated=Generated(
        Gamma(1.0),
        LogNormal(median=28.0, spread=0.25, least=PROMPTS[0], most=PROMPTS[1]),
        Answers(median=ANSWER_MEDIAN, spread=ANSWER_SPREAD, most=CONTEXT_TOKENS - PROMPTS[1]),
    )
)
OPEN = [(name, False) for name in NAMES] + [("fifo", True), ("uellm", True)]
"""Policies, and whether rows join at any step."""


def open_section(pool: Executor, fitted: Mapping[int, Fitted], seeds: int = 5) -> Section:
    """All policies, arrivals at random."""
    base = Scenario(engine=engine_of(fitted[1].step), count=ARRIVALS, warm_up=WARM_UP, tick_seconds=TICK_SECONDS)
    full = capacity(SOURCE, replace(base, count=1_000))
    wanted = {
        (load, *one): [
            replace(base, engine=engine_of(fitted[1].step, continuous=one[1]), policy=one[0], load=load, seed=seed)
            for seed in range(seeds)
        ]
        for load in LOADS
        for one in OPEN
    }
    futures = {key: [pool.submit(run, SOURCE, one, full) for one in some] for key, some in wanted.items()}
    found = {key: [future.result().metrics for future in some] for key, some in futures.items()}
    rows: list[tuple[Cell, ...]] = []
    for (load, name, continuous), runs in found.items():
        first = found[load, NAMES[0], False]
        pair = Paired.of(
            [100 * one.attainment.in_time for one in runs], [100 * one.attainment.in_time for one in first]
        )
        rows.append(
            (
                load,
                name + (", rows join" if continuous else ""),
                f"{pair.mean:.1f} %",
                f"{pair.mean - pair.other:+.1f} ({pair.low:+.1f} to {pair.high:+.1f})",
                _share(one.attainment.late for one in runs),
                _share(one.attainment.refused for one in runs),
                fmean(one.goodput for one in runs),
                fmean(one.useful_tokens for one in runs),
                *tuple(fmean(one.latency[at] for one in runs) for at in (0, 1)),
            )
        )
    notes = (
        (
            f"The same GPU and answers; queries arrive as a Poisson process at a share of what full static batches of "
            f"{ROWS} serve first come, first served ({full:.2f}/s): {ARRIVALS} of them, the first {WARM_UP} not "
            "counted, "
            f"{seeds} seeds. Predictions as far off as this project's predictor. Objectives are the simulator's "
            "classes "
            "(4, 10 and 30 times what the median answer takes alone; a tenth have none). 'Rows join': the same step "
            "times "
            "with iteration-level batching, ten rows at most, on the same arrivals."
        ),
    )
    header = (
        "load", "policy", "in time", "to fifo, points", "late", "refused", "goodput/s", "useful tokens/s",
        "p50 latency, s", "p95 latency, s",
    )  # fmt: skip
    return Section("Fair: queries that arrive at random", notes, header, tuple(rows))
