"""The paper's deployment part: HELR against splits over the testbed's four GPUs."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import replace
from statistics import fmean
from typing import Any

from uellm_deployer.adapters.topology_file import read_topology
from uellm_deployer.domain.facts import model_shape
from uellm_deployer.domain.helr.cost import PER_SECOND, Pricing, Span
from uellm_deployer.domain.helr.problem import Goal, Problem
from uellm_deployer.domain.helr.result import Plan
from uellm_deployer.domain.helr.solve import solve
from uellm_deployer.domain.placing import problem_of
from uellm_deployer.domain.plan import DeploymentSpec
from uellm_deployer.domain.sizing import Sizing
from uellm_deployer.domain.topology import DeviceKind
from uellm_simulator.runs import Paired

from benchmarks.paper.fair import SEEDS, TICK_SECONDS, closed
from benchmarks.paper.fitting import Fitted
from benchmarks.paper.section import Cell, Section
from benchmarks.placement.baselines import even_split
from benchmarks.placement.cases import llama

TESTBED = """
devices:
  - {id: GPU, count: 4, model: RTX 3090, numa_node: 0}
"""
"""Four cards of 24 GiB below one PCIe host bridge; the logs do not name them, nor their links."""
CHATGLM2 = llama(28, 4096, 13696, 32, 2, 32_768) | {"vocab_size": 65_024}
"""ChatGLM2-6B has the layers of a Llama with two key-value heads; its tensors' names differ."""
ROWS, CONTEXT = 1, 2_048
"""As in the authors' runs by number of GPUs."""
MEASURED_TOKENS = 263
"""Of an answer, mean of those runs."""


def problem(rows: int = ROWS) -> Problem:
    """ChatGLM2-6B in half precision on the testbed, by the static engine."""
    topology = read_topology(TESTBED)
    spec = DeploymentSpec("chatglm2-6b", "", dtype="float16", max_batch_rows=rows, context_tokens=CONTEXT)
    gpus = tuple(device for device in topology.devices if device.kind is DeviceKind.GPU)
    return problem_of(Sizing.of(spec, model_shape(CHATGLM2, (), ""), DeviceKind.GPU), gpus, topology)


def with_copies(whole: Problem) -> Problem:
    """The same, where a plan may have as many copies as there is room for."""
    return replace(whole, constraints=replace(whole.constraints, max_copies=None))


def on(whole: Problem, gpus: int) -> Problem:
    """The same with the first devices only."""
    ids = [device.id for device in whole.devices[:gpus]]
    links = tuple(link for link in whole.links if {link.device_a, link.device_b} <= set(ids))
    return replace(whole, devices=whole.devices[:gpus], links=links)


def alternating(layers: int) -> list[Span]:
    """The authors' second hand-written map: every other layer on the other GPU."""
    return [Span((layer % 2,), layer, layer + 1) for layer in range(layers)]


def step_seconds(whole: Problem, spans: list[Span]) -> float:
    """One decode step through all stages and hops, as HELR prices it."""
    return Pricing(whole).price(spans).latency / PER_SECOND


def measured_step(times: Fitted) -> float:
    """Mean decode step of one row in the authors' runs."""
    return times.step.step_seconds(1, MEASURED_TOKENS / 2)


