"""Collect labels: run prompts through the served model and write down how long its answers are."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from uellm.v1.query_pb2 import Query
from uellm_profiler.adapters.tokenizer import ServedTokenizer
from uellm_profiler.learning.generators import Answer, Generator, Request
from uellm_profiler.learning.labels import Decoding, Label, appending, label_key, read_labels
from uellm_profiler.learning.prompts import Prompt


@dataclass(frozen=True, slots=True)
class CollectPlan:
    """What is to be labelled."""

    model: str
    """Name of the served model."""
    greedy: Decoding | None
    """Each prompt once, greedily."""
    sampled: Decoding | None
    samples: int
    """So many times, sampled,"""
    sampled_prompts: int | None
    """for so many prompts, drawn at random (None: all of them)."""
    max_tokens: int
    longest_prompt_tokens: int
    """Longer prompts are left out."""
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Collected:
    """What a run did."""

    labelled: int
    """Labels written now."""
    known: int
    """Labels that were there already."""
    too_long: int
    """Prompts left out."""


@dataclass(frozen=True, slots=True)
class _Wanted:
    prompt: Prompt
    decoding: Decoding
    sample: int
    token_ids: tuple[int, ...]


def collect(
    prompts: Sequence[Prompt],
    plan: CollectPlan,
    tokenizer_folder: Path,
    generator: Generator,
    file: Path,
    progress: Callable[[int, int, int], None],
) -> Collected:
    """Append to `file` the labels that it lacks; killed and begun again, it goes on.

    `progress(done, total, tokens)` is called after each answer. Raises GeneratorError, DataError for a file that holds
    something else, UnavailableError for a folder without a tokenizer.
    """
    known = {label.key for label in read_labels(file)} if file.exists() else set()
    encode = _encoder(tokenizer_folder)
    fitting = {}
    for prompt in prompts:
        ids = encode(prompt.text)
        if len(ids) <= plan.longest_prompt_tokens:
            fitting[prompt.key] = (prompt, ids)
    all_wanted = [
        _Wanted(prompt, decoding, sample, fitting[prompt.key][1])
        for prompt, decoding, sample in _runs([entry[0] for entry in fitting.values()], plan)
    ]
    wanted = {_key(plan, one): one for one in all_wanted if _key(plan, one) not in known}
    tokens = 0
    with appending(file) as append:
        for done, answer in enumerate(generator.generate(_request(plan, k, one) for k, one in wanted.items()), 1):
            append(_label(plan, wanted[answer.key], answer))
            tokens += answer.output_tokens
            progress(done, len(wanted), tokens)
    return Collected(len(wanted), len(all_wanted) - len(wanted), len(prompts) - len(fitting))


def _encoder(folder: Path) -> Callable[[str], tuple[int, ...]]:
    tokenizer = ServedTokenizer.load(folder)
    return lambda text: tuple(tokenizer.encode(Query(prompt=text)).token_ids)


def _runs(prompts: Sequence[Prompt], plan: CollectPlan) -> Iterator[tuple[Prompt, Decoding, int]]:
    if plan.greedy is not None:
        for prompt in prompts:
            yield prompt, plan.greedy, 0
    if plan.sampled is not None:
        chosen = list(prompts)
        if plan.sampled_prompts is not None and plan.sampled_prompts < len(chosen):
            # By a hash of each, so that more prompts in the files leave those that are drawn as they were.
            chosen.sort(key=lambda prompt: _draw(plan.seed, *prompt.key))
            chosen = chosen[: plan.sampled_prompts]
        for sample in range(plan.samples):
            for prompt in chosen:
                yield prompt, plan.sampled, sample


def _key(plan: CollectPlan, one: _Wanted) -> str:
    return label_key(plan.model, one.prompt.key, one.decoding, one.sample)


def _request(plan: CollectPlan, key: str, one: _Wanted) -> Request:
    decoding = one.decoding
    seed = random.Random(f"{plan.seed}/{key}").getrandbits(31)  # noqa: S311  (not for secrets)
    return Request(
        key,
        one.token_ids,
        decoding.temperature,
        decoding.top_p,
        decoding.repetition_penalty,
        plan.max_tokens,
        seed,
    )


def _label(plan: CollectPlan, one: _Wanted, answer: Answer) -> Label:
    return Label(
        plan.model,
        *one.prompt.key,
        prompt_tokens=len(one.token_ids),
        **asdict(one.decoding),
        sample=one.sample,
        max_tokens=plan.max_tokens,
        output_tokens=answer.output_tokens,
        censored=answer.censored,
    )


def _draw(*parts: object) -> str:
    return hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()
