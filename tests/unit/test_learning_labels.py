"""Prompts, labels, and how they are collected."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from pathlib import Path

import pytest
from uellm_profiler.learning.collect import CollectPlan, collect
from uellm_profiler.learning.dataset import label_prompts, part_of, select
from uellm_profiler.learning.generators import Answer, Request
from uellm_profiler.learning.invent import clean
from uellm_profiler.learning.labels import Decoding, Label, appending, read_labels
from uellm_profiler.learning.prompts import Prompt, read_prompts, without_near_duplicates, write_prompts

from tests.support.tiny_model import make_tiny_model


def label(number: int, sample: int = 0) -> Label:
    return Label("tiny", "own", str(number), 10, 0.7, 0.95, 1.15, sample, 64, 5 + number, censored=False)


def test_prompts_come_back_as_they_were_written(tmp_path: Path) -> None:
    prompts = [Prompt("own", "1", "terse", "héllo\nthere"), Prompt("own", "2", "code", "x = 1")]
    write_prompts(tmp_path / "prompts_own.jsonl", prompts)
    assert read_prompts(tmp_path / "prompts_own.jsonl") == prompts


def test_a_benchmark_file_is_read_by_its_first_turn(tmp_path: Path) -> None:
    file = tmp_path / "prompts_bench.jsonl"
    file.write_text('{"question_id": 81, "category": "writing", "turns": ["one", "two"]}\n')
    assert read_prompts(file) == [Prompt("bench", "81", "writing", "one")]


def test_a_line_that_is_no_prompt_is_named(tmp_path: Path) -> None:
    file = tmp_path / "prompts_bad.jsonl"
    file.write_text('{"id": 1, "prompt": "a"}\n{"id": 2}\n')
    with pytest.raises(ValueError, match="line 2"):
        read_prompts(file)


def test_near_duplicates_are_left_out_whatever_their_case_and_punctuation() -> None:
    texts = [
        "What is the capital city of France, please?",
        "what is the capital city of france please",
        "What is the capital city of Peru, please?",
        "Hi",
        "hi!",
    ]
    kept = without_near_duplicates([Prompt("own", str(i), "f", text) for i, text in enumerate(texts)])
    assert [prompt.id for prompt in kept] == ["0", "2", "3"]


def test_a_torn_last_line_is_cut_off_before_more_is_appended(tmp_path: Path) -> None:
    file = tmp_path / "labels.jsonl"
    with appending(file) as append:
        append(label(1))
        append(label(2))
    file.write_bytes(file.read_bytes()[:-9])
    assert read_labels(file) == [label(1)]
    with appending(file) as append:
        append(label(3))
    assert read_labels(file) == [label(1), label(3)]


def test_a_bad_line_in_the_middle_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "labels.jsonl"
    file.write_text('{"nothing": 1}\n{}\n')
    with pytest.raises(ValueError, match="line 1"):
        read_labels(file)


def test_more_prompts_leave_the_split_of_the_others_as_it_was() -> None:
    parts = [part_of(("own", str(i))) for i in range(4_000)]
    assert 0.25 < parts.count("test") / len(parts) < 0.31
    assert 0.05 < parts.count("validation") / len(parts) < 0.09


def test_a_prompt_keeps_all_its_labels_in_one_part() -> None:
    prompts = [Prompt("own", str(i), "f", f"prompt number {i} about {i * i}") for i in range(200)]
    labelled = label_prompts(prompts, [label(i, sample) for i in range(200) for sample in range(3)])
    parts = {part: {one.prompt.key for one in select(labelled, part)} for part in ("train", "validation", "test")}
    assert sum(map(len, parts.values())) == 200
    assert all(len(one.labels) == 3 for one in labelled)


class CountingGenerator:
    """Answers with as many tokens as the prompt has, and dies after some answers."""

    def __init__(self, dies_after: int = 10**9) -> None:
        self.requests: list[Request] = []
        self._dies_after = dies_after

    def generate(self, requests: Iterable[Request]) -> Generator[Answer, None, None]:
        for number, request in enumerate(requests):
            if number == self._dies_after:
                raise KeyboardInterrupt
            self.requests.append(request)
            length = len(request.prompt_token_ids)
            yield Answer(request.key, min(length, request.max_tokens), length > request.max_tokens, "")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


def quiet(*_: int) -> None:
    """Nobody watches."""


PROMPTS = [Prompt("own", str(i), "f", "x" * i) for i in range(1, 31)]
PLAN = CollectPlan("tiny", Decoding(0.0), Decoding(0.7, 0.95), 2, 10, max_tokens=40, longest_prompt_tokens=70)


def test_collecting_goes_on_where_it_was_killed(tmp_path: Path, tokenizer: Path) -> None:
    file, whole = tmp_path / "labels.jsonl", tmp_path / "whole.jsonl"
    collect(PROMPTS, PLAN, tokenizer, CountingGenerator(), whole, quiet)
    with pytest.raises(KeyboardInterrupt):
        collect(PROMPTS, PLAN, tokenizer, CountingGenerator(dies_after=7), file, quiet)
    second = CountingGenerator()
    collected = collect(PROMPTS, PLAN, tokenizer, second, file, quiet)
    assert (collected.known, collected.labelled) == (7, len(second.requests))
    assert {one.key: one for one in read_labels(file)} == {one.key: one for one in read_labels(whole)}
    assert collect(PROMPTS, PLAN, tokenizer, CountingGenerator(dies_after=0), file, quiet).labelled == 0


def test_prompts_are_sampled_apart_from_the_greedy_run(tmp_path: Path, tokenizer: Path) -> None:
    generator = CountingGenerator()
    collect(PROMPTS, PLAN, tokenizer, generator, tmp_path / "labels.jsonl", quiet)
    labels = read_labels(tmp_path / "labels.jsonl")
    sampled = [one for one in labels if one.temperature]
    assert len({one.prompt for one in sampled}) == 10
    assert len(sampled) == 20
    assert len({request.seed for request in generator.requests}) == len(generator.requests)
    assert all(one.censored == (one.prompt_tokens > 40) for one in labels)
    assert {one.output_tokens for one in labels if one.censored} == {40}


@pytest.mark.parametrize(
    ("line", "prompt"),
    [
        (' "Name three birds." ', "Name three birds."),
        ("ab", ""),
        ("1. what is next", ""),
        ("use `ls` in a shell", ""),
        ("word " * 80, ""),
        ("", ""),
    ],
)
def test_only_what_looks_like_a_prompt_is_kept_of_what_a_model_invents(line: str, prompt: str) -> None:
    assert clean(line) == prompt
