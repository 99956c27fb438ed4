"""Requests built from Python values, and answers as Python values."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, TypedDict, cast

from google.protobuf.duration_pb2 import Duration

from uellm.v1.profiler_pb2 import ProfileRequest, SubmitRequest, SubmitResponse
from uellm.v1.query_pb2 import (
    ON_MISS_CANCEL,
    ON_MISS_FINISH_LATE,
    ChatMessage,
    ChatMessages,
    GenerationParameters,
    Query,
    ResourceProfile,
    Slo,
    TokenIds,
)

INSTALL_SECONDS = 300.0
"""How long a predictor may take to load."""
PLAN_SECONDS = 120.0
"""How long a fleet may take to be planned."""

Prompt = str | Sequence[Mapping[str, str]] | Sequence[int]
"""Plain text; chat messages `{"role": ..., "content": ...}`; or token ids of the served model."""


class QueryOptions(TypedDict, total=False):
    """What may be said about a query besides its prompt. What is left out takes the deployment's defaults."""

    model: str
    """Logical model; default: the client's."""
    tenant: str
    """Default: the client's."""
    query_id: str
    """Repeating a submission with the same id and content returns the same query. Default: a new one."""
    slo_seconds: float
    """The whole answer within this, counted from acceptance."""
    first_token_slo_seconds: float
    """The first token within this."""
    confidence: float
    """Probability with which the deadline must be expected to hold; default 0.9."""
    on_miss: Literal["finish_late", "cancel"]
    """What happens when the deadline passes."""
    max_output_tokens: int
    temperature: float
    """0 is greedy."""
    top_p: float
    repetition_penalty: float
    seed: int
    stop: Sequence[str]
    """The answer ends before any of these."""
    priority: int
    """-100 to 100; higher goes first."""
    labels: Mapping[str, str]
    """Returned unchanged with the outcome."""
    raw_prompt: bool
    """Use the text as it is, without the chat template."""
    allow_prior: bool
    """If the predictor is overloaded, take the statistical prior's word instead of a refusal."""


@dataclass(frozen=True, slots=True)
class Submitted:
    """A query that was accepted. It gets exactly one outcome."""

    name: str
    """Resource name, `tenants/{tenant}/models/{model}/queries/{query}`."""
    profile: ResourceProfile
    """What it is predicted to cost."""
    accept_time: datetime
    """Deadlines count from here."""
    queue_depth: int
    """Queries waiting or running when it was accepted, itself included."""


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a client fills in."""

    model: str
    tenant: str


_GENERATION = ("max_output_tokens", "temperature", "top_p", "repetition_penalty", "seed", "stop")
_ON_MISS = {"finish_late": ON_MISS_FINISH_LATE, "cancel": ON_MISS_CANCEL}


def submit_request(prompt: Prompt, options: QueryOptions, defaults: Defaults) -> SubmitRequest:
    """A submission. It always has an id, so that it can be repeated after a lost connection."""
    query_id = options.get("query_id") or uuid.uuid4().hex
    return SubmitRequest(
        parent=_parent(options, defaults),
        query_id=query_id,
        query=_query(prompt, options),
        allow_prior=options.get("allow_prior", False),
    )


def profile_request(prompt: Prompt, options: QueryOptions, defaults: Defaults) -> ProfileRequest:
    """A request for a prediction."""
    return ProfileRequest(
        parent=_parent(options, defaults),
        query=_query(prompt, options),
        allow_prior=options.get("allow_prior", False),
    )


def submitted(response: SubmitResponse) -> Submitted:
    """The handle of an accepted query."""
    accepted = response.accept_time.ToDatetime(tzinfo=UTC)
    return Submitted(response.name, response.profile, accepted, response.queue_depth)


def name_of(query: str | Submitted) -> str:
    """The resource name of a query."""
    return query if isinstance(query, str) else query.name


def parent_of(model: str, tenant: str, defaults: Defaults) -> str:
    """Resource name of a model as a tenant sees it; what is empty takes the defaults."""
    return f"tenants/{tenant or defaults.tenant}/models/{model or defaults.model}"


def _parent(options: QueryOptions, defaults: Defaults) -> str:
    return f"tenants/{options.get('tenant', defaults.tenant)}/models/{options.get('model', defaults.model)}"


def _query(prompt: Prompt, options: QueryOptions) -> Query:
    generation = {name: options[name] for name in _GENERATION if name in options}  # type: ignore[literal-required]
    query = Query(
        generation=GenerationParameters(**generation),
        priority=options.get("priority", 0),
        labels=options.get("labels"),
        raw_prompt=options.get("raw_prompt", False),
    )
    if isinstance(prompt, str):
        query.prompt = prompt
    elif prompt and isinstance(prompt[0], Mapping):
        messages = [ChatMessage(**message) for message in cast("Sequence[Mapping[str, str]]", prompt)]
        query.chat.CopyFrom(ChatMessages(messages=messages))
    else:
        query.prompt_token_ids.CopyFrom(TokenIds(ids=cast("Sequence[int]", prompt)))
    slo = _slo(options)
    if slo is not None:
        query.slo.CopyFrom(slo)
    return query


def _slo(options: QueryOptions) -> Slo | None:
    slo = Slo()
    if "slo_seconds" in options:
        slo.completion.CopyFrom(_duration(options["slo_seconds"]))
    if "first_token_slo_seconds" in options:
        slo.first_token.CopyFrom(_duration(options["first_token_slo_seconds"]))
    if not slo.ByteSize():
        return None
    if "confidence" in options:
        slo.confidence = options["confidence"]
    if "on_miss" in options:
        slo.on_miss = _ON_MISS[options["on_miss"]]
    return slo


def _duration(seconds: float) -> Duration:
    message = Duration()
    message.FromNanoseconds(round(seconds * 1e9))
    return message
