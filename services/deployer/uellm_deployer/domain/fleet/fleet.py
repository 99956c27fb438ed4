"""Plans several models at once: the most tokens a second at their shares, then the least latency, then few devices."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from uellm.rpc.errors import FieldViolation, InvalidArgumentError, ResourceExhaustedError
from uellm_deployer.domain.explaining import NOTHING
from uellm_deployer.domain.facts import ModelShape
from uellm_deployer.domain.fleet.candidates import candidates_of
from uellm_deployer.domain.fleet.choice import Candidate, Choice, NoRoomError, Party, UndecidedError, loads, needs
from uellm_deployer.domain.fleet.programme import choose, least_load
from uellm_deployer.domain.fleet.telling import explain, no_room
from uellm_deployer.domain.helr.solve import SLACK
from uellm_deployer.domain.placement import Planner
from uellm_deployer.domain.plan import DeploymentPlan, DeploymentSpec
from uellm_deployer.domain.topology import DeviceKind, Topology, with_twin

CANDIDATES = 4_000
"""Of all members together, about."""
FEWEST = 64
"""Of one member, however many there are."""
ASKED_DEVICES = 8
"""Up to so many GPUs it is asked what one more would give: that solves again."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A member of a fleet, as it is asked for."""

    spec: DeploymentSpec
    share: float = 0.0
    """Of all output tokens. All 0: they are equal."""
    copies: int = 1


@dataclass(frozen=True, slots=True)
class Member:
    """A member, and its model."""

    wanted: Wanted
    shape: ModelShape

    @property
    def spec(self) -> DeploymentSpec:
        """What is wanted of each copy."""
        return self.wanted.spec


@dataclass(frozen=True, slots=True)
class Fleet:
    """A plan for each copy of each member, in order."""

    plans: tuple[DeploymentPlan, ...]
    explanation: str
    tokens_per_second: float
    """Of all members, at their shares, with full batches."""
    tokens_per_second_bound: float
    """No choice of the candidates sustains more."""


def plan_fleet(
    planner: Planner, members: Sequence[Member], topology: Topology, deployed: Collection[DeploymentSpec] = ()
) -> Fleet:
    """Plan; `deployed` are the specs of plans that are there already, so that none is made twice.

    Raises:
        InvalidArgumentError: a spec asks for what its model or the machine does not have.
        ResourceExhaustedError: a member does not fit or keep its objectives alone, or not all fit together.
    """
    known = _candidates(planner, members, topology, frozenset(deployed))
    parties = _parties(members, known)
    free = {device.id: device.free_memory_bytes for device in topology.devices}
    try:
        choice = choose(parties, free, slack=SLACK)
    except NoRoomError as error:
        raise no_room(error, [member.spec.model for member in members], parties, free) from None
    except UndecidedError:
        raise ResourceExhaustedError(
            "fleet",
            "no arrangement in which all fit was found before the search came to its limit, though there may be one: "
            "plan fewer members at once, or ask for less memory",
            reason="SEARCH_LIMIT",
        ) from None
    more = _one_more(planner, members, parties, choice, topology)
    return Fleet(
        plans=tuple(_plans(planner, members, choice, topology)),
        explanation=explain([member.spec.model for member in members], parties, choice) + more,
        tokens_per_second=1 / choice.load,
        tokens_per_second_bound=1 / choice.bound,
    )


def _candidates(
    planner: Planner, members: Sequence[Member], topology: Topology, deployed: Collection[DeploymentSpec]
) -> dict[DeploymentSpec, list[Candidate]]:
    known: dict[DeploymentSpec, list[Candidate]] = {}
    most = max(FEWEST, CANDIDATES // len({member.spec for member in members}))
    for number, member in enumerate(members):
        if member.spec in known:
            continue
        with naming(number, member.spec.model):
            found = candidates_of(member.spec, member.shape, topology, most)
            if not found:
                planner.place(member.spec, member.shape, topology)  # says why
            known[member.spec] = [one for one in found if one.spec not in deployed]
            if not known[member.spec]:
                raise ResourceExhaustedError("fleet", "all its plans are deployed", reason="TOO_FEW_PLANS")
    return known


def _parties(members: Sequence[Member], known: Mapping[DeploymentSpec, Sequence[Candidate]]) -> list[Party]:
    total = sum(member.wanted.share for member in members)
    shares = [member.wanted.share / total if total else 1 / len(members) for member in members]
    return [
        Party(known[member.spec], share, member.wanted.copies) for member, share in zip(members, shares, strict=True)
    ]


@contextmanager
def naming(number: int, model: str) -> Iterator[None]:
    """Has errors say which member they are about."""
    try:
        yield
    except InvalidArgumentError as error:
        raise InvalidArgumentError(
            [FieldViolation(f"members[{number}].{one.field}", one.description) for one in error.violations]
        ) from None
    except ResourceExhaustedError as error:
        message = f"members[{number}], {model}: {error.message}"
        raise ResourceExhaustedError(error.subject, message, reason=error.reason) from None


def _plans(planner: Planner, members: Sequence[Member], choice: Choice, topology: Topology) -> Iterator[DeploymentPlan]:
    """As the planner plans each where the others have taken theirs."""
    everything = needs(choice.chosen)
    for member, chosen in zip(members, choice.chosen, strict=True):
        for candidate in chosen:
            others = {device: size - candidate.needs.get(device, 0) for device, size in everything.items()}
            yield planner.place(candidate.spec, member.shape, topology.with_promised(others)).plan


def _one_more(
    planner: Planner, members: Sequence[Member], parties: Sequence[Party], choice: Choice, topology: Topology
) -> str:
    """What one more device like the busiest would give."""
    times = loads(parties, choice.chosen)
    gpus = [device.id for device in topology.devices if device.kind is DeviceKind.GPU]
    busiest = max(times, key=times.__getitem__)
    if busiest not in gpus or len(gpus) > ASKED_DEVICES:
        return ""
    larger = with_twin(topology, busiest)
    free = {device.id: device.free_memory_bytes for device in larger.devices}
    try:
        gain = choice.least / least_load(_parties(members, _candidates(planner, members, larger, ())), free) - 1
    except UndecidedError:
        return ""
    return f". One more like {busiest}: " + (f"{gain:+.1%} tokens" if gain > NOTHING else "no more tokens")
