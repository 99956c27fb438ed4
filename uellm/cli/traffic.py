"""`uellm traffic`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from rich.markup import escape

from uellm.cli.connect import find
from uellm.cli.output import print_line, stdout
from uellm.client import Client

_PREFIX = "deployments/"


def read_shares(texts: Iterable[str]) -> dict[str, float]:
    """By resource name, from `name=share`; raises ValueError."""
    shares: dict[str, float] = {}
    for text in texts:
        name, _, share = text.rpartition("=")
        name = _PREFIX + name.removeprefix(_PREFIX)
        try:
            value = float(share.removesuffix("%")) / (100 if share.endswith("%") else 1)
        except ValueError:
            value = -1.0
        if name == _PREFIX or not 0 <= value <= 1:
            raise ValueError(f"must be DEPLOYMENT=SHARE with a share of 0 to 1 or 0% to 100%; got {text!r}")
        if name in shares:
            raise ValueError(f"{name} has two shares")
        shares[name] = value
    return shares


def traffic(state: Path, shares: Mapping[str, float], model: str) -> None:
    """Set the shares, and say what they are."""
    endpoints, default = find(state)
    with Client(endpoints, model=default) as client:
        for one in client.set_traffic(shares, model):
            print_line(stdout, f"{escape(one.name)}: {one.record.traffic_share:.4g} of the traffic")
