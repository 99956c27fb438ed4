"""The systems that the paper compares, as the authors' scripts run them: batches, cap on the answers, GPUs."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from uellm_scheduler.app.core import SchedulerCore
from uellm_scheduler.domain.policy import Policy
from uellm_scheduler.policies.fifo import Fifo
from uellm_scheduler.policies.s3 import S3
from uellm_scheduler.policies.slo_odbs import Constants, SloOdbs
from uellm_simulator.batching import StaticBatching
from uellm_simulator.engine import Row
from uellm_simulator.fates import Fate
from uellm_simulator.scenario import MODEL, Engine, Scenario
from uellm_simulator.workload import Request
from uellm_simulator.world import World

from benchmarks.paper.fitting import Fitted
from benchmarks.paper.workload import CONTEXT_TOKENS, QuerySpec, as_published, requests
from uellm.cost.steps import StepTime

Cap = Callable[[int, int], int]
"""Most tokens of prompt and answer, given the longest prediction of the batch, and of all batches so far."""


def uncut(longest: int, so_far: int) -> int:  # noqa: ARG001
    """The model's context."""
    return CONTEXT_TOKENS


def half(longest: int, so_far: int) -> int:  # noqa: ARG001
    """1,024 tokens."""
    return 1_024


def predicted_and_50(longest: int, so_far: int) -> int:  # noqa: ARG001
    """What UELLM-all allows."""
    return longest + 50


def so_far_and_500(longest: int, so_far: int) -> int:  # noqa: ARG001
    """What UELLM-batch allows."""
    return min(so_far + 500, 1_024)


def sorted_by(length_weight: float) -> SloOdbs:
    """SLO-ODBS as the scripts run it: sort, then cut every ten; their threshold never binds."""
    return SloOdbs(Constants(length_weight=length_weight, threshold=math.inf))


@dataclass(frozen=True, slots=True)
class System:
    """One of them. Batches hold ten at most unless the policy says otherwise."""

    name: str
    policy: Policy
    gpus: int
    cap: Cap
    rows: int = 10
    stress_batches: int = 0
    """Served first, for nobody, on two GPUs; then the model is loaded anew."""
    foreign_load: bool = False
    """Whether another process used the GPUs in all but the first run."""


UELLM_ALL = System("UELLM-all", sorted_by(0.5), 1, predicted_and_50)
UELLM_BATCH = System("UELLM-batch", sorted_by(0.3), 4, so_far_and_500)
UELLM_DEPLOY = System("UELLM-deploy", Fifo(), 1, half)
S3_SYSTEM = System("S3", S3(max_batch_rows=20), 4, uncut, rows=20, foreign_load=True)
MORPHLING = System("Morphling", Fifo(), 1, uncut, stress_batches=5)
SYSTEMS = (UELLM_ALL, UELLM_DEPLOY, UELLM_BATCH, MORPHLING, S3_SYSTEM)

NEVER_SECONDS = 1e9
"""Between two looks at the queue while nothing happens: these policies do not look at the time."""
RELOAD_SECONDS = 30.0
"""Of Morphling between stress and service. Not in the logs: about what its published mean leaves."""


@dataclass(slots=True)
class Together(StaticBatching):
    """A batch as Hugging Face's `generate` makes it: all rows go on to the end of the longest, or to the cap."""

    cap: Cap
    predicted: Mapping[str, int]
    longest: int = 0
    batches: list[tuple[int, int]] = field(default_factory=list)
    """Rows and tokens of each."""

    def admit(self, running: Sequence[Row], waiting: deque[Row]) -> list[Row]:
        """The oldest batch, its rows as long as each other."""
        rows = StaticBatching.admit(self, running, waiting)
        if rows:
            longest = max(self.predicted[row.name] for row in rows)
            self.longest = max(self.longest, longest)
            room = self.cap(longest, self.longest) - max(row.prompt_tokens for row in rows)
            tokens = max(1, min(room, max(row.total_tokens for row in rows)))
            for row in rows:
                row.total_tokens = tokens
            self.batches.append((len(rows), tokens))
        return rows


