"""Nonsense of all kinds, for hypothesis: messages with any values, and bytes that are nearly messages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from google.protobuf.message import Message
from hypothesis import strategies as st

from tests.support.stack import MODEL
from uellm.v1 import profiler_pb2, query_pb2, scheduler_pb2, stream_pb2

integers = st.sampled_from([0, 1, 2**31 - 1, 2**31, 2**32 - 1]) | st.integers(0, 2**32 - 1)
signed = st.integers(-(2**31), 2**31 - 1)
large = st.sampled_from([0, 2**63 - 1]) | st.integers(0, 2**63 - 1)
numbers = st.floats(width=64)
seconds = st.integers(-(2**63), 2**63 - 1)


@st.composite
def durations(draw: Callable[[Any], Any]) -> dict[str, int]:
    return {"seconds": draw(seconds), "nanos": draw(signed)}


@st.composite
def profiles(draw: Callable[[Any], Any]) -> query_pb2.ResourceProfile:
    length = query_pb2.LengthDistribution(
        p50_tokens=draw(numbers),
        p90_tokens=draw(numbers),
        p99_tokens=draw(numbers),
        bucket_edges_tokens=draw(st.lists(integers, max_size=4)),
        bucket_probabilities=draw(st.lists(numbers, max_size=4)),
        limit_probability=draw(numbers),
        limit_tokens=draw(integers),
    )
    return query_pb2.ResourceProfile(
        prompt_tokens=draw(integers),
        output_length=length,
        kv_cache_bytes_p90=draw(large),
        kv_cache_bytes_limit=draw(large),
        service_time_p50=draw(durations()),
        batch_rows=draw(integers),
    )


names = st.sampled_from(
    ["", "x", "a/b", f"tenants/t/models/{MODEL}/queries/never-{'x' * 500}", "tenants/t/models/other/queries/q"]
) | st.text(max_size=20).map(lambda text: f"tenants/{text}/models/{MODEL}/queries/{text}")


@st.composite
def entries(draw: Callable[[Any], Any]) -> stream_pb2.ProfiledQuery:
    slo = query_pb2.Slo(completion=draw(durations()), first_token=draw(durations()), confidence=draw(numbers))
    slo.on_miss = draw(st.integers(0, 9))
    return stream_pb2.ProfiledQuery(
        schema_version=draw(st.sampled_from([0, 1, 2, 2**32 - 1])),
        name=draw(names),
        profile=draw(profiles()),
        slo=slo if draw(st.booleans()) else None,
        priority=draw(signed),
    )


def with_unknown_field(message: Message) -> bytes:
    """The message, and a field that this version does not know."""
    return message.SerializeToString() + bytes([0xFA, 0x7F, 3]) + b"new"


@st.composite
def raw_entries(draw: Callable[[Any], Any]) -> dict[bytes, bytes]:
    whole = draw(entries()).SerializeToString()
    kind = draw(st.sampled_from(["random", "truncated", "flipped", "message", "fields", "control"]))
    match kind:
        case "random":
            return {draw(st.sampled_from([b"q", b"c"])): draw(st.binary(max_size=64))}
        case "truncated":
            return {b"q": whole[: draw(st.integers(0, len(whole)))]}
        case "flipped":
            at = draw(st.integers(0, max(0, len(whole) - 1)))
            return {b"q": whole[:at] + bytes([draw(st.integers(0, 255))]) + whole[at + 1 :]}
        case "fields":
            return draw(st.dictionaries(st.binary(max_size=4), st.binary(max_size=16), min_size=1, max_size=3))
        case "control":
            message = stream_pb2.ControlMessage(schema_version=draw(integers), cancel_query=draw(names))
            return {b"c": with_unknown_field(message)}
        case _:
            return {b"q": whole}


PARENTS = st.sampled_from(["", f"tenants/t/models/{MODEL}", "tenants/t/models/none", "tenants//models/", "\u0000"])


@st.composite
def raw_requests(draw: Callable[[Any], Any]) -> bytes:
    generation = query_pb2.GenerationParameters(
        max_output_tokens=draw(signed),
        temperature=draw(numbers),
        top_p=draw(numbers),
        seed=draw(large),
    )
    query = query_pb2.Query(
        name=draw(names),
        prompt=draw(st.text(max_size=40)),
        generation=generation,
        priority=draw(st.integers(-200, 200)),
    )
    if draw(st.booleans()):
        query.prompt_token_ids.ids.extend(draw(st.lists(integers, max_size=9)))
    submit = profiler_pb2.SubmitRequest(parent=draw(PARENTS), query_id=draw(st.text(max_size=8)), query=query)
    batch = profiler_pb2.BatchProfileRequest(parent=submit.parent, queries=[query, query])
    target = scheduler_pb2.WatchTarget(name=draw(names), cursor=draw(st.text(max_size=9)))
    streamed = profiler_pb2.SubmitStreamRequest(correlation_id=draw(st.text(max_size=200)), submit=submit)
    watch = scheduler_pb2.WatchRequest(targets=[target])
    queue = scheduler_pb2.GetQueueRequest(model=draw(st.text(max_size=9)))
    whole = draw(st.sampled_from([submit, batch, watch, streamed, queue])).SerializeToString()
    cut = draw(st.integers(0, len(whole)))
    return draw(st.sampled_from([whole, whole[:cut], draw(st.binary(max_size=200))]))
