"""`uellm predictor collect`, `invent` and `train`: how a predictor comes to be."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from uellm_profiler.learning import DATA
from uellm_profiler.learning.collect import CollectPlan, collect
from uellm_profiler.learning.generators import Generator, ServedGenerator, VllmGenerator
from uellm_profiler.learning.invent import invent
from uellm_profiler.learning.prompts import Prompt, read_prompts, without_near_duplicates, write_prompts

from uellm.cli.connect import find
from uellm.local.model import default_model
from uellm.local.stack import DEFAULT_MODEL

CONTEXT_TOKENS = 2_048


@dataclass(frozen=True, slots=True)
class Source:
    """What answers the prompts."""

    engine: str
    """`served` (the stack that runs in `state`) or `vllm`."""
    state: Path
    vllm_python: Path
    weights: Path | None
    """Folder of the model; None: the default one."""
    model: str
    """Its logical name; empty: that of the stack, or the default."""
    dtype: str = "float32"
    """Of vLLM."""

    def open(self, log: Path) -> tuple[str, Path, Generator]:
        """Name and folder of the model, and what generates."""
        folder = self.weights or default_model()
        if self.engine == "served":
            endpoints, running = find(self.state)
            name = self.model or running
            return name, folder, ServedGenerator(endpoints, name)
        return (
            self.model or DEFAULT_MODEL,
            folder,
            VllmGenerator(self.vllm_python, folder, CONTEXT_TOKENS, log, self.dtype),
        )


def own_prompts() -> list[Path]:
    """The prompts of the project."""
    return [DATA / "prompts_own.jsonl"]


def run_collect(files: Sequence[Path], labels: Path, source: Source, plan: Callable[[str], CollectPlan]) -> None:
    """Label prompts; `plan` is given the model's name."""
    prompts = without_near_duplicates(_read(files))
    name, folder, generator = source.open(labels.with_suffix(".vllm.log"))
    with _bar("labelled", extra="{task.fields[tokens]} tokens") as advance:
        done = collect(
            prompts, plan(name), folder, generator, labels, lambda n, total, tokens: advance(n, total, tokens=tokens)
        )
    _say(
        f"{done.labelled:,} labels written to {labels}, {done.known:,} were there already, "
        f"{done.too_long:,} prompts left out as too long"
    )


def run_invent(files: Sequence[Path], out: Path, count: int, seed: int, source: Source) -> None:
    """Have the model invent prompts."""
    _, folder, generator = source.open(out.with_suffix(".vllm.log"))
    with _bar("invented") as advance:
        invented = invent(_read(files), count, folder, generator, most_tries=10 * count, seed=seed, progress=advance)
    write_prompts(out, invented.prompts)
    _say(f"{len(invented.prompts):,} prompts of {invented.asked:,} continuations written to {out}")


def _read(files: Sequence[Path]) -> list[Prompt]:
    return [prompt for file in files for prompt in read_prompts(file)]


@contextlib.contextmanager
def _bar(title: str, extra: str = "") -> Iterator[Callable[..., None]]:
    columns = [TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()]
    if extra:
        columns.append(TextColumn(extra))
    with Progress(*columns, console=Console(file=sys.stderr)) as progress:
        task = progress.add_task("", total=None, tokens=0)

        def advance(done: int, total: int, **fields: Any) -> None:
            progress.update(task, completed=done, total=total, **fields)

        yield advance


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