@dataclass(frozen=True, slots=True)
class Outcome:
    """A run. Times in seconds from the first query's arrival, shares of 1."""

    makespan: float
    """The paper's latency: until the last answer."""
    mean_latency: float
    missed: float
    """Answers after their objective."""
    padded_tokens: float
    """A second: rows times longest, what the paper counts as throughput."""
    useful_tokens: float
    """A second: the tokens that answers have, up to a cap."""
    steps: float
    cut: float
    """Share of answers that the cap ended."""
    busy: float
    """Of the GPUs in use, on average: layers that are split over G GPUs run one after the other."""
    busy_of_four: float
    """Of the testbed's four."""
    batches: float = 0.0


def run(system: System, asked: Sequence[QuerySpec], lengths: Sequence[int], fitted: Mapping[int, Fitted], *,
        slowness: float = 1.0) -> Outcome:  # fmt: skip
    """Serve a hundred queries that are there at once.

    Args:
        system: who serves them.
        asked: the queries, in the order of the file.
        lengths: tokens of their answers, if they are not cut.
        fitted: step times by number of GPUs.
        slowness: by which another process slows the GPUs down.
    """
    times = fitted[system.gpus]
    together, fates = _play(system, requests(asked, lengths, as_published(asked)), asked, times.step)
    stress = _stress(system, asked, lengths, fitted)
    before = times.cold_seconds + stress + (RELOAD_SECONDS if stress else 0.0)
    serving = slowness * max(fate.finish_seconds for fate in fates)
    ends = [before + slowness * fate.finish_seconds for fate in fates]
    makespan = max(ends)
    made = [fate.output_tokens for fate in fates]
    useful = sum(min(length, tokens) for length, tokens in zip(lengths, made, strict=True))
    # Morphling's misses in the logs are those of objectives that count from the end of its stress test.
    waited = makespan - serving - times.cold_seconds
    late = sum(end - waited > fate.request.completion_seconds for end, fate in zip(ends, fates, strict=True))
    # The stress test holds two GPUs, which compute in turn; while a model is loaded nobody computes.
    computing, in_use = serving + stress, system.gpus * serving + 2 * (before - times.cold_seconds)
    return Outcome(
        makespan=makespan,
        mean_latency=fmean(ends),
        missed=late / len(fates),
        padded_tokens=sum(rows * tokens for rows, tokens in together.batches) / makespan,
        useful_tokens=useful / makespan,
        steps=float(sum(tokens for _, tokens in together.batches)),
        cut=sum(length > tokens for length, tokens in zip(lengths, made, strict=True)) / len(fates),
        busy=computing / in_use,
        busy_of_four=computing / makespan / 4,
        batches=float(len(together.batches)),
    )


def _play(
    system: System, played: Sequence[Request], asked: Sequence[QuerySpec], step: StepTime
) -> tuple[Together, list[Fate]]:
    engine = Engine(continuous=False, rows=system.rows, context_tokens=CONTEXT_TOKENS, step=step)
    world = World(SchedulerCore(MODEL, 1, system.policy), Scenario(engine=engine).records(), played,
                  tick_seconds=NEVER_SECONDS)  # fmt: skip
    predicted = {one.name: query.predicted_tokens for one, query in zip(played, asked, strict=True)}
    together = Together(system.cap, predicted)
    for deployed in world.deployed.values():
        deployed.engine.batching = together
    return together, world.run()


def _stress(system: System, asked: Sequence[QuerySpec], lengths: Sequence[int], fitted: Mapping[int, Fitted]) -> float:
    """Seconds of the batches that are served for nobody."""
    if not system.stress_batches:
        return 0.0
    count = system.stress_batches * system.rows
    probe = System("stress", Fifo(), 2, system.cap)
    times = fitted[probe.gpus]
    some = requests(asked[:count], lengths[:count], as_published(asked[:count]))
    _, fates = _play(probe, some, asked[:count], times.step)
    return times.cold_seconds + max(fate.finish_seconds for fate in fates)
