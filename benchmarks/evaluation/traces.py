"""The two traces: Azure's of 2023 where they are, else drawn with their statistics.

Azure LLM inference trace 2023, Microsoft, CC-BY-4.0; Patel et al., "Splitwise", ISCA 2024.
"""

from __future__ import annotations

import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from uellm_simulator.arrivals import Gamma, Gaps, Generated, LogNormal, OnOff
from uellm_simulator.runs import Source
from uellm_simulator.traces import read_trace
from uellm_simulator.workload import Arrival

TENANTS = 8
"""The traces name none: each request is given one of so many, half by the rank of its answer's length and half at
random, so that tenants differ as applications do, and fairness says something."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """Of a published trace, computed from its file; a stand-in is drawn from them."""

    requests: int
    rate: float
    """A second."""
    gaps: Gaps
    prompts: LogNormal
    answers: LogNormal

    def drawn(self, count: int) -> list[Arrival]:
        """So many requests like the trace's; the same ones each time."""
        return Generated(self.gaps, self.prompts, self.answers).take(count, self.rate, seed=0)


# Lengths: median and deviation of ln(tokens) of the log-normal with the trace's moments of ln(tokens), least and most.
# Gaps of the conversations: their coefficient of variation. Code comes in bursts: gaps of over 5 s are 72 % of the
# time. A Poisson process that is on for a share s of the time, in bursts of b arrivals, has a squared coefficient of
# variation of 1 + 2 b (1 - s)^2: 13.15^2 for b = 167.
STATISTICS: Mapping[str, Statistics] = {
    "conversation": Statistics(
        19_366,
        5.530,
        Gamma(1.094),
        LogNormal(760.0, 0.985, least=2, most=14_050),
        LogNormal(151.3, 0.859, least=7, most=1_000),
    ),
    "code": Statistics(
        8_819,
        2.566,
        OnOff(on_share=0.283, burst=167.0),
        LogNormal(1_095.0, 1.360, least=3, most=7_437),
        LogNormal(16.25, 0.847, least=6, most=1_899),
    ),
}
TRACE_NAMES = tuple(STATISTICS)
FILES: Mapping[str, str] = {"conversation": "azure_conv.csv", "code": "azure_code.csv"}


def shared_data() -> Path:
    """Where the files would be."""
    return Path(os.environ.get("UELLM_SHARED", Path(__file__).resolve().parents[3] / "shared")) / "data"


def source_of(name: str, folder: Path) -> Source:
    """A trace by name, of the file if it is there; raises TraceError for one that can't be read."""
    path, told = folder / FILES[name], STATISTICS[name]
    return Source(trace=tuple(with_tenants(read_trace(path) if path.exists() else told.drawn(told.requests))))


def with_tenants(arrivals: Sequence[Arrival]) -> list[Arrival]:
    """The same requests, each of a tenant."""
    draw, ranks = random.Random("tenants"), [0.0] * len(arrivals)
    for rank, at in enumerate(sorted(range(len(arrivals)), key=lambda at: arrivals[at].output_tokens)):
        ranks[at] = rank / len(arrivals)
    tenants = [int(TENANTS * (rank + draw.random()) / 2) for rank in ranks]
    return [replace(one, tenant=f"t{tenant}") for one, tenant in zip(arrivals, tenants, strict=True)]


def described(name: str, folder: Path) -> str:
    """What was played, in a sentence."""
    count = STATISTICS[name].requests
    if (folder / FILES[name]).exists():
        return f"`{name}`: Azure's trace of 2023, {count:,} requests."
    return f"`{name}`: {count:,} requests drawn with the statistics of Azure's trace of 2023, which was not there."
