"""Step times of a device before anything was measured: whichever of memory and arithmetic takes longer."""

from __future__ import annotations

from uellm_deployer.domain.facts import ModelFacts
from uellm_deployer.domain.plan import StepTime
from uellm_deployer.domain.topology import Device, DeviceKind

BANDWIDTH_EFFICIENCY = 0.8
"""Share of the peak memory bandwidth that kernels reach: AIConfigurator's memory-bandwidth scaling factor. Bandwidth of
a CPU is measured with a copy, so it is taken whole."""

FLOPS_EFFICIENCY = 0.5
"""Share of peak arithmetic that a prefill is expected to reach. An assumption, replaced by the first observations."""

# Slow devices of each kind, assumed where a device does not tell its rates: (bytes/s, operations/s).
ASSUMED = {DeviceKind.GPU: (300e9, 30e12), DeviceKind.CPU: (10e9, 50e9)}


def assumed(device: Device) -> bool:
    """Whether a rate of the device is unknown, so that the slow default stands in."""
    return not (device.memory_bandwidth and device.flops)


def step_time(facts: ModelFacts, device: Device) -> StepTime:
    """Prior of one device that holds the whole model.

    A step reads all weights once and the cache of its context, and computes two operations per parameter and row.
    """
    bandwidth, flops = ASSUMED[device.kind]
    if device.memory_bandwidth:
        share = 1.0 if device.kind is DeviceKind.CPU else BANDWIDTH_EFFICIENCY
        bandwidth = device.memory_bandwidth * share
    per_token = 2 * facts.parameter_count / ((device.flops or flops) * FLOPS_EFFICIENCY)
    return StepTime(
        base_seconds=facts.weight_bytes / bandwidth,
        per_row_seconds=per_token,
        per_context_token_seconds=facts.kv_bytes_per_token / bandwidth,
        prefill_per_token_seconds=per_token,
        startup_seconds=0.0,
        source="roofline, rates assumed" if assumed(device) else "roofline",
    )
