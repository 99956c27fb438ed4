"""The choice as a mixed integer linear programme, solved by HiGHS.

With x = 1 for the candidates that are taken, and U the busiest device's or engine's seconds for a token:

    sum of x over a member's candidates = its copies,      sum of x over candidates with equal specs <= 1,
    on each device sum of bytes * x <= what is free,       on each device and engine sum of share * seconds * x <= U

Least is first U; within the slack of it the latency, weighted by share; then, with no member slower, the number of
devices.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from uellm_deployer.domain.fleet.choice import Choice, Chosen, NoRoomError, Party, UndecidedError, lacking, load
from uellm_deployer.domain.plan import DeploymentSpec

EFFORT = 400_000
"""Candidates times nodes of branch and bound, at most for U, and for the rest a quarter: a limit in seconds would make
plans depend on the machine's load."""
GAP = 1e-4
"""Share of the least U within which it counts as proven."""
LATENCY_GAP = 1e-3
"""Likewise of latency."""
SAME = 1 + 1e-9
"""A ratio of equal latencies."""
STANDBY = 1e-3
"""Weight of the latency of a member without traffic, beside shares that sum to 1."""

_LIMIT_REACHED = 1
Vector = npt.NDArray[np.float64]


def choose(parties: Sequence[Party], free: Mapping[str, int], *, slack: float, effort: int = EFFORT) -> Choice:
    """The best choice. U may exceed the least by the slack; `free` are bytes by device, those listed first preferred.

    Raises:
        NoRoomError: there is none.
        UndecidedError: none was found.
    """
    programme = _Programme(parties, free, effort)
    latency = programme.latency_cost()
    if (at_once := programme.at_once(latency)) is not None:
        least = quick = at_once
        programme.limit_load((1 + slack) * least.value)
    elif (found := programme.solve(programme.load_cost())) is not None:
        least = found
        programme.limit_load((1 + slack) * least.value)
        quick = programme.improve(least, latency)
    else:
        raise _no_room(parties, free, effort)
    programme.limit_latencies(quick)
    best = programme.improve(quick, programme.devices_cost())
    return Choice(
        chosen=programme.chosen(best.x),
        load=load(parties, programme.chosen(best.x)),
        least=load(parties, programme.chosen(least.x)),
        bound=least.bound * programme.unit,
    )


def least_load(parties: Sequence[Party], free: Mapping[str, int], *, effort: int = EFFORT) -> float:
    """The least U; errors as of `choose`."""
    programme = _Programme(parties, free, effort)
    least = programme.at_once(programme.latency_cost()) or programme.solve(programme.load_cost())
    if least is None:
        raise _no_room(parties, free, effort)
    return load(parties, programme.chosen(least.x))


def _no_room(parties: Sequence[Party], free: Mapping[str, int], effort: int) -> NoRoomError:
    programme = _Programme(parties, free, effort)
    found = programme.solve(programme.lack_cost(), elastic=True)
    chosen = () if found is None else programme.chosen(found.x)
    return NoRoomError(lacking(chosen, free), chosen)


@dataclass(frozen=True, slots=True)
class _Row:
    """Coefficients by column, and what they must sum to."""

    columns: Mapping[int, float]
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class _Solution:
    x: Vector
    value: float
    bound: float


