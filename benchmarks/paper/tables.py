"""All tables of the paper's experiments."""

from __future__ import annotations

from benchmarks.paper.section import Section


def paper_tables(jobs: int = 0) -> list[Section]:  # noqa: ARG001
    """Run everything.

    Args:
        jobs: processes; 0: as many as there are cores.
    """
    return []
