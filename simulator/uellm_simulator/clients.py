"""Arrivals of clients, each with windows of its own: what ServeGen (arXiv 2505.09999) found traffic to be made of.

A service sees the sum of clients of which few are heavy. Each comes at a rate and as bursty as is its own, asks and
gets lengths of its own, and all of that changes from window to window. A file says so:

    {"clients": [{"name": "a", "windows": [{"start": 0, "seconds": 600, "rate": 0.4, "cv": 1.5,
      "prompts": {"median": 900, "spread": 1.1, "most": 4096}, "answers": {"lengths": [90, 130, 400]}}]}]}

Times are seconds, rates requests a second, `cv` the coefficient of variation of the gaps (Gamma; 1 where it is left
out). Lengths are tokens: a log-normal, or a list from which each is drawn. A client is a tenant.
"""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

from uellm_simulator.arrivals import Gamma, LogNormal
from uellm_simulator.traces import TraceError
from uellm_simulator.workload import Arrival

MOST_VARIATION = 20.0
WARM_UP = 5.0
"""Of a client's gaps before a window, in multiples of the mean gap that a moment falls into."""
PROMPTS = LogNormal(median=900.0, spread=0.7, most=4_096)
ANSWERS = LogNormal(median=130.0, spread=0.6, most=1_500)
"""Of one client."""


class Lengths(Protocol):
    """Lengths in tokens."""

    def draw(self, random: random.Random) -> int:
        """One of them."""


@dataclass(frozen=True, slots=True)
class Listed:
    """Lengths that were seen, each as likely."""

    lengths: tuple[int, ...]

    def draw(self, random: random.Random) -> int:
        """One of them."""
        return random.choice(self.lengths)


@dataclass(frozen=True, slots=True)
class ClientWindow:
    """A client for a while. Times in seconds."""

    start: float
    seconds: float
    rate: float
    """Requests a second; 0: it is silent."""
    prompts: Lengths
    answers: Lengths
    variation: float = 1.0
    """Coefficient of variation of the gaps."""


@dataclass(frozen=True, slots=True)
class Client:
    """Its windows are in order and do not overlap."""

    name: str
    windows: tuple[ClientWindow, ...]

    def arrivals(self, seed: str) -> Iterator[Arrival]:
        """All of them; they depend on the seed and the name, not on other clients."""
        times, lengths = (random.Random(f"{what}/{self.name}/{seed}") for what in ("times", "lengths"))
        for window in self.windows:
            if not window.rate:
                continue
            # Begun long before, so that the window neither begins with a burst nor with its end.
            at = window.start - WARM_UP * (1 + window.variation**2) / window.rate
            for gap in Gamma(window.variation).draw(times):
                at += gap / window.rate
                if at >= window.start + window.seconds:
                    break
                if at >= window.start:
                    yield Arrival(at, window.prompts.draw(lengths), window.answers.draw(lengths), self.name)


@dataclass(frozen=True, slots=True)
class Clients:
    """All that ask one service."""

    clients: tuple[Client, ...]

    @property
    def seconds(self) -> float:
        """From 0 to the end of the last window."""
        return max(window.start + window.seconds for client in self.clients for window in client.windows)

    @property
    def rate(self) -> float:
        """Mean requests a second in that time."""
        asked = sum(window.rate * window.seconds for client in self.clients for window in client.windows)
        return asked / self.seconds

    def take(self, count: int, rate: float, seed: int) -> list[Arrival]:
        """So many, `rate` a second, the first at 0; where the windows are too short they come again, drawn anew."""
        scale = self.rate / rate
        made: list[Arrival] = []
        for again in itertools.count():
            drawn = [one for client in self.clients for one in client.arrivals(f"{seed}/{again}")]
            drawn.sort(key=lambda one: (one.seconds, one.tenant))
            made += (replace(one, seconds=scale * (one.seconds + again * self.seconds)) for one in drawn)
            if len(made) >= count:
                break
        return [replace(one, seconds=one.seconds - made[0].seconds) for one in made[:count]]


