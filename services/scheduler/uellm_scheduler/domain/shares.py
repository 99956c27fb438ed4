"""Which deployment serves next: within the traffic shares, the one that is done first."""

from __future__ import annotations

from collections.abc import Iterator

from .policy import EngineView, QueueView
from .tenants import HALF_LIFE_MS


class RecentTokens:
    """Tokens that each deployment made, those of long ago less: they count half after `HALF_LIFE_MS`."""

    def __init__(self) -> None:
        self._tokens: dict[str, float] = {}
        self._counted_ms = 0

    def count(self, deployment: str, tokens: int, now_ms: int) -> None:
        """Count tokens that were made now."""
        if now_ms > self._counted_ms:
            # All at once: what is compared is of one time.
            factor = 0.5 ** ((now_ms - self._counted_ms) / HALF_LIFE_MS)
            self._tokens = {name: kept for name, was in self._tokens.items() if (kept := factor * was) >= 1}
            self._counted_ms = now_ms
        self._tokens[deployment] = self._tokens.get(deployment, 0.0) + tokens

    def of(self, deployment: str) -> float:
        """Tokens of a deployment, as of the last count."""
        return self._tokens.get(deployment, 0.0)


def serving(view: QueueView) -> list[EngineView]:
    """The engines that may get queries at all: those with a share of the traffic."""
    return [engine for engine in view.engines if engine.traffic_share > 0]


def free_places(view: QueueView) -> Iterator[EngineView]:
    """An engine for each batch that may begin now.

    A share bounds the part of the recent tokens that an engine may have, those of the rows that run there included.
    Batches are whole: half a batch above the share is let pass, and so is whoever is furthest below its own. Shares
    that sum to less than 1 are scaled up to it: what nobody else may take is not left undone. Among the engines within
    their shares the next batch goes where it is expected to be done first.
    """
    engines = serving(view)
    if len(engines) < 2:
        yield from (engine for engine in engines for _ in range(engine.free_batches))
        return
    free = {engine.deployment: engine.free_batches for engine in engines}
    typical = max(1.0, float((view.column("p50_tokens") - view.column("delivered_tokens")).mean()))
    prompt = float(view.column("prompt_tokens").mean())
    scale = 1.0 / min(1.0, sum(engine.traffic_share for engine in engines))
    tokens = {
        engine.deployment: engine.served_tokens + sum(row.expected_tokens for row in engine.rows) for engine in engines
    }
    left = len(view.slots)
    while True:
        batch = {engine.deployment: typical * min(max(1, left), engine.max_batch_rows) for engine in engines}
        total = sum(tokens.values())
        owed = {
            engine.deployment: scale * engine.traffic_share * (total + batch[engine.deployment])
            - tokens[engine.deployment]
            for engine in engines
        }
        most = max(owed.values())
        within = [
            engine
            for engine in engines
            if free[engine.deployment] and owed[engine.deployment] >= min(most, batch[engine.deployment] / 2)
        ]
        if not within:
            return
        best = min(within, key=lambda engine: _done_seconds(engine, max(1, left), prompt, typical))
        rows = min(max(1, left), best.free_rows if best.continuous else best.max_batch_rows)
        free[best.deployment] -= 1
        tokens[best.deployment] += rows * typical
        left -= rows
        yield best


def _done_seconds(engine: EngineView, waiting: int, prompt: float, tokens: float) -> float:
    """When a batch that begins now with the first of those that wait is done, with typical lengths."""
    joining = min(waiting, engine.free_rows if engine.continuous else engine.max_batch_rows)
    rows = joining + (sum(map(len, engine.running)) if engine.continuous else 0)
    step = engine.step_time
    start = step.startup + step.prefill_per_token * joining * prompt
    return start + tokens * step.step_seconds(rows, rows * (prompt + tokens / 2))
