"""`uellm demo`: real prompts that arrive over time, served with three kinds of deadlines."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from uellm.cli.connect import endpoints_of
from uellm.cli.demo.board import showing
from uellm.cli.demo.report import show_report, write_json
from uellm.cli.demo.serving import Request, serve, verify
from uellm.cli.demo.workload import plan_arrivals, read_prompts
from uellm.cli.output import stderr, stdout
from uellm.cli.up import Console, prepare_model
from uellm.client import AsyncClient
from uellm.local.engine import DEFAULT_BACKEND, Backend
from uellm.local.ports import Ports
from uellm.local.stack import StackOptions, background_stack, default_spec
from uellm.local.state import NotRunningError, StackInfo, StateFolder
from uellm.local.supervise import StackError

INTERRUPTED = 130
DEFAULT_POLICY = "uellm"


@dataclass(frozen=True, slots=True)
class Plan:
    """What the command line asks for."""

    requests: int
    seed: int
    rate: float
    """Mean arrivals a second."""
    policy: str
    """Empty: that of the running stack, else the default."""
    engine: Backend | None = None
    """None: that of the running stack, else the default."""


def demo(state: Path, plan: Plan, json_file: Path | None) -> int:
    """Serve, show, write; returns the exit status: 0 if every query has exactly one outcome."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C: in order
    try:
        with _stack(state, plan) as info:
            requests = asyncio.run(_run(info, plan))
    except KeyboardInterrupt:
        stderr.print("interrupted")
        return INTERRUPTED
    show_report(requests)
    if json_file is not None:
        write_json(json_file, requests, seed=plan.seed, rate=plan.rate, policy=info.policy, engine=info.backend)
    return 1 if any(request.defects for request in requests) else 0


@contextlib.contextmanager
def _stack(state: Path, plan: Plan) -> Iterator[StackInfo]:
    """The stack that runs in the folder, else one of our own below it."""
    try:
        info = StateFolder(state).read()
    except NotRunningError:
        spec = default_spec(prepare_model(), plan.engine or DEFAULT_BACKEND)
        options = StackOptions(state / "demo", Ports.free(), spec, plan.policy or DEFAULT_POLICY)
        console = Console()
        try:
            with background_stack(options, console) as info:
                console.done()
                yield info
        finally:
            console.done()
        return
    for wanted, running in ((plan.policy, info.policy), (plan.engine, info.backend)):
        if wanted and wanted != running:
            raise StackError(f"the running stack has {running}: end it with `uellm down` to try {wanted}")
    stdout.print(f"using the stack in {state}")
    yield info


async def _run(info: StackInfo, plan: Plan) -> list[Request]:
    arrivals = plan_arrivals(read_prompts(), plan.requests, plan.seed, plan.rate)
    requests = [Request(arrival) for arrival in arrivals]
    stdout.print(
        f"{plan.requests} prompts arrive in {arrivals[-1].at_seconds:.0f} s, "
        f"policy [bold]{info.policy}[/], model [bold]{info.model}[/]"
    )
    async with AsyncClient(endpoints_of(info), model=info.model) as client:
        with showing(requests) as on_end:
            await serve(client, requests, on_end)
        await verify(client, requests)
    return requests
