"""Step times before anything was measured: whichever of memory and arithmetic takes longer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from uellm_deployer.domain.plan import StepTime
from uellm_deployer.domain.topology import Device, DeviceKind

BANDWIDTH_EFFICIENCY = 0.8
"""Share of the peak memory bandwidth that kernels reach: AIConfigurator's memory-bandwidth scaling factor. Bandwidth of
a CPU is measured with a copy, so it is taken whole."""

FLOPS_EFFICIENCY = 0.65
"""Share of a GPU's peak arithmetic that a prefill is expected to reach, until the first observations: large products
reach 0.80 to 0.87 (H100, A100: measured for stas00/ml-engineering), and a fifth of the time goes to what only moves
activations: norms, rotary embedding, gates, softmax."""

CPU_FLOPS_EFFICIENCY = 0.5
"""Of the rate that was measured with a large product: an assumption, replaced by the first observations."""

LAYER_SECONDS = {DeviceKind.GPU: 30e-6, DeviceKind.CPU: 0.0}
"""Of each layer in each pass, besides: on a GPU some ten kernels wait for each other, each for its first bytes from
memory (3 microseconds, AIConfigurator's memory latency). What a framework adds on the host is measured."""

# Slow devices of each kind, assumed where a device does not tell its rates: (bytes/s, operations/s).
ASSUMED = {DeviceKind.GPU: (300e9, 30e12), DeviceKind.CPU: (10e9, 50e9)}


@dataclass(frozen=True, slots=True)
class Rates:
    """What a device is taken to do a second."""

    bandwidth: float
    """Peak, in bytes."""
    flops: float
    """Peak, in operations."""
    bandwidth_efficiency: float = 1.0
    """Share of it that kernels reach."""
    flops_efficiency: float = FLOPS_EFFICIENCY
    assumed: bool = False
    """Whether one of them is unknown, so that a slow default stands in."""

    @classmethod
    def of(cls, device: Device) -> Rates:
        """As far as the device tells them."""
        bandwidth, flops = ASSUMED[device.kind]
        measured = device.kind is DeviceKind.CPU or not device.memory_bandwidth
        return cls(
            bandwidth=device.memory_bandwidth or bandwidth,
            flops=device.flops or flops,
            bandwidth_efficiency=1.0 if measured else BANDWIDTH_EFFICIENCY,
            flops_efficiency=CPU_FLOPS_EFFICIENCY if device.kind is DeviceKind.CPU else FLOPS_EFFICIENCY,
            assumed=not (device.memory_bandwidth and device.flops),
        )

    @classmethod
    def slowest(cls, rates: Iterable[Rates]) -> Rates:
        """Of devices that share their work evenly."""
        every = tuple(rates)
        return replace(
            min(every, key=lambda one: one.bandwidth * one.bandwidth_efficiency),
            flops=min(one.flops * one.flops_efficiency for one in every) / FLOPS_EFFICIENCY,
            flops_efficiency=FLOPS_EFFICIENCY,
            assumed=any(one.assumed for one in every),
        )


@dataclass(frozen=True, slots=True)
class Load:
    """What one stage makes its device do, or each device of its group."""

    rates: Rates
    step_bytes: float
    """Read in every decode step, whatever its rows."""
    row_bytes: float
    """Read for each row."""
    row_flops: float
    """For each row of a decode step."""
    prompt_token_flops: float
    """For each token of a prompt: the head computes its last one only."""
    context_token_bytes: float
    """Read for each token of context."""
    start_seconds: float = 0.0
    """Of every step, whatever it computes."""
    hop_seconds: float = 0.0
    """To the next stage, of one row."""
    exchange_seconds: tuple[float, float] = (0.0, 0.0)
    """Between the devices of a group: in every step, and for each row."""


def step_time(stages: Iterable[Load]) -> StepTime:
    """Prior of a chain of stages that compute one after the other.

    A step reads all weights once and the cache of its context, and computes two operations per parameter and row.
    """
    base = per_row = per_token = prefill = 0.0
    unknown = False
    for stage in stages:
        bandwidth = stage.rates.bandwidth * stage.rates.bandwidth_efficiency
        flops = stage.rates.flops * stage.rates.flops_efficiency
        always, each_row = stage.exchange_seconds
        base += stage.step_bytes / bandwidth + stage.start_seconds + stage.hop_seconds + always
        per_row += stage.row_flops / flops + stage.row_bytes / bandwidth + each_row
        per_token += stage.context_token_bytes / bandwidth
        prefill += stage.prompt_token_flops / flops + each_row
        unknown = unknown or stage.rates.assumed
    return StepTime(
        base_seconds=base,
        per_row_seconds=per_row,
        per_context_token_seconds=per_token,
        prefill_per_token_seconds=prefill,
        startup_seconds=0.0,
        source="roofline, rates assumed" if unknown else "roofline",
    )
