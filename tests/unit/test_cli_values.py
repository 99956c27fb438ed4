"""Durations on the command line, and figures for people."""

from __future__ import annotations

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from uellm.cli.values import parse_duration, seconds_between, show_bytes, show_seconds


@pytest.mark.parametrize(
    ("text", "seconds"), [("20s", 20), ("500ms", 0.5), ("2m", 120), ("1.5h", 5400), (" 3 s ", 3), ("0.25s", 0.25)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "20", "s", "-1s", "0s", "1e3s", "nan s", "inf", "20 seconds", "٣s", "9" * 10 + "s"]
)
def test_what_is_no_duration_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="500ms, 20s or 2m"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.0004, "0 ms"), (0.34, "340 ms"), (2.44, "2.4 s"), (75.2, "75 s"), (750, "12.5 min")]
)
def test_seconds_are_shown_with_a_fitting_unit(seconds: float, shown: str) -> None:
    assert show_seconds(seconds) == shown


@pytest.mark.parametrize(("size", "shown"), [(512, "512 B"), (46_080, "45.0 KiB"), (3 * 2**40, "3.0 TiB")])
def test_bytes_are_shown_with_a_fitting_unit(size: int, shown: str) -> None:
    assert show_bytes(size) == shown


def test_time_to_a_point_that_was_never_reached_is_zero() -> None:
    assert seconds_between(Timestamp(seconds=5), Timestamp()) == 0
    assert seconds_between(Timestamp(seconds=5), Timestamp(seconds=6, nanos=500_000_000)) == 1.5
