"""Ours beside the rules of others, on two machines of our own: the benchmark in small."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product

import pytest
from uellm_deployer.adapters.topology_file import read_topology
from uellm_deployer.domain.helr.solve import solve
from uellm_deployer.domain.topology import Topology

from benchmarks.placement import compare as comparison
from benchmarks.placement.cases import MIXED, MODELS, NUMBERS, Case, case, with_states
from benchmarks.placement.compare import Ours, Rule, accelerate_rules, compare, described_rules
from benchmarks.placement.tables import markdown
from tests.support.topologies import cube_mesh

MACHINES = dict(
    [
        *with_states("mesh", read_topology(cube_mesh(), "V100 16GB")),
        *with_states("mixed", read_topology(MIXED)),
    ]
)
SHAPES = (("7B", "fp16"), ("8x7B", "int4"))
FIGURES = ("latency", "devices", "bottleneck", "copies")


def case_of(machine: str, topology: Topology, model: str, numbers: str) -> Case:
    return case(machine, topology, model, MODELS[model], numbers, NUMBERS[numbers])


@pytest.fixture(scope="module")
def rules() -> Callable[[Case], tuple[Rule, ...]]:
    return accelerate_rules()


@pytest.mark.parametrize(("machine", "shape"), list(product(MACHINES, SHAPES)))
def test_no_rule_is_better(machine: str, shape: tuple[str, str], rules: Callable[[Case], tuple[Rule, ...]]) -> None:
    rows, worse = compare(one := case_of(machine, MACHINES[machine], *shape), [*described_rules(), *rules(one)])
    assert worse == []
    assert len(rows) == 10
    assert all((row.latency is None) == bool(row.why) for row in rows)
    assert all(row.latency >= 1 and row.devices >= 1 for row in rows if row.latency and row.devices)
    assert all(row.bottleneck >= 1 for row in rows if row.bottleneck is not None)


def test_accelerate_spills_where_everything_fits(rules: Callable[[Case], tuple[Rule, ...]]) -> None:
    one = case_of("mixed", MACHINES["mixed, shared"], "8x7B", "fp16")
    rows, worse = compare(one, rules(one))
    assert worse == []
    assert "spills" in {row.why for row in rows}


def test_a_better_placement_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours made worse: solved for a machine whose large GPUs may not be used, or refused."""
    one = case_of("mixed", MACHINES["mixed"], "7B", "int4")
    rules = described_rules()
    small = frozenset(device.id for device in one.batch.devices if device.id.startswith("GPU"))

    def poorly(problem, *arguments, **options):
        rules = replace(problem.constraints, device_ids=small)
        return solve(replace(problem, constraints=rules), *arguments, **options)

    monkeypatch.setattr(comparison, "solve", poorly)
    _, worse = compare(one, rules)
    assert {"LR", "bottleneck"} <= {text.split(": ")[2].split()[0] for text in worse}
    monkeypatch.setattr(Ours, "of", classmethod(lambda cls, case: None))
    rows, worse = compare(one, rules)
    assert rows == []
    assert any("ours was refused" in text for text in worse)


def test_tables() -> None:
    row = {"machine": "m", "model": "7B", "numbers": "fp16", "rule": "even split", "why": ""}
    figures = [dict.fromkeys(FIGURES, 1.0), dict.fromkeys(FIGURES, 1.5)]
    rows = [row | one for one in figures] + [row | {"why": "does not fit", "rule": "other"} | dict.fromkeys(FIGURES)]
    text = markdown(rows)
    assert "| even split | 0 | 0 | 1 | 1.250, 1.50 |" in text
    assert "| other | 0 | 1 | 0 | - |" in text
    assert "| m, A100, A10 | 1 | 33% | 1.250, 1.50 |" in text
