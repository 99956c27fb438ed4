"""A run as a Chrome trace (ui.perfetto.dev, chrome://tracing): a track for each place of each engine."""

from __future__ import annotations

import heapq
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from uellm_simulator.fates import Fate

MICRO = 1e6


def write_timeline(path: Path, fates: Sequence[Fate]) -> None:
    """Write the trace. A slice is a request on its engine, from dispatch to end; its arguments say what was wanted."""
    path.write_text(json.dumps({"traceEvents": events_of(fates), "displayTimeUnit": "ms"}), encoding="utf-8")


def events_of(fates: Sequence[Fate]) -> list[dict[str, Any]]:
    """In the format of Trace Event; times in microseconds of the virtual clock."""
    served = [fate for fate in fates if math.isfinite(fate.dispatch_seconds) and math.isfinite(fate.finish_seconds)]
    engines = {name: number for number, name in enumerate(sorted({fate.deployment for fate in served}), start=1)}
    events: list[dict[str, Any]] = [
        {"ph": "M", "name": "process_name", "pid": pid, "args": {"name": name}} for name, pid in engines.items()
    ]
    for name, pid in engines.items():
        own = sorted((fate for fate in served if fate.deployment == name), key=lambda fate: fate.dispatch_seconds)
        events += [_slice(fate, pid, place) for fate, place in zip(own, _places(own), strict=True)]
    events += [_refusal(fate) for fate in fates if fate.refused]
    return events


def _places(fates: Sequence[Fate]) -> list[int]:
    """The lowest place that is free at each dispatch."""
    free: list[int] = []
    busy: list[tuple[float, int]] = []
    places = []
    for fate in fates:
        while busy and busy[0][0] <= fate.dispatch_seconds:
            heapq.heappush(free, heapq.heappop(busy)[1])
        place = heapq.heappop(free) if free else len(busy) + 1
        heapq.heappush(busy, (fate.finish_seconds, place))
        places.append(place)
    return places


def _slice(fate: Fate, pid: int, place: int) -> dict[str, Any]:
    outcome = "in time" if fate.in_time else "late"
    return {
        "ph": "X",
        "name": fate.request.slo_class,
        "cat": outcome,
        "pid": pid,
        "tid": place,
        "ts": fate.dispatch_seconds * MICRO,
        "dur": (fate.finish_seconds - fate.dispatch_seconds) * MICRO,
        "cname": "good" if fate.in_time else "bad",
        "args": {
            "query": fate.request.name,
            "batch": fate.batch_id,
            "outcome": outcome,
            "waited_s": round(fate.wait, 3),
            "deadline_s": round(fate.request.completion_seconds, 3),
            "latency_s": round(fate.latency, 3),
            "prompt_tokens": fate.request.arrival.prompt_tokens,
            "output_tokens": fate.output_tokens,
            "predicted_p50": round(fate.request.predicted.quantile(0.5)),
        },
    }


def _refusal(fate: Fate) -> dict[str, Any]:
    return {
        "ph": "i",
        "s": "g",
        "name": f"refused: {fate.request.slo_class}",
        "pid": 0,
        "tid": 0,
        "ts": fate.finish_seconds * MICRO,
        "args": {"query": fate.request.name, "after_s": round(fate.latency, 3)},
    }
