"""Which GPUs a model's own process sees."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence


def visible_to_stub(environment: Mapping[str, str], devices: Sequence[str]) -> str:
    """The new `CUDA_VISIBLE_DEVICES` of a process that is to see `devices` (`cuda:N` or `cuda:UUID`) only, in order.

    Ordinals count within what Triton sees: where that is a part of the machine, its own names are taken.
    """
    outer = environment.get("CUDA_VISIBLE_DEVICES")
    names = [device.removeprefix("cuda:") for device in devices]
    if outer is None:
        return ",".join(names)
    seen = [name.strip() for name in outer.split(",")]
    return ",".join(seen[int(name)] if name.isdecimal() else name for name in names)


def show_by_ordinal(environment: MutableMapping[str, str], devices: Sequence[str]) -> Mapping[str, str]:
    """What torch calls each of the devices. Those named by UUID are made the only ones that this process sees.

    To be called before CUDA is initialised.
    """
    named = [device for device in dict.fromkeys(devices) if device.startswith("cuda:")]
    if all(device.removeprefix("cuda:").isdecimal() for device in named):
        return {device: device for device in devices}
    environment["CUDA_VISIBLE_DEVICES"] = visible_to_stub(environment, named)
    return {device: device for device in devices} | {device: f"cuda:{place}" for place, device in enumerate(named)}
