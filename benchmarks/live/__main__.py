"""Policies, and peers beside them, on the embedded stack with the real model: open-loop arrivals, runs interleaved.

Run with `python benchmarks/live --loads 0.8 1.2 --rounds 5`. In each round every server gets the same arrivals, in an
order that changes from round to round. Progress goes to stderr, figures to stdout as JSON: no test asserts them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

# The peers' engines are started by the tests' own pieces.
sys.path.append(str(Path(__file__).resolve().parents[2]))

from figures import figures_of, paired
from peers import BATCHER, DIRECT, ask_batcher, ask_engine, triton_batcher, triton_client
from runs import Ask, serve
from servers import ask_uellm
from workload import burst, held_out_prompts, workload

from uellm.client import AsyncClient, Endpoints
from uellm.local.engine import Backend
from uellm.local.model import default_model
from uellm.local.ports import Ports
from uellm.local.stack import StackOptions, background_stack, default_spec
from uellm.local.state import StackInfo

OURS = "uellm"
CAPACITY_BATCHES = 4
"""A burst of so many times what the engine takes at once tells what it can do."""


class Quiet:
    """Reports the stack's progress on stderr."""

    def step(self, text: str) -> None:
        """A step begins."""
        _say(text)

    def note(self, text: str) -> None:
        """Something worth knowing happened."""
        _say(text)


class Servers:
    """What is compared: our policies by name, and peers."""

    def __init__(self, client: AsyncClient, peers: dict[str, Ask]) -> None:
        self._client = client
        self._peers = peers

    async def ask(self, name: str) -> Ask:
        """How to ask this one, which serves from now on."""
        if name in self._peers:
            return self._peers[name]
        await self._client.set_policy(name)
        return partial(ask_uellm, self._client)


async def measure(servers: Servers, options: argparse.Namespace, rows: int) -> dict[str, Any]:
    """All runs; the engine takes so many rows at once."""
    prompts = held_out_prompts()
    count = CAPACITY_BATCHES * rows
    full = await serve(burst(0, count, prompts), await servers.ask("fifo"))
    capacity = count / full.seconds
    _say(f"capacity: {capacity:.3f} queries/s")
    runs: dict[float, defaultdict[str, list[dict[str, Any]]]] = {load: defaultdict(list) for load in options.loads}
    for number, load in itertools.product(range(options.rounds), options.loads):
        arrivals = workload(100 + number, options.queries, load * capacity, prompts)
        first = number % len(options.servers)
        for name in options.servers[first:] + options.servers[:first]:
            figures = figures_of(await serve(arrivals, await servers.ask(name)))
            runs[load][name].append(figures)
            _say(f"round {number} load {load} {name}: {_line(figures)}")
            if options.verbose:
                _say(json.dumps(figures))
    loads = {str(load): {"runs": of_load, "paired": _compare(of_load)} for load, of_load in runs.items()}
    return {"capacity_queries_per_s": capacity, "queries": options.queries, "loads": loads}


def _compare(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    if OURS not in runs:
        return {}
    wanted = ("goodput_per_s", "attainment", "useful_tokens_per_s", "tokens_per_s", "latency_p50_s", "latency_p95_s")
    return {
        name: {key: paired([one[key] for one in runs[OURS]], [one[key] for one in others]) for key in wanted}
        for name, others in runs.items()
        if name != OURS
    }


def _line(figures: dict[str, Any]) -> str:
    keys = (
        "goodput_per_s",
        "attainment",
        "late",
        "rejected",
        "tokens_per_s",
        "latency_p50_s",
        "latency_p95_s",
        "seconds",
    )
    return ", ".join(f"{key} {figures[key]:.3f}" for key in keys if figures[key] is not None)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextlib.asynccontextmanager
async def _servers(info: StackInfo, batcher: str) -> AsyncIterator[Servers]:
    endpoints = Endpoints(*(info.parts[name].endpoint for name in ("profiler", "scheduler", "deployer")))
    async with contextlib.AsyncExitStack() as stack:
        client = await stack.enter_async_context(AsyncClient(endpoints, model=info.model, tenant="bench"))
        (deployment,) = await client.deployments()
        engine = await stack.enter_async_context(triton_client(info.parts["triton"].endpoint))
        peers: dict[str, Ask] = {DIRECT: partial(ask_engine, engine, deployment.record.triton_model)}
        if batcher:
            peers[BATCHER] = partial(ask_batcher, await stack.enter_async_context(triton_client(batcher)))
        yield Servers(client, peers)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", type=Backend, default=Backend.HF, choices=list(Backend))
    parser.add_argument("--servers", nargs="+", help=f"policies, {BATCHER} (hf) or {DIRECT} (vllm)")
    parser.add_argument("--loads", nargs="+", type=float, default=[0.8, 1.2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--queries", type=int, default=60)
    parser.add_argument("--verbose", action="store_true", help="print all figures of each run")
    options = parser.parse_args()
    options.servers = options.servers or ["uellm", "fifo", "edf", "s3", BATCHER if options.engine == "hf" else DIRECT]

    async def run(info: StackInfo, batcher: str, rows: int) -> dict[str, Any]:
        async with _servers(info, batcher) as servers:
            return await measure(servers, options, rows)

    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        spec = default_spec(default_model(), options.engine)
        chosen = StackOptions(folder / "stack", Ports.free(), spec, policy="fifo")
        info = stack.enter_context(background_stack(chosen, Quiet()))
        batcher = ""
        if BATCHER in options.servers:
            batcher = stack.enter_context(triton_batcher(folder / "peer", default_model(), spec.max_batch_rows))
        print(json.dumps(asyncio.run(run(info, batcher, spec.max_batch_rows)), indent=2))


if __name__ == "__main__":
    main()
