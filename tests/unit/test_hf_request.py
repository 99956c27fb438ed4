"""Parsing of generate requests."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from uellm_deployer.backends.common.request import (
    BadRow,
    RequestError,
    Row,
    RowError,
    SamplingParameters,
    parse_rows,
    parse_sampling,
)


class Encoder:
    vocabulary = 300
    context_limit = 20

    def encode(self, text: str, *, chat: bool) -> list[int]:
        return [299, *text.encode()] if chat else list(text.encode())


def strings(*values: str | bytes) -> Any:
    return np.array([v if isinstance(v, bytes) else v.encode() for v in values], dtype=np.object_)


def integers(*values: int) -> Any:
    return np.array(values, dtype=np.int32)


def parse(**inputs: Any) -> list[Row | BadRow]:
    return parse_rows(inputs, Encoder())


PLAIN = '{"max_tokens": 4}'


def test_rows_from_text_and_from_ids() -> None:
    rows = parse(
        row_id=strings("a", "b", "c"),
        text_input=strings("é", "", "x"),
        prompt_token_ids=integers(7, 8, 9),
        prompt_lengths=integers(0, 3, 0),
        resume_token_ids=integers(1, 2),
        resume_lengths=integers(0, 0, 2),
        sampling_parameters=strings(PLAIN, PLAIN, '{"max_tokens": 4, "raw_prompt": true, "stop": ["\\n"]}'),
    )
    assert rows == [
        Row("a", (299, 0xC3, 0xA9), (), SamplingParameters(4)),
        Row("b", (7, 8, 9), (), SamplingParameters(4)),
        Row("c", (ord("x"),), (1, 2), SamplingParameters(4, raw_prompt=True, stop=("\n",))),
    ]


def test_a_bad_row_leaves_the_others() -> None:
    rows = parse(
        row_id=strings("long", "range", "resume", "key", "utf8", "empty", "good"),
        text_input=strings("x" * 19, "", "x", "x", b"\xff", "", "x"),
        prompt_token_ids=integers(300),
        prompt_lengths=integers(0, 1, 0, 0, 0, 0, 0),
        resume_token_ids=integers(-1),
        resume_lengths=integers(0, 0, 1, 0, 0, 0, 0),
        sampling_parameters=strings(
            PLAIN, PLAIN, PLAIN, '{"max_tokens": 4, "beams": 2}', PLAIN, '{"max_tokens": 4, "raw_prompt": true}', PLAIN
        ),
    )
    messages = {row.row_id: row.message for row in rows if isinstance(row, BadRow)}
    assert messages["long"].startswith("the prompt has 20 tokens")
    assert messages["range"] == "prompt_token_ids: token id 300 is out of range, the vocabulary has 300"
    assert messages["resume"].startswith("resume_token_ids: token id -1")
    assert messages["key"].startswith("sampling_parameters: unknown key beams")
    assert messages["utf8"].startswith("text_input is not UTF-8")
    assert messages["empty"] == "the prompt is empty"
    assert [row.row_id for row in rows if isinstance(row, Row)] == ["good"]


@pytest.mark.parametrize(
    ("inputs", "named"),
    [
        ({}, "row_id is missing"),
        ({"row_id": strings()}, "row_id is empty"),
        ({"row_id": strings("a", "a")}, "row_id holds the same id twice"),
        ({"row_id": strings("a")}, "sampling_parameters is missing"),
        ({"row_id": strings("a"), "sampling_parameters": strings(PLAIN)}, "text_input is missing"),
        (
            {"row_id": strings("a"), "sampling_parameters": strings(PLAIN, PLAIN), "text_input": strings("x")},
            "sampling_parameters has 2 elements, row_id has 1",
        ),
        (
            {"row_id": strings("a"), "prompt_token_ids": integers(1, 2), "prompt_lengths": integers(3)},
            "prompt_token_ids has 2 elements, prompt_lengths adds up to 3",
        ),
        ({"row_id": strings("a"), "prompt_lengths": integers(-1)}, "prompt_lengths has a negative element"),
        ({"row_id": strings("a"), "resume_token_ids": integers(1)}, "resume_lengths is missing"),
    ],
)
def test_requests_that_cannot_be_told_apart_are_refused(inputs: dict[str, Any], named: str) -> None:
    with pytest.raises(RequestError, match=named):
        parse(**inputs)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({}, "max_tokens is required"),
        ({"max_tokens": 0}, "max_tokens must be an integer of at least 1"),
        ({"max_tokens": True}, "max_tokens must be an integer"),
        ({"max_tokens": 1.0}, "max_tokens must be an integer"),
        ({"max_tokens": 1, "temperature": -0.1}, "temperature"),
        ({"max_tokens": 1, "temperature": float("nan")}, "temperature"),
        ({"max_tokens": 1, "temperature": 10**400}, "temperature"),
        ({"max_tokens": 1, "top_p": 0}, "top_p must be a number above 0 and at most 1"),
        ({"max_tokens": 1, "top_p": 1.1}, "top_p"),
        ({"max_tokens": 1, "top_k": -1}, "top_k"),
        ({"max_tokens": 1, "repetition_penalty": 0}, "repetition_penalty"),
        ({"max_tokens": 1, "seed": 2**63}, "seed must be an integer of 64 bits"),
        ({"max_tokens": 1, "stop": "x"}, "stop must be a list"),
        ({"max_tokens": 1, "stop": [""]}, "stop"),
        ({"max_tokens": 1, "ignore_eos": 1}, "ignore_eos must be true or false"),
    ],
)
def test_sampling_parameters_name_what_is_wrong(values: dict[str, Any], named: str) -> None:
    with pytest.raises(RowError, match=named):
        parse_sampling(json.dumps(values))


@pytest.mark.parametrize("raw", ["", "[]", "[" * 100_000, b"\xff"])
def test_sampling_parameters_that_are_no_json_object(raw: str | bytes) -> None:
    with pytest.raises(RowError, match="sampling_parameters"):
        parse_sampling(raw)
