"""Times predictors: idle, and while Triton generates; at batch 1 and 32, for 64, 256 and 1,024 prompt tokens.

    python benchmarks/predictor_latency.py lora=ADAPTER_FOLDER fast=ADAPTER_FOLDER prior --out predictor_latency.json

Figures depend on the machine, so no test asserts them and the report card does not hold them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from rich.console import Console
from uellm_profiler.adapters.loader import neural_reader
from uellm_profiler.adapters.tokenizer import ServedTokenizer
from uellm_profiler.domain.predictor import LengthModel, PredictorInput
from uellm_profiler.domain.prior import MU, SIGMA, StatisticalPrior
from uellm_profiler.learning.report.latency import Timing, make_prompts, measure, report
from uellm_profiler.learning.report.tables import latency_table, to_rich

from uellm.client import Client, Endpoints
from uellm.cost.lengths import LengthDistribution, log_normal_cdf
from uellm.local.model import default_model
from uellm.local.ports import Ports
from uellm.local.stack import StackOptions, background_stack, default_spec

IDLE, GENERATING = "idle", "Triton generating"


class Prior:
    """The statistical prior as a `LengthModel`."""

    kind, version, description = StatisticalPrior.kind, StatisticalPrior.version, StatisticalPrior.description

    def predict(self, prompts: Sequence[PredictorInput]) -> list[LengthDistribution]:
        """Discretised anew for each prompt."""
        return [LengthDistribution.from_cdf(log_normal_cdf(MU, SIGMA), prompt.limit_tokens) for prompt in prompts]


class Quiet:
    """Reports the stack's progress on stderr."""

    def step(self, text: str) -> None:
        """A step begins."""
        print(text, file=sys.stderr)

    def note(self, text: str) -> None:
        """Something worth knowing happened."""
        print(text, file=sys.stderr)


@contextlib.contextmanager
def generating(queries: int) -> Iterator[None]:
    """The local stack, which always has so many long answers to generate while the block runs."""
    with tempfile.TemporaryDirectory() as folder:
        options = StackOptions(Path(folder), Ports.free(), default_spec(default_model()))
        with background_stack(options, Quiet()) as info:
            parts = info.parts
            endpoints = Endpoints(parts["profiler"].endpoint, parts["scheduler"].endpoint, parts["deployer"].endpoint)
            stop, started = threading.Event(), threading.Barrier(queries + 1)
            threads = [
                threading.Thread(target=_keep_busy, args=(endpoints, info.model, number, stop, started))
                for number in range(queries)
            ]
            for thread in threads:
                thread.start()
            try:
                started.wait(120)
                yield
            finally:
                stop.set()
                for thread in threads:
                    thread.join()


def _keep_busy(
    endpoints: Endpoints, model: str, number: int, stop: threading.Event, started: threading.Barrier
) -> None:
    with Client(endpoints, model=model) as client:
        first = True
        while not stop.is_set():
            query = client.submit(f"Write a long story, number {number}.", max_output_tokens=256)
            for _ in client.stream(query):
                if first:
                    started.wait(120)
                    first = False
                if stop.is_set():
                    client.cancel(query)
                    break


def _load(argument: str, base: Path | None, threads: int) -> tuple[str, LengthModel]:
    name, _, folder = argument.partition("=")
    if not folder:
        if name != StatisticalPrior.kind:
            raise SystemExit(f"{name}: give it as {name}=ADAPTER_FOLDER")
        return name, Prior()
    return name, neural_reader(threads)(Path(folder), base)


def _parameters(model: LengthModel) -> int | None:
    count = getattr(model, "parameters", None)
    return count if isinstance(count, int) else None


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("predictors", nargs="+", metavar="NAME=FOLDER", help="an adapter folder, or `prior`")
    parser.add_argument("--base", type=Path, help="base model of the adapters; default: the adapter's own")
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each setting")
    parser.add_argument("--queries", type=int, default=8, help="answers generated at once")
    parser.add_argument("--skip-generating", action="store_true")
    parser.add_argument("--out", type=Path, help="JSON file; default: standard output")
    arguments = parser.parse_args()

    tokenizer = ServedTokenizer.load(default_model())
    models = [_load(one, arguments.base, arguments.threads) for one in arguments.predictors]
    prompts_of = lru_cache(lambda tokens, count: make_prompts(tokenizer, "smollm2-135m", tokens, count))
    timings: dict[str, list[Timing]] = {name: [] for name, _ in models}
    for name, model in models:
        timings[name] += measure(model, prompts_of, IDLE, seconds=arguments.seconds)
    if not arguments.skip_generating:
        with generating(arguments.queries):
            for name, model in models:
                timings[name] += measure(model, prompts_of, GENERATING, seconds=arguments.seconds)
    conditions = f"{arguments.threads} threads; generating: {arguments.queries} answers at once on the same machine"
    written = report([(name, _parameters(model), timings[name]) for name, model in models], conditions)
    Console(stderr=True).print(to_rich([latency_table(written)]))
    text = json.dumps(written, indent=1) + "\n"
    if arguments.out:
        arguments.out.write_text(text, "utf-8")
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
