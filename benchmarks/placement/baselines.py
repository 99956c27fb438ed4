"""How others place layers, written from their descriptions: one copy each, one device per stage, to be priced alike.

Each gives stages in the order of the pipeline, or None where its rule leads to none. A rule that ignores memory may
give a plan that does not fit: `Pricing.missing_bytes` tells.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate, pairwise, product
from math import inf

from uellm_deployer.domain.helr.cost import INFINITE, Pricing, Span

Baseline = Callable[[Pricing], list[Span] | None]


def _spans(devices: list[int], counts: list[int]) -> list[Span]:
    borders = pairwise([0, *accumulate(counts)])
    return [Span((device,), a, b) for device, (a, b) in zip(devices, borders, strict=True) if b > a]


def even_split(pricing: Pricing) -> list[Span] | None:
    """The same number of layers on every device; the first get what remains."""
    layers, count = len(pricing.problem.model.layers), len(pricing.problem.devices)
    share, rest = divmod(layers, count)
    return _spans(list(range(count)), [share + (device < rest) for device in range(count)])


def proportional(pricing: Pricing) -> list[Span] | None:
    """As exo: the fewest devices with enough memory, layers in proportion to it by largest remainder, at least one."""
    model, devices = pricing.problem.model, pricing.problem.devices
    needed = sum(part.weight_bytes + part.kv_bytes for part in (*model.layers, model.embedding, model.head))
    largest = sorted(range(len(devices)), key=lambda n: (-devices[n].room_bytes, n))
    chosen: list[int] = []
    while sum(devices[n].room_bytes for n in chosen) < needed and len(chosen) < len(devices):
        chosen.append(largest[len(chosen)])
    chosen.sort()
    layers, total = len(model.layers), sum(devices[n].room_bytes for n in chosen)
    if total <= 0 or len(chosen) > layers:
        return None
    shares = [layers * devices[n].room_bytes / total for n in chosen]
    counts = [max(1, int(share)) for share in shares]
    while (rest := layers - sum(counts)) != 0:
        step = 1 if rest > 0 else -1
        movable = [n for n in range(len(chosen)) if counts[n] + step >= 1]
        counts[max(movable, key=lambda n: (step * (shares[n] - counts[n]), -n))] += step
    return _spans(chosen, counts)


def pipedream(pricing: Pricing) -> list[Span] | None:
    """As PipeDream, for inference: layers over devices in order, each used, by the least slowest stage or hop."""
    layers, count = len(pricing.problem.model.layers), len(pricing.problem.devices)
    curves = [pricing.curves((device,)) for device in range(count)]
    best: list[dict[int, tuple[float, list[int]]]] = [{0: (0.0, [])}]
    for device, c in enumerate(curves):
        hop = pricing.hop((device - 1,), (device,))[0] if device else 0
        row: dict[int, tuple[float, list[int]]] = {}
        for last in range(1, layers + 1):
            for first, (slowest, cuts) in best[-1].items():
                if first < last and hop < INFINITE and c.bytes_of(first, last) <= c.capacity:
                    worst = max(slowest, hop, int(c.decode[last] - c.decode[first]))
                    if worst < row.get(last, (inf, []))[0]:
                        row[last] = (worst, [*cuts, last - first])
        best.append(row)
    ends = [row[layers] for row in best if layers in row]
    return _spans(list(range(len(min(ends)[1]))), min(ends)[1]) if ends else None


def petals(pricing: Pricing) -> list[Span] | None:
    """As Petals: each joining device holds the span that is served worst; a request takes the shortest path."""
    layers, held = len(pricing.problem.model.layers), list[tuple[int, int, int]]()
    served = [0.0] * layers
    for device in range(len(pricing.problem.devices)):
        c = pricing.curves((device,))
        lengths = [n for n in range(1, layers + 1) if all(c.bytes_of(a, a + n) <= c.capacity for a in (0, layers - n))]
        if not lengths:
            continue
        length = lengths[-1]
        start = min(
            range(layers - length + 1), key=lambda a: (min(served[a : a + length]), sum(served[a : a + length]))
        )
        held.append((device, start, start + length))
        for layer in range(start, start + length):
            served[layer] += 1 / max(1, int(c.decode[-1]))
    curves = {device: pricing.curves((device,)).decode.tolist() for device, _, _ in held}
    paths = [dict[int, tuple[int, list[Span]]]() for _ in range(layers + 1)]
    paths[0][-1] = (0, [])
    for at in range(layers):
        for (before, (cost, path)), (device, a, b) in product(paths[at].items(), held):
            hop = pricing.hop((before,), (device,))[0] if before >= 0 else 0
            if not a <= at < b or hop >= INFINITE or (device,) in [span.devices for span in path]:
                continue
            for last in range(at + 1, b + 1):
                total = cost + hop + curves[device][last] - curves[device][at]
                if total < paths[last].get(device, (INFINITE, []))[0]:
                    paths[last][device] = (total, [*path, Span((device,), at, last)])
    return min(paths[layers].values(), key=lambda found: found[0])[1] if paths[layers] else None


BASELINES: dict[str, Baseline] = {
    "even split": even_split,
    "proportional to memory": proportional,
    "least bottleneck in order": pipedream,
    "greedy spans": petals,
}
