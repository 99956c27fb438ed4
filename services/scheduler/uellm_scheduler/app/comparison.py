"""What another policy would have done at the recorded decisions: it is asked about each recorded state on its own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from uellm.v1.query_pb2 import Refusal

from ..domain.pending_query import NEVER
from .replay import Choice, Replayed


@dataclass(frozen=True, slots=True)
class Sooner:
    """A query that the other policy would have dispatched at an earlier recorded decision."""

    name: str
    recorded_id: str
    """Decision that dispatched or refused it."""
    other_id: str
    """First decision at which the other policy would have dispatched it."""
    seconds: float
    """Between the two."""
    refused: bool
    """Whether it was refused in truth."""
    has_deadline: bool


@dataclass(slots=True)
class Fates:
    """Queries that one kind of recorded decision took off the queue, by what the other policy would have done."""

    earlier: int = 0
    """Dispatched at an earlier decision."""
    same: int = 0
    """Dispatched at the same one."""
    refused: int = 0
    """Refused at the same or an earlier one."""
    later: int = 0
    """Left waiting until then."""

    @property
    def total(self) -> int:
        """All of them."""
        return self.earlier + self.same + self.refused + self.later


@dataclass(frozen=True, slots=True)
class _Wish:
    """What the other policy would have done first with a query that waits."""

    number: int
    decision_id: str
    time_ms: int
    refusal: bool


@dataclass(slots=True)
class Comparison:
    """The fold of replayed decisions."""

    decisions: int = 0
    alike: int = 0
    """The other policy took the same batches and refused the same queries."""
    dispatched: Fates = field(default_factory=Fates)
    refused: Fates = field(default_factory=Fates)
    sooner: list[Sooner] = field(default_factory=list)
    first_id: str = ""
    last_id: str = ""
    _wishes: dict[str, _Wish] = field(default_factory=dict)

    @classmethod
    def of(cls, replayed: Iterable[Replayed]) -> Comparison:
        """Compare all of them, oldest first."""
        comparison = cls()
        for one in replayed:
            comparison.take(one)
        return comparison

    def take(self, one: Replayed) -> None:
        """Take a decision that the other policy was asked about again."""
        if one.again is None:
            return
        self.decisions += 1
        self.first_id, self.last_id = self.first_id or one.decision_id, one.decision_id
        self.alike += _kind(one.recorded) == _kind(one.again)
        time_ms = one.record.time.ToMilliseconds()
        for names, refusal in ((one.again.dispatched, False), (one.again.refused, True)):
            for name in names:
                self._wishes.setdefault(name, _Wish(self.decisions, one.decision_id, time_ms, refusal))
        for name in sorted(one.recorded.dispatched):
            self._end(one, name, self.dispatched, refused=False)
        for name in sorted(one.recorded.refused):
            self._end(one, name, self.refused, refused=True)

    def _end(self, one: Replayed, name: str, fates: Fates, *, refused: bool) -> None:
        wish = self._wishes.pop(name, None)
        if wish is None:
            fates.later += 1
        elif wish.refusal:
            fates.refused += 1
        elif wish.number == self.decisions:
            fates.same += 1
        else:
            fates.earlier += 1
            seconds = (one.record.time.ToMilliseconds() - wish.time_ms) / 1000
            deadline = _has_deadline(one, name)
            self.sooner.append(Sooner(name, one.decision_id, wish.decision_id, seconds, refused, deadline))


def _kind(choice: Choice) -> tuple[list[tuple[str, frozenset[str]]], set[str]]:
    """What counts as the same decision: order within a batch and the numbers of refusals do not."""
    return sorted((deployment, frozenset(names)) for deployment, names in choice.batches), choice.refused


def _has_deadline(one: Replayed, name: str) -> bool:
    slot = one.slots[name]
    return any(one.view.table.column(column)[slot] != NEVER for column in ("deadline_ms", "first_token_deadline_ms"))


def difference(one: Replayed) -> str:
    """How the decision that was taken again differs from the recorded one; empty if it does not."""
    if one.again is None:
        return f"this version has no policy {one.record.policy} of version {one.record.policy_version}"
    if one.again == one.recorded:
        return ""
    if one.again.batches != one.recorded.batches:
        return f"recorded {_batches(one.recorded)}, again {_batches(one.again)}"
    recorded, again = (_by_name(choice) for choice in (one.recorded, one.again))
    for name in sorted(recorded.keys() | again.keys()):
        if recorded.get(name) != again.get(name):
            return f"recorded {_refusal(name, recorded)}, again {_refusal(name, again)}"
    return "the same refusals in another order"


def _by_name(choice: Choice) -> dict[str, Refusal]:
    return dict(choice.refusals)


def _batches(choice: Choice) -> str:
    return "; ".join(f"{deployment}: {', '.join(names)}" for deployment, names in choice.batches) or "no batch"


def _refusal(name: str, refusals: dict[str, Refusal]) -> str:
    return f"{name} refused: {refusals[name].message}" if name in refusals else f"{name} not refused"
