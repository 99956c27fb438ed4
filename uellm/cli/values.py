"""Values on the command line, and for people to read."""

from __future__ import annotations

import math
import re

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)\s?(ms|s|m|h)", re.ASCII)
_KIBI = 1024


def parse_duration(text: str) -> float:
    """Seconds of `500ms`, `20s`, `1.5m` or `2h`; raises ValueError for anything else and for zero."""
    match = _DURATION.fullmatch(text.strip())
    seconds = float(match[1]) * _UNITS[match[2]] if match else 0.0
    if seconds <= 0:
        raise ValueError(f"must be a duration above zero such as 500ms, 20s or 2m; got {text!r}")
    return seconds


def seconds_of(duration: Duration) -> float:
    """A duration as a number."""
    return float(duration.ToNanoseconds()) / 1e9


def seconds_between(start: Timestamp, end: Timestamp) -> float:
    """Time from one point to another; 0 if one of them is not set."""
    if not (start.ToNanoseconds() and end.ToNanoseconds()):
        return 0.0
    return float(end.ToNanoseconds() - start.ToNanoseconds()) / 1e9


def show_seconds(seconds: float) -> str:
    """`340 ms`, `2.4 s`, `75 s`, `12.5 min`."""
    if not math.isfinite(seconds):
        return "-"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    return f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 60:.1f} min"


def show_age(seconds: float) -> str:
    """`12 s`, `5 min`, `3 h`, `12 days`."""
    for unit, size, most in (("s", 1, 120), ("min", 60, 7_200), ("h", 3_600, 172_800)):
        if seconds < most:
            return f"{max(0.0, seconds) / size:.0f} {unit}"
    return f"{seconds / 86_400:.0f} days"


def show_bytes(size: float) -> str:
    """`512 B`, `45.0 KiB`, `5.3 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < _KIBI:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= _KIBI
    return f"{size:.1f} TiB"
