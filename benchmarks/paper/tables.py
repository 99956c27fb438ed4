"""All tables of the paper's experiments."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor

from benchmarks.paper.claims import claims_section
from benchmarks.paper.deployment import map_section, serving_section
from benchmarks.paper.fair import closed_section, open_section
from benchmarks.paper.fitting import fitted, foreign_load
from benchmarks.paper.published import ladder, ladder_sections, published_section
from benchmarks.paper.section import Section
from benchmarks.paper.validation import validation_sections


def paper_tables(jobs: int = 0) -> list[Section]:
    """Run everything. The same tables come out each time, whatever the number of processes.

    Args:
        jobs: processes; 0: as many as there are cores.
    """
    times = fitted()
    with ProcessPoolExecutor(jobs or os.cpu_count() or 1) as pool:
        maps, validation = pool.submit(map_section, times), pool.submit(validation_sections)
        steps = ladder(pool, times, foreign_load())
        closed, left = closed_section(pool, times)
        opened, served = open_section(pool, times), serving_section(pool, times)
        return [
            claims_section(steps[0], steps[-1], left),
            published_section(steps[0]),
            *ladder_sections(steps),
            closed,
            opened,
            maps.result(),
            served,
            *validation.result(),
        ]