@dataclass(frozen=True, slots=True)
class Drawn:
    """Clients of given statistics: what is said of them in the mean, drawn by a seed."""

    clients: int = 20
    tail: float = 1.5
    """Rates fall with the client's rank to this power: the top few bring most requests."""
    variation: float = 1.5
    """Median of the clients' coefficients of variation of gaps, which differ by a log-normal factor of spread 0.4."""
    window_requests: float = 200.0
    """Mean requests of all clients in a window."""
    windows: int = 6
    swing: float = 0.5
    """Spread of the log-normal factor by which a client's rate differs from window to window."""
    prompts: LogNormal = PROMPTS
    answers: LogNormal = ANSWERS
    differ: float = 0.7
    """Spread of the log-normal factor by which the clients' own medians differ."""

    def make(self, rate: float, seed: int) -> Clients:
        """Clients that come about `rate` times a second together."""
        draw = random.Random(f"clients/{seed}")
        shares = [1 / (rank + 1) ** self.tail for rank in range(self.clients)]
        rates = [rate * share / sum(shares) for share in shares]
        return Clients(
            tuple(self._client(f"client-{n}", one, self.window_requests / rate, draw) for n, one in enumerate(rates))
        )

    def take(self, count: int, rate: float, seed: int) -> list[Arrival]:
        """So many, `rate` a second; clients and arrivals are drawn."""
        return self.make(rate, seed).take(count, rate, seed)

    def _client(self, name: str, rate: float, seconds: float, draw: random.Random) -> Client:
        variation = min(MOST_VARIATION, self.variation * math.exp(draw.gauss(0, 0.4)))
        prompts, answers = (self._own(lengths, draw) for lengths in (self.prompts, self.answers))
        windows = tuple(
            ClientWindow(
                number * seconds,
                seconds,
                rate * math.exp(draw.gauss(0, self.swing) - self.swing**2 / 2),
                prompts,
                answers,
                variation,
            )
            for number in range(self.windows)
        )
        return Client(name, windows)

    def _own(self, lengths: LogNormal, draw: random.Random) -> LogNormal:
        return replace(lengths, median=lengths.median * math.exp(draw.gauss(0, self.differ)))


def read_clients(path: Path) -> Clients:
    """Read a file of clients. Raises TraceError, which names the client and the window; OSError."""
    try:
        content = json.loads(path.read_text("utf-8"))
        found = [(str(one["name"]), list(one["windows"])) for one in content["clients"]]
    except (ValueError, KeyError, TypeError) as error:
        raise TraceError(f"{path.name} is no file of clients: {type(error).__name__}: {error}") from None
    if len({name for name, _ in found}) < len(found):
        raise TraceError(f"{path.name}: two clients have the same name")
    clients = tuple(Client(name, _windows(path, name, windows)) for name, windows in found)
    if not any(window.rate for client in clients for window in client.windows):
        raise TraceError(f"{path.name}: no client ever asks")
    return Clients(clients)


def _windows(path: Path, name: str, stored: list[Any]) -> tuple[ClientWindow, ...]:
    windows = []
    for number, one in enumerate(stored, start=1):
        where = f"{path.name}, client {name!r}, window {number}"
        try:
            windows.append(_window(one))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise TraceError(f"{where}: {type(error).__name__}: {error}") from None
    ordered = sorted(windows, key=lambda one: one.start)
    for one, after in pairwise(ordered):
        if one.start + one.seconds > after.start + 1e-9:
            raise TraceError(f"{path.name}, client {name!r}: the windows at {one.start:g} and {after.start:g} overlap")
    return tuple(ordered)


def _window(stored: dict[str, Any]) -> ClientWindow:
    start, seconds, rate = (float(stored[name]) for name in ("start", "seconds", "rate"))
    variation = float(stored.get("cv", 1.0))
    if not (math.isfinite(start + seconds + rate) and start >= 0 and seconds > 0 and rate >= 0):
        raise ValueError("start and rate must be at least 0, seconds above 0")
    if not 0 < variation <= MOST_VARIATION:
        raise ValueError(f"cv must be above 0 and at most {MOST_VARIATION:g}")
    return ClientWindow(start, seconds, rate, _lengths(stored["prompts"]), _lengths(stored["answers"]), variation)


def _lengths(stored: dict[str, Any]) -> Lengths:
    if "lengths" in stored:
        lengths = tuple(int(one) for one in stored["lengths"])
        if not lengths or min(lengths) < 1:
            raise ValueError("lengths must be at least 1, and there must be one")
        return Listed(lengths)
    least, most = int(stored.get("least", 1)), int(stored.get("most", 8_192))
    middle, spread = float(stored["median"]), float(stored["spread"])
    if not (0 < middle < math.inf and 0 <= spread < math.inf and 1 <= least <= most):
        raise ValueError("median must be above 0, spread at least 0, and 1 <= least <= most")
    return LogNormal(middle, spread, least, most)
