"""Which GPUs a model's own process sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def visible_to_stub(environment: Mapping[str, str], devices: Sequence[str]) -> str:
    """The new `CUDA_VISIBLE_DEVICES` of a process that is to see `devices` (`cuda:N`) only, in their order.

    Ordinals count within what Triton sees: where that is a part of the machine, its own names are taken.
    """
    outer = environment.get("CUDA_VISIBLE_DEVICES")
    numbers = [int(device.removeprefix("cuda:")) for device in devices]
    if outer is None:
        return ",".join(map(str, numbers))
    names = [name.strip() for name in outer.split(",")]
    return ",".join(names[number] for number in numbers)