class _Programme:
    """Columns: the candidates of all members; U; by device whether it is used, and what it lacks, as a share of it."""

    def __init__(self, parties: Sequence[Party], free: Mapping[str, int], effort: int) -> None:
        self._parties, self._free, self._effort = parties, free, effort
        self._columns = [(number, one) for number, party in enumerate(parties) for one in party.candidates]
        self._limits = {"node_limit": 1 + effort // len(self._columns), "mip_rel_gap": GAP}
        used = {device for _, one in self._columns for device in one.needs}
        self._devices = [device for device in free if device in used]
        self._load = len(self._columns)
        self._uses = self._load + 1
        self._lacks = self._uses + len(self._devices)
        self.unit = max(party.each * min(one.interval for one in party.candidates) for party in parties)
        """Of loads: what the busiest engine has to do at least, so that all numbers are around 1."""
        self._upper = np.ones(self._lacks + len(self._devices))
        self._upper[self._load] = np.inf
        self._upper[self._uses :] = 0.0
        self.rows = [*self._choice_rows(), *self._memory_rows(), *self._load_rows()]

    def _choice_rows(self) -> Iterator[_Row]:
        for number, party in enumerate(self._parties):
            own = {column: 1.0 for column, (member, _) in enumerate(self._columns) if member == number}
            yield _Row(own, party.copies, party.copies)
        equal = defaultdict[DeploymentSpec, dict[int, float]](dict)
        for column, (_, one) in enumerate(self._columns):
            equal[one.spec][column] = 1.0
        yield from (_Row(columns, -np.inf, 1.0) for columns in equal.values() if len(columns) > 1)

    def _memory_rows(self) -> Iterator[_Row]:
        for place, device in enumerate(self._devices):
            sizes = {column: size for column, (_, one) in enumerate(self._columns) if (size := one.needs.get(device))}
            shares = {column: size / max(1, self._free[device]) for column, size in sizes.items()}
            yield _Row(shares | {self._lacks + place: -1.0}, -np.inf, 1.0)

    def _load_rows(self) -> Iterator[_Row]:
        for device in self._devices:
            of = {
                column: self._parties[member].each * one.busy[device] / self.unit
                for column, (member, one) in enumerate(self._columns)
                if device in one.busy
            }
            yield _Row(of | {self._load: -1.0}, -np.inf, 0.0)
        for number, party in enumerate(self._parties):
            own = {
                column: party.each * one.interval / self.unit
                for column, (member, one) in enumerate(self._columns)
                if member == number
            }
            yield _Row(own | {self._load: -float(party.copies)}, -np.inf, 0.0)
            if party.copies > 1:
                yield from (_Row({column: time, self._load: -1.0}, -np.inf, 0.0) for column, time in own.items())

    def load_cost(self) -> Vector:
        """U."""
        cost = np.zeros(len(self._upper))
        cost[self._load] = 1.0
        return cost

    def limit_load(self, most: float) -> None:
        """Admit no higher U; what exceeds it alone is out."""
        self._upper[self._load] = most
        for column, (member, one) in enumerate(self._columns):
            if self._parties[member].each * one.interval > most * (1 + GAP) * self.unit:
                self._upper[column] = 0.0

    def latency_cost(self) -> Vector:
        """Of all copies by their shares; 1 if all are as quick as alone."""
        cost = np.zeros(len(self._upper))
        weights = [max(party.each, STANDBY / len(self._parties)) for party in self._parties]
        cost[: self._load] = [weights[member] * one.latency for member, one in self._columns]
        quickest = (min(one.latency for one in party.candidates) * party.copies for party in self._parties)
        return np.asarray(cost / sum(weight * one for weight, one in zip(weights, quickest, strict=True)))

    def at_once(self, latency: Vector) -> _Solution | None:
        """A solution that is best in load and latency at once, if what is quickest alone makes one: soon found."""
        before = self._upper.copy()
        self._upper[: self._load][latency[: self._load] > self._least_of_members(latency) * SAME] = 0.0
        try:
            found = self.solve(self.load_cost())
        except UndecidedError:
            found = None
        self._upper = before
        return found if found is not None and found.value <= 1 + GAP else None

    def limit_latencies(self, found: _Solution) -> None:
        """Admit nothing that makes a member slower than it is there: its slowest copy, or all of them together."""
        chosen = self.chosen(found.x)
        for column, (member, one) in enumerate(self._columns):
            if one.latency > max(other.latency for other in chosen[member]):
                self._upper[column] = 0.0
        for number, taken in enumerate(chosen):
            total = sum(one.latency for one in taken)
            own = {
                column: one.latency / total for column, (member, one) in enumerate(self._columns) if member == number
            }
            if len(taken) > 1:
                self.rows.append(_Row(own, -np.inf, 1.0))

    def _least_of_members(self, cost: Vector) -> Vector:
        """For each candidate, the least cost of one of the same member."""
        members = np.array([member for member, _ in self._columns])
        least = np.array([cost[: self._load][members == number].min() for number in range(len(self._parties))])
        return np.asarray(least[members])

    def devices_cost(self) -> Vector:
        """The number of devices; of as many, those listed first."""
        self._upper[self._uses : self._lacks] = 1.0
        for place, device in enumerate(self._devices):
            for number, party in enumerate(self._parties):
                own = {
                    c: 1.0 for c, (member, one) in enumerate(self._columns) if member == number and device in one.needs
                }
                self.rows.append(_Row(own | {self._uses + place: -float(party.copies)}, -np.inf, 0.0))
        cost, count = np.zeros(len(self._upper)), len(self._devices)
        cost[self._uses : self._lacks] = 1 + np.arange(count) / count**2
        return cost

    def lack_cost(self) -> Vector:
        """Bytes that devices lack, as a share of the largest."""
        self._upper[self._lacks :] = np.inf
        cost, largest = np.zeros(len(self._upper)), max(self._free.values())
        cost[self._lacks :] = [max(1, self._free[device]) / max(1, largest) for device in self._devices]
        return cost

    def chosen(self, x: Vector) -> Chosen:
        """The candidates that a solution takes."""
        taken = [self._columns[column] for column in np.flatnonzero(x[: self._load] > 0.5)]
        return tuple(tuple(one for m, one in taken if m == number) for number in range(len(self._parties)))

    def improve(self, before: _Solution, cost: Vector) -> _Solution:
        """The solution with the least cost; the one before if the search comes to its limit."""
        self._limits = {"node_limit": 1 + self._effort // 4 // len(self._columns), "mip_rel_gap": LATENCY_GAP}
        try:
            return self.solve(cost) or before
        except UndecidedError:
            return before

    def solve(self, cost: Vector, *, elastic: bool = False) -> _Solution | None:
        """The solution with the least cost; None if there is none."""
        while (found := self._highs(cost)) is not None and not elastic:
            short = lacking(self.chosen(found.x), self._free)
            if not short:
                break
            # HiGHS allows for a millionth of a device: what is too much by bytes is ruled out by itself.
            taken = np.flatnonzero(found.x[: self._load] > 0.5)
            for device in short:
                own = {int(column): 1.0 for column in taken if device in self._columns[column][1].needs}
                self.rows.append(_Row(own, -np.inf, len(own) - 1.0))
        return found

    def _highs(self, cost: Vector) -> _Solution | None:
        # Not at the top: the deployer starts without it.
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import csr_array

        ends = np.cumsum([0, *(len(row.columns) for row in self.rows)])
        values = [value for row in self.rows for value in row.columns.values()]
        places = [column for row in self.rows for column in row.columns]
        matrix = csr_array((values, places, ends), shape=(len(self.rows), len(cost)))
        whole = np.zeros(len(cost))
        whole[: self._load] = whole[self._uses : self._lacks] = 1
        found = milp(
            cost,
            constraints=LinearConstraint(matrix, [row.low for row in self.rows], [row.high for row in self.rows]),
            integrality=whole,
            bounds=Bounds(0.0, self._upper),
            options={**self._limits},  # which it empties
        )
        if found.x is None and found.status == _LIMIT_REACHED:
            raise UndecidedError
        return None if found.x is None else _Solution(found.x, float(found.fun), float(found.mip_dual_bound))