def map_section(fitted: Mapping[int, Fitted]) -> Section:
    """What each map takes for a step: HELR's prices, and the steps fitted to their runs."""
    # It brings torch, of which nothing else here has need.
    from benchmarks.placement.accelerate_maps import Skeleton, ends_apart

    whole = problem()
    layers = len(whole.model.layers)
    one = step_seconds(whole, [Span((0,), 0, layers)])
    base = measured_step(fitted[1])
    rows: list[tuple[Cell, ...]] = []
    for goal in (Goal.LR, Goal.HE, Goal.HELR):
        plan = solve(with_copies(whole), goal, with_alternatives=False).plan
        rows.append(
            (
                goal.value,
                _told(plan),
                1000.0 * plan.latency_seconds,
                plan.latency_seconds / one,
                1000.0 * base,
                1.0,
                1 / plan.bottleneck_seconds * one,
            )
        )
    for gpus in (2, 3, 4):
        spans = even_split(Pricing(on(whole, gpus)))
        if spans is None:
            raise AssertionError("an even split always exists")
        seconds, known = step_seconds(on(whole, gpus), spans), measured_step(fitted[gpus])
        rows.append(
            (
                "even split",
                f"1 copy on {gpus} GPUs",
                1e3 * seconds,
                seconds / one,
                1e3 * known,
                known / base,
                one / seconds,
            )
        )
    apart = ends_apart(whole)
    skeleton = Skeleton(CHATGLM2, whole.model.layers, quantised=False, with_cache=False)
    if auto := skeleton.place("auto", Pricing(apart)):
        seconds, known = step_seconds(apart, auto), measured_step(fitted[len(auto)])
        told = f"1 copy on {len(auto)} GPUs"
        rows.append(("device_map=auto", told, 1e3 * seconds, seconds / one, 1e3 * known, known / base, one / seconds))
    seconds = step_seconds(whole, alternating(layers))
    rows.append(
        ("alternating map", "1 copy on 2 GPUs, 27 hops", 1e3 * seconds, seconds / one, None, None, one / seconds)
    )
    notes = (
        (
            "ChatGLM2-6B in half precision on four 24 GiB cards (RTX 3090 is assumed: the logs name neither cards nor "
            "links), one row. HELR's search is this project's: no dynamic programme is public, the authors' three "
            "files hold "
            "one hand-written map. Priced steps are a roofline with hops; measured ones are the fits to the authors' "
            "runs of "
            f"an even split, half way through {MEASURED_TOKENS} tokens. `device_map=auto` is the map that accelerate "
            "itself "
            "makes; the stages of a split run one after the other, one batch at a time. LR: the least latency; HE: the "
            "fewest devices; HELR: the least bottleneck, copies allowed, and then latency."
        ),
        (
            "The roofline ranks the maps as the measurements do, but has a split cost only what goes over the wire, "
            "less "
            "than one per cent. Measured is a third more and above: the framework's hooks and synchronisation, of "
            "which a "
            "prior cannot know. The deployer therefore corrects its price by a trial."
        ),
    )
    header = (
        "map",
        "is",
        "priced step, ms",
        "to one GPU",
        "measured step, ms",
        "to one GPU ",
        "steps/s of all, to one GPU",
    )
    return Section("Deployment: HELR against splits over four GPUs", notes, header, tuple(rows))


def _told(plan: Plan) -> str:
    copies = len(plan.copies)
    return f"{copies} cop{'y' if copies == 1 else 'ies'} on {plan.device_count} GPU{'s' * (plan.device_count > 1)}"


SETUPS: dict[str, dict[str, Any]] = {
    "one GPU": {"gpus": 1, "split": 1},
    "one copy, split over four": {"gpus": 1, "split": 4},
    "four copies (HELR)": {"gpus": 4, "split": 1},
}


def serving_section(pool: Executor, fitted: Mapping[int, Fitted], seeds: int = SEEDS) -> Section:
    """The hundred queries on each placement, by two policies."""
    policies = ("fifo", "slo-odbs", "uellm")
    futures = {
        (setup, policy): [
            pool.submit(closed, policy, "measured", 1.0, seed, fitted[how["split"]].step, how["gpus"])
            for seed in range(seeds)
        ]
        for setup, how in SETUPS.items()
        for policy in policies
    }
    found = {key: [future.result() for future in some] for key, some in futures.items()}
    rows: list[tuple[Cell, ...]] = []
    for (setup, policy), runs in found.items():
        first = found["one GPU", policy]
        ratio = Paired.of([a.makespan / b.makespan for a, b in zip(runs, first, strict=True)], [0.0] * len(runs))
        four = SETUPS[setup]["gpus"] if SETUPS[setup]["split"] == 1 else 1
        rows.append(
            (
                setup,
                policy,
                fmean(one.makespan for one in runs),
                f"{ratio.mean:.2f} ({ratio.low:.2f} to {ratio.high:.2f})",
                fmean(one.useful_tokens for one in runs),
                f"{100 * fmean(one.missed for one in runs):.1f} %",
                f"{100 * fmean(one.busy for one in runs) * four / 4:.0f} %",
            )
        )
    notes = (
        (
            f"The same hundred queries and answers on each placement, conditions as in the fair comparison; {seeds} "
            "seeds, "
            f"measured step times, the queue looked at every {TICK_SECONDS:g} s. Utilisation is the share of the time "
            "in "
            "which the testbed's four GPUs compute, on average: of a split one at a time."
        ),
    )
    header = (
        "placement",
        "policy",
        "makespan, s",
        "to one GPU",
        "useful tokens/s",
        "missed",
        "utilisation of the four",
    )
    return Section("Deployment: the hundred queries on each placement", notes, header, tuple(rows))
