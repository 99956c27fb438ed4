"""The two traces: Azure's of 2023 where they are, else drawn with their statistics.

Azure LLM inference trace 2023, Microsoft, CC-BY-4.0; Patel et al., "Splitwise", ISCA 2024.
"""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from uellm_simulator.arrivals import Gamma, Gaps, Generated, LogNormal, OnOff
from uellm_simulator.runs import Source
from uellm_simulator.traces import read_trace

TENANTS = 8
"""The traces name none: each request is given one of so many, at random, so that fairness can be told."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """Of a published trace, computed from its file; a stand-in is drawn from them."""

    requests: int
    rate: float
    """A second."""
    gaps: Gaps
    prompts: LogNormal
    answers: LogNormal

    @property
    def source(self) -> Source:
        """Requests like the trace's, without end."""
        return Source(generated=Generated(self.gaps, self.prompts, self.answers, TENANTS), rate=self.rate)


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
    path = folder / FILES[name]
    if not path.exists():
        return STATISTICS[name].source
    draw = random.Random("tenants")
    return Source(trace=tuple(replace(one, tenant=f"t{draw.randrange(TENANTS)}") for one in read_trace(path)))


def described(name: str, source: Source) -> str:
    """What was played, in a sentence."""
    if source.generated is None:
        return f"`{name}`: Azure's trace of 2023, {len(source.trace):,} requests."
    return f"`{name}`: drawn with the statistics of Azure's trace of 2023, which was not there."
