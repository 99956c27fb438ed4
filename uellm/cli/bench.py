"""`uellm bench`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import rich.table
import typer
from rich.markup import escape
from uellm_scheduler.policies import POLICIES
from uellm_simulator.arrivals import Generated
from uellm_simulator.runs import Source
from uellm_simulator.traces import TraceError, read_trace

from uellm.bench.driving import Target, check_servers, drive
from uellm.bench.errors import BenchError
from uellm.bench.experiment import Plan, Results
from uellm.bench.figures import finite, summary, warnings
from uellm.bench.tables import Table, tables
from uellm.bench.workload import CLASSES, ServiceClass, Workload, held_out_prompts, prompts_of
from uellm.cli.bench_progress import Board
from uellm.cli.connect import endpoints_of, find
from uellm.cli.output import print_line, stderr, stdout
from uellm.cli.simulate import ANSWERS, PROMPTS, gaps_of
from uellm.cli.up import Wanted
from uellm.cli.values import parse_duration
from uellm.client import DEFAULT_MODEL, Endpoints
from uellm.local.engine import Backend
from uellm.local.predictor import PredictorKind
from uellm.local.stack import background_stack
from uellm.local.state import NotRunningError, StackInfo, StateFolder

INTERRUPTED = 130
LOADS = (0.8, 1.2)
POLICY_OPTION = "--policy"


@dataclass(frozen=True, slots=True)
class Traffic:
    """What is asked."""

    trace: Path | None
    arrivals: str
    tenants: int
    classes: Sequence[str]
    prompts: Path | None
    max_tokens: int

    def workload(self, count: int) -> Workload:
        """Runs take so many queries; raises typer.BadParameter, DataError."""
        classes = tuple(map(read_class, self.classes)) or CLASSES
        prompts = held_out_prompts() if self.prompts is None else prompts_of(self.prompts)
        if not prompts:
            raise typer.BadParameter("there is no prompt in it", param_hint="--prompts")
        return Workload(self._source(count), prompts, classes, self.max_tokens)

    def _source(self, count: int) -> Source:
        if self.trace is None:
            return Source(generated=Generated(gaps_of(self.arrivals), PROMPTS, ANSWERS, self.tenants))
        try:
            trace = tuple(read_trace(self.trace))
        except (TraceError, UnicodeDecodeError) as error:
            raise typer.BadParameter(str(error), param_hint="TRACE") from None
        if len(trace) < count:
            raise typer.BadParameter(
                f"{self.trace.name} has {len(trace)} requests, and a run takes {count} with its warm-up: "
                "lower --queries or --warm-up",
                param_hint="TRACE",
            )
        return Source(trace=trace)


@dataclass(frozen=True, slots=True)
class Where:
    """What is measured: an embedded stack, unless told otherwise."""

    engine: Backend
    predictor: PredictorKind
    weights: Path | None
    attach: bool
    endpoint: str
    model: str
    state: Path

    @property
    def embedded(self) -> bool:
        """Whether a stack is started."""
        return not (self.attach or self.endpoint)

    @contextlib.contextmanager
    def target(self, folder: Path, board: Board) -> Iterator[Target]:
        """While the block runs. Raises what a stack raises that cannot be started, NotRunningError."""
        if not self.embedded:
            yield self._running()
            return
        with contextlib.redirect_stdout(sys.stderr):  # on which the conversion of the default model reports
            wanted = Wanted(folder / "stack", 0, "fifo", self.weights, self.model, self.predictor, self.engine)
            options = wanted.options()
        with background_stack(options, board) as info:
            repository = StateFolder(options.state).repository / "models"
            yield Target(endpoints_of(info), info.model, _pids(info), repository, info.backend)

    def _running(self) -> Target:
        if self.endpoint:
            addresses = self.endpoint.split(",")
            if len(addresses) != len(Endpoints.__slots__) or not all(addresses):
                raise typer.BadParameter(
                    f"{self.endpoint!r}: name profiler, scheduler and deployer, host:port,host:port,host:port",
                    param_hint="--endpoint",
                )
            return Target(Endpoints(*addresses), self.model or DEFAULT_MODEL)
        endpoints, model = find(self.state)
        try:
            info = StateFolder(self.state).read()
        except NotRunningError:
            return Target(endpoints, self.model or model)
        pids = _pids(info) if endpoints == endpoints_of(info) else {}
        return Target(endpoints, self.model or model, pids)


@dataclass(frozen=True, slots=True)
class Shown:
    """What is done with the results."""

    out: Path | None
    markdown: bool
    as_json: bool


def plan_of(
    policies: Sequence[str] | None,
    loads: Sequence[float] | None,
    rate: float,
    rounds: int,
    queries: int,
    warm_up: int,
    seed: int,
) -> Plan:
    """With the defaults filled in; what is named twice is measured once."""
    servers = tuple(dict.fromkeys(policies or ("uellm", "fifo")))
    return Plan(servers, () if rate else tuple(dict.fromkeys(loads or LOADS)), rate, rounds, queries, warm_up, seed)


def bench(traffic: Traffic, where: Where, plan: Plan, shown: Shown) -> int:
    """Measure, print and write; returns the exit status."""
    if where.embedded:
        try:
            check_servers(plan.servers, list(POLICIES), embedded=True, continuous=where.engine == Backend.VLLM)
        except BenchError as error:
            raise typer.BadParameter(str(error), param_hint=POLICY_OPTION) from None
    if shown.out is not None and not shown.out.absolute().parent.is_dir():
        raise typer.BadParameter(f"there is no folder {shown.out.parent}", param_hint="--out")
    workload = traffic.workload(plan.count)
    results = Results(plan)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C: in order
    try:
        _measure(results, workload, where)
    except KeyboardInterrupt:
        results.interrupted = True
    finally:
        # What was measured is not lost with the error that ended it.
        if results.runs:
            _show(results, shown)
    if results.interrupted:
        wanted = len(list(plan.turns()))
        kept = f"the {len(results.runs)} complete runs of {wanted} are kept" if results.runs else "no run is complete"
        print_line(stderr, f"[bold red]interrupted[/]: {kept}")
        return INTERRUPTED
    return 0


def read_class(text: str) -> ServiceClass:
    """Of `NAME=SHARE[:ANSWER[:FIRST]]`; raises typer.BadParameter."""
    name, _, rest = text.partition("=")
    share, *objectives = rest.split(":")
    said = "a name, a share above 0 and up to 1, and at most two durations are needed"
    try:
        seconds = [0.0 if one in ("", "-") else parse_duration(one) for one in objectives]
        if name and 0 < float(share) <= 1 and len(seconds) <= 2:
            return ServiceClass(name, float(share), *seconds)
    except ValueError as error:
        said = str(error)
    raise typer.BadParameter(
        f"{text!r} is not NAME=SHARE[:ANSWER[:FIRST]], as in chat=0.5:20s:2s: {said}", param_hint="--class"
    )


def _measure(results: Results, workload: Workload, where: Where) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="uellm-bench-") as name,
        Board() as board,
        where.target(Path(name), board) as target,
    ):
        asyncio.run(drive(target, results, workload, Path(name) / "peers", board))


def _show(results: Results, shown: Shown) -> None:
    if shown.out is not None:
        shown.out.write_text(json.dumps(finite(results.to_json())) + "\n", encoding="utf-8")
    for warning in warnings(results):
        print_line(stderr, f"[yellow]warning[/]: {escape(warning)}")
    if shown.as_json:
        print(json.dumps(summary(results), indent=2))
        return
    if results.capacity:
        print_line(stdout, f"full engines serve {results.capacity:.3g} queries/s")
    for table in tables(results):
        print()
        if shown.markdown:
            print(table.markdown())
        else:
            stdout.print(_pretty(table))


def _pretty(table: Table) -> rich.table.Table:
    made = rich.table.Table(
        title=table.title, title_justify="left", title_style="bold", box=None, header_style="bold dim"
    )
    for header in table.headers:
        made.add_column(header, justify="left" if not header else "right")
    for row in table.rows:
        made.add_row(*row)
    return made


def _pids(info: StackInfo) -> dict[str, int]:
    return {name: part.pid for name, part in info.parts.items() if part.pid}
