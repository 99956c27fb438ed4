"""`uellm up` and `uellm down`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.status import Status
from rich.table import Table

from uellm.cli.output import print_line, stdout
from uellm.local.engine import BATCH_ROWS, DEFAULT_BACKEND, Backend
from uellm.local.model import default_model
from uellm.local.ports import Ports
from uellm.local.predictor import DEFAULT_PREDICTOR, PredictorKind
from uellm.local.stack import LocalStack, StackOptions, default_spec
from uellm.local.state import NotRunningError, StackInfo, StateError, StateFolder
from uellm.local.supervise import StackError
from uellm.v1.deployer_pb2 import DeploymentSpec

DOWN_SECONDS = 60.0
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the command line asks for."""

    state: Path
    port_base: int
    policy: str
    weights: Path | None
    model: str
    predictor: PredictorKind = DEFAULT_PREDICTOR
    engine: Backend = DEFAULT_BACKEND

    def options(self) -> StackOptions:
        """Options of the stack; converts the default model if it is needed for the first time."""
        if self.weights is None:
            spec = default_spec(prepare_model(), self.engine)
        else:
            if self.predictor is PredictorKind.LORA:
                prepare_model()  # which is its base
            spec = DeploymentSpec(
                model=self.model,
                weights_path=str(self.weights.absolute()),
                backend=self.engine,
                max_batch_rows=BATCH_ROWS[self.engine],
            )
        return StackOptions(self.state, Ports.at(self.port_base), spec, self.policy, self.predictor)

    def arguments(self) -> list[str]:
        """The command line that asks for it."""
        flags = {
            "--state": self.state.absolute(),
            "--port-base": self.port_base,
            "--policy": self.policy,
            "--predictor": self.predictor,
            "--engine": self.engine,
        }
        if self.weights is not None:
            flags |= {"--weights": self.weights.absolute(), "--model": self.model}
        return [str(word) for flag in flags.items() for word in flag]


class Console:
    """A reporter: a spinner with the current step on a terminal, lines elsewhere."""

    def __init__(self) -> None:
        self._status: Status | None = None

    def step(self, text: str) -> None:
        """Show the step that begins."""
        if not stdout.is_terminal:
            print_line(stdout, escape(text))
        elif self._status is None:
            self._status = stdout.status(text)
            self._status.start()
        else:
            self._status.update(text)

    def note(self, text: str) -> None:
        """Print what happened."""
        print_line(stdout, f"[dim]{time.strftime('%H:%M:%S')}[/]  {escape(text)}")

    def done(self) -> None:
        """End the spinner."""
        if self._status is not None:
            self._status.stop()
            self._status = None


class StopSignal:
    """Notes SIGINT, SIGTERM and SIGHUP instead of raising, so that the stack is stopped in order."""

    def __init__(self) -> None:
        self._asked = False
        for number in SIGNALS:
            signal.signal(number, self._note)

    def asked(self) -> bool:
        """Whether one came."""
        return self._asked

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self._asked = True


def prepare_model() -> Path:
    """The default model, with a progress bar when it is converted for the first time."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=stdout, transient=True) as progress:
        tasks: list[TaskID] = []

        def show(done: int, total: int, text: str) -> None:
            if not tasks:
                stdout.print("converting the default model, once (about half a minute)")
                tasks.append(progress.add_task(text, total=total))
            progress.update(tasks[0], completed=done, description=text)

        return default_model(progress=show)


def up(wanted: Wanted) -> None:
    """Run the stack until a signal."""
    options = wanted.options()
    stop, console = StopSignal(), Console()

    def on_ready(info: StackInfo) -> None:
        console.done()
        show(info, wanted.state)
        stdout.print("Ctrl-C ends it. In another terminal: [bold]uellm generate 'Why is the sky blue?' --slo 20s[/]")

    def asked() -> bool:
        if stop.asked():
            console.step("stopping")
        return stop.asked()

    try:
        LocalStack(options, console).run(asked, on_ready)
    finally:
        console.done()
    stdout.print("stopped")


def up_detached(wanted: Wanted) -> None:
    """Start the stack in the background and wait until it is ready; raises StackError with what it said."""
    folder = StateFolder(wanted.state)
    wanted.options()  # what takes long the first time is shown here
    if folder.is_held():
        raise StateError(f"a stack runs already in {folder.root}: see `uellm status`, or end it with `uellm down`")
    folder.root.mkdir(parents=True, exist_ok=True)
    log = folder.root / "up.log"
    with log.open("w") as output:
        argv = [sys.executable, "-m", "uellm.cli.main", "up", *wanted.arguments()]
        child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True)
    with stdout.status("starting"):
        while True:
            if child.poll() is not None:
                raise StackError(f"the stack did not start:\n{log.read_text().strip()}")
            try:
                info = folder.read()
            except NotRunningError:
                time.sleep(0.1)
                continue
            break
    show(info, wanted.state)
    stdout.print("[bold]uellm down[/] ends it.")


def down(state: Path) -> None:
    """End a stack and wait for its end."""
    folder = StateFolder(state)
    os.kill(folder.read().pid, signal.SIGTERM)
    deadline = time.monotonic() + DOWN_SECONDS
    with stdout.status("stopping"):
        while folder.is_held():
            if time.monotonic() >= deadline:
                raise StackError(f"the stack in {folder.root} did not end within {DOWN_SECONDS:g} s")
            time.sleep(0.1)
    stdout.print("stopped")


def show(info: StackInfo, state: Path) -> None:
    """Print where a stack answers."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, part in info.parts.items():
        table.add_row(name, f"[cyan]{part.endpoint}[/]")
    serving = f"model [bold]{info.model}[/] on {info.backend}, policy [bold]{info.policy}[/]"
    stdout.print(f"[bold green]ready[/]: {serving}, state in {state}")
    stdout.print(table)
