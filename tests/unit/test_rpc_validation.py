"""Every rule of a query, and resource names."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.struct_pb2 import ListValue, Struct, Value
from hypothesis import given
from hypothesis import strategies as st

from uellm.rpc.errors import InvalidArgumentError
from uellm.rpc.validation import DeploymentName, ModelName, QueryName, Violations, check_query, validate_query
from uellm.v1.query_pb2 import Query

NAN, INF = float("nan"), float("inf")


def query(**fields: Any) -> Query:
    """A query with a prompt, unless it has another input."""
    if not fields.keys() & {"prompt", "chat", "prompt_token_ids"}:
        fields["prompt"] = "hello"
    return Query(**fields)


def violated(wrong: Query) -> list[str]:
    violations = Violations()
    check_query(violations, wrong, "query")
    try:
        violations.raise_if_any()
    except InvalidArgumentError as error:
        return [violation.field for violation in error.violations]
    return []


def user(content: str = "hello", role: str = "user") -> dict[str, str]:
    return {"role": role, "content": content}


def seconds(value: int, nanos: int = 0) -> dict[str, int]:
    return {"seconds": value, "nanos": nanos}


GOOD = {
    "prompt": query(),
    "long prompt": query(prompt="a" * 1_048_576),
    "long prompt in other letters": query(prompt="ü" * 524_288),
    "chat": query(chat={"messages": [user(role="system"), user(), user(role="assistant")]}),
    "long chat": query(chat={"messages": [user()] * 256}),
    "tokens": query(prompt_token_ids={"ids": [0]}),
    "nothing of generation": query(generation={}),
    "low": query(
        generation={"max_output_tokens": 1, "temperature": 0, "top_p": 1e-9, "repetition_penalty": 1e-9, "seed": -1}
    ),
    "high": query(
        generation={
            "max_output_tokens": 2**31 - 1,
            "temperature": 2,
            "top_p": 1,
            "repetition_penalty": 10,
            "seed": 2**63 - 1,
            "stop": ["a" * 64] * 8,
        }
    ),
    "slo": query(slo={"completion": seconds(86_400), "first_token": seconds(86_400), "confidence": 0.999}),
    "short slo": query(slo={"completion": seconds(0, 1), "confidence": 1e-9}),
    "only first token": query(slo={"first_token": seconds(1)}),
    "default confidence": query(slo={"confidence": 0}),
    "on miss": query(slo={"on_miss": 2}),
    "on miss not set": query(slo={"on_miss": 0}),
    "priorities": query(priority=-100),
    "high priority": query(priority=100),
    "labels": query(labels={f"{index:063}": "v" * 255 for index in range(32)}),
    "prefix": query(prefix_hash="f" * 64),
    "adapter": query(adapter="My_Lora-1.5"),
    "engine parameters": query(engine_parameters={"a": {"b": [1, None, True, "x"]}}),
    "name is output only": query(name="whatever"),
}
BAD = {
    "nothing": (Query(), "query"),
    "empty prompt": (query(prompt=""), "query.prompt"),
    "blank prompt": (query(prompt=" \n\t\u3000"), "query.prompt"),
    "too long prompt": (query(prompt="a" * 1_048_577), "query.prompt"),
    "too long prompt in bytes": (query(prompt="ü" * 524_289), "query.prompt"),
    "empty chat": (query(chat={}), "query.chat.messages"),
    "too long chat": (query(chat={"messages": [user()] * 257}), "query.chat.messages"),
    "role": (query(chat={"messages": [user(), user(role="tool")]}), "query.chat.messages[1].role"),
    "no role": (query(chat={"messages": [user(role="")]}), "query.chat.messages[0].role"),
    "blank message": (query(chat={"messages": [user(" ")]}), "query.chat.messages[0].content"),
    "long message": (query(chat={"messages": [user("a" * 1_048_577)]}), "query.chat.messages[0].content"),
    "no tokens": (query(prompt_token_ids={}), "query.prompt_token_ids.ids"),
    "no output": (query(generation={"max_output_tokens": 0}), "query.generation.max_output_tokens"),
    "negative output": (query(generation={"max_output_tokens": -1}), "query.generation.max_output_tokens"),
    **{
        f"temperature {value}": (query(generation={"temperature": value}), "query.generation.temperature")
        for value in (-1e-9, 2.000001, NAN, INF, -INF)
    },
    **{
        f"top_p {value}": (query(generation={"top_p": value}), "query.generation.top_p")
        for value in (0, -0.1, 1.000001, NAN, INF)
    },
    **{
        f"penalty {value}": (query(generation={"repetition_penalty": value}), "query.generation.repetition_penalty")
        for value in (0, -1, 10.001, NAN, INF)
    },
    "stops": (query(generation={"stop": ["a"] * 9}), "query.generation.stop"),
    "empty stop": (query(generation={"stop": ["a", ""]}), "query.generation.stop[1]"),
    "long stop": (query(generation={"stop": ["ü" * 33]}), "query.generation.stop[0]"),
    "low priority": (query(priority=-101), "query.priority"),
    "high priority": (query(priority=101), "query.priority"),
    "many labels": (query(labels={str(index): "" for index in range(33)}), "query.labels"),
    "label key": (query(labels={"k" * 64: ""}), "query.labels"),
    "label value": (query(labels={"k": "ü" * 128}), "query.labels['k']"),
    "prefix": (query(prefix_hash="f" * 65), "query.prefix_hash"),
    **{
        f"adapter {value[:9]}": (query(adapter=value), "query.adapter")
        for value in ("../up", "a/b", "a..b", ".a", "a" * 64, "a\n")
    },
    "NaN": (query(engine_parameters={"a": {"b": [NAN]}}), "query.engine_parameters['a']"),
    "no kind": (
        query(engine_parameters=Struct(fields={"x": Value(list_value=ListValue(values=[Value()]))})),
        "query.engine_parameters['x']",
    ),
    "large parameters": (query(engine_parameters={"a": "x" * 65_536}), "query.engine_parameters"),
    **{
        f"completion {value}": (query(slo={"completion": value}), "query.slo.completion")
        for value in map(dict, [seconds(0), seconds(-1), seconds(86_400, 1), seconds(1, -1), seconds(1, 10**9)])
    },
    "first token": (query(slo={"first_token": seconds(0)}), "query.slo.first_token"),
    "order": (query(slo={"completion": seconds(1), "first_token": seconds(1, 1)}), "query.slo.first_token"),
    **{
        f"confidence {value}": (query(slo={"confidence": value}), "query.slo.confidence")
        for value in (-0.1, 1, 1.5, NAN, INF)
    },
    "on miss": (query(slo={"on_miss": 3}), "query.slo.on_miss"),
}


@pytest.mark.parametrize("case", GOOD)
def test_accepted(case: str) -> None:
    validate_query(GOOD[case])


@pytest.mark.parametrize("case", BAD)
def test_refused(case: str) -> None:
    wrong, field = BAD[case]
    assert violated(wrong) == [field]
    with pytest.raises(InvalidArgumentError):
        validate_query(wrong)


def test_all_violations_are_collected_under_the_given_prefix() -> None:
    wrong = query(
        prompt=" ",
        generation={"temperature": 3, "top_p": 0},
        slo={"confidence": 2, "completion": seconds(-1)},
        priority=1_000,
    )
    with pytest.raises(InvalidArgumentError) as caught:
        validate_query(wrong, "queries[3]")
    assert [violation.field for violation in caught.value.violations] == [
        "queries[3].prompt",
        "queries[3].generation.temperature",
        "queries[3].generation.top_p",
        "queries[3].slo.completion",
        "queries[3].slo.confidence",
        "queries[3].priority",
    ]
    for violation in caught.value.violations:
        assert violation.description.startswith("must ")


@pytest.mark.parametrize(
    ("wrong", "description"),
    [
        (query(generation={"temperature": 2.5}), "must be a finite number at least 0 and at most 2; got 2.5"),
        (query(slo={"confidence": 1}), "must be a finite number above 0 and below 1; got 1.0"),
        (query(slo={"completion": seconds(90_000)}), "must be above 0 s and at most 86,400 s; got 90,000.0 s"),
        (query(priority=101), "must be from -100 to 100; got 101"),
    ],
)
def test_descriptions_say_what_would_be_right(wrong: Query, description: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        validate_query(wrong)
    assert caught.value.violations[0].description == description


# Names.

ids = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True)
model_ids = st.from_regex(r"[a-z0-9]([-.]?[a-z0-9]){0,31}", fullmatch=True)


@given(tenant=ids, model=model_ids, query_id=ids)
def test_names_there_and_back(tenant: str, model: str, query_id: str) -> None:
    parent, name = ModelName(tenant, model), QueryName(tenant, model, query_id)
    assert ModelName.parse(str(parent)) == parent
    assert QueryName.parse(str(name)) == name
    assert (name.parent, parent.query(query_id)) == (parent, name)
    assert DeploymentName.parse(f"deployments/{query_id}") == DeploymentName(query_id)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "tenants/a/models/b",
        "tenants/a/models/b/queries",
        "tenants/a/models/b/queries/",
        "tenants/a/models/b/queries/c/",
        "tenants/a/models/b/queries/c/d",
        "/tenants/a/models/b/queries/c",
        "tenants/a/model/b/queries/c",
        "tenants/A/models/b/queries/c",
        "tenants/-a/models/b/queries/c",
        "tenants/a./models/b/queries/c",
        "tenants/a/models/../queries/c",
        "tenants/a/models/b--c/queries/c",
        "tenants/a/models/b/queries/c-",
        "tenants/a/models/b/queries/c\n",
        "tenants/a/models/b/queries/{c}",
        f"tenants/a/models/b/queries/{'c' * 64}",
        "tenants/ä/models/b/queries/c",
        "tenants/a/models/b/queries/" + "x/" * 99_999,
    ],
)
def test_what_is_no_query_name(text: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        QueryName.parse(text, field="targets[2].name")
    (violation,) = caught.value.violations
    assert violation.field == "targets[2].name"
    assert len(violation.description) < 350


@pytest.mark.parametrize(
    "model", ["smollm2", "llama-3.1-8b", "a", "0", "a" * 63, "a-.b", "a.-b"], ids=lambda model: model[:12]
)
def test_model_ids(model: str) -> None:
    assert ModelName.parse(f"tenants/t/models/{model}").model == model


@pytest.mark.parametrize("model", ["a..b", "a--b", ".a", "a.", "a_b", "A", "a" * 64, "a:b", "a\\b", "a\0b"])
def test_what_is_no_model_id(model: str) -> None:
    with pytest.raises(InvalidArgumentError, match="'--' and"):
        ModelName.parse(f"tenants/t/models/{model}")


def test_every_wrong_part_of_a_name_is_named() -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        QueryName.parse("tenants/A/models/B/queries/C")
    assert len(caught.value.violations) == 3


def test_long_input_is_quoted_in_part() -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        DeploymentName.parse("deployments/" + "x" * 5_000)
    (violation,) = caught.value.violations
    assert "x" * 80 in violation.description
    assert "x" * 81 not in violation.description
    assert "5,000 characters" in violation.description
