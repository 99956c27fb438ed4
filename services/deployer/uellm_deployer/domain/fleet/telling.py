"""What is said of a fleet, and of members that do not fit together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from uellm.rpc.errors import ResourceExhaustedError
from uellm_deployer.domain.explaining import NOTHING
from uellm_deployer.domain.fleet.choice import Choice, NoRoomError, Party, loads


def explain(models: Sequence[str], parties: Sequence[Party], choice: Choice) -> str:
    """What the fleet sustains, what bounds it, and how good that is."""
    times = loads(parties, choice.chosen)
    copies = sum(map(len, choice.chosen))
    what = f"{len(models)} models in {copies} deployments on {len(times)} devices"
    rate = f"{1 / choice.load:,.4g} output tokens/s at their shares, with full batches"
    parts = [f"{what} sustain {rate}", _bound(models, parties, choice, times)]
    given = choice.load / choice.least - 1
    if given > NOTHING:
        parts.append(f"{given:.1%} below the most, for less latency")
    gap = choice.least / choice.bound - 1
    sure = "no choice sustains more" if gap <= NOTHING else f"none sustains over {gap:.2%} more, where the search ended"
    parts.append(f"of {sum(len(party.candidates) for party in parties):,} placements {sure}")
    return "; ".join(parts)


def _bound(models: Sequence[str], parties: Sequence[Party], choice: Choice, times: Mapping[str, float]) -> str:
    """What has no time left, and who takes it."""
    busiest = max(times, key=times.__getitem__)
    if times[busiest] >= choice.load * (1 - NOTHING):
        shares = (
            (model, sum(party.each * one.busy.get(busiest, 0.0) for one in chosen) / choice.load)
            for model, party, chosen in zip(models, parties, choice.chosen, strict=True)
        )
        return f"bounded by {busiest}: " + ", ".join(f"{model} {share:.0%}" for model, share in shares if share > 0)
    engines = [p.each * max(one.interval for one in taken) for p, taken in zip(parties, choice.chosen, strict=True)]
    return f"bounded by the engine of {models[engines.index(max(engines))]}, which has one batch at a time"


def no_room(
    error: NoRoomError, models: Sequence[str], parties: Sequence[Party], free: Mapping[str, int]
) -> ResourceExhaustedError:
    """The error for members that fit alone, but not together."""
    if not error.lacking:
        counts = ", ".join(
            f"{model}: {party.copies} of {len(party.candidates)}" for model, party in zip(models, parties, strict=True)
        )
        message = f"two copies never have the same plan, and there are too few different ones that fit: {counts}"
        return ResourceExhaustedError("fleet", message, reason="TOO_FEW_PLANS")
    short = [
        f"{device} lacks {size:,} of {free[device]:,} bytes free for {_on(device, error, models)}"
        for device, size in sorted(error.lacking.items(), key=lambda pair: -pair[1])
    ]
    return ResourceExhaustedError(
        "memory",
        f"each fits alone, but not all together; nearest to it: {'; '.join(short)}. Ask for fewer rows, a shorter "
        "context or fewer copies, leave one out, or delete a deployment.",
        reason="OUT_OF_DEVICE_MEMORY",
    )


def _on(device: str, error: NoRoomError, models: Sequence[str]) -> str:
    return " + ".join(
        f"{model} {one.needs[device]:,}"
        for model, chosen in zip(models, error.chosen, strict=True)
        for one in chosen
        if device in one.needs
    )
