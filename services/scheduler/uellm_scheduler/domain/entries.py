"""Whether an entry of the queue makes sense. Whoever can write to Redis can write anything there."""

from __future__ import annotations

import math

from uellm.rpc.errors import InvalidArgumentError
from uellm.rpc.names import QueryName
from uellm.v1.stream_pb2 import ProfiledQuery

SCHEMA_VERSION = 1
"""The newest that is understood. 0 is one that was not set."""
LAST_MS = 253_402_300_799_999
"""End of the year 9999: the last time that a timestamp can hold."""
MAX_SECONDS = 10 * 365 * 86_400
MAX_TOKENS = 2**31 - 1
MAX_BYTES = 2**62
MAX_PRIORITY = 2**15 - 1


def is_name_of(name: str, model: str) -> bool:
    """Whether it is the name of a query of the model."""
    try:
        return QueryName.parse(name).model == model
    except InvalidArgumentError:
        return False


def problem_of(entry_id: str, query: ProfiledQuery) -> str:
    """What keeps a query from being decided on; empty if nothing does."""
    profile, slo = query.profile, query.slo
    length = profile.output_length
    tokens = (profile.prompt_tokens, length.limit_tokens, length.p50_tokens, length.p90_tokens, length.p99_tokens)
    memory = (profile.kv_cache_bytes_p90, profile.kv_cache_bytes_limit)
    if query.schema_version > SCHEMA_VERSION:
        return f"schema_version is {query.schema_version}, this scheduler knows {SCHEMA_VERSION}"
    if int(entry_id.split("-", 1)[0]) > LAST_MS:
        return "its entry's id is no time"
    # Written so that NaN fails, too.
    if not all(0 <= number <= MAX_TOKENS for number in tokens):
        return "a number of tokens is out of range"
    if not all(0 <= number <= MAX_BYTES for number in memory):
        return "a number of bytes is out of range"
    if not all(0 <= duration.seconds <= MAX_SECONDS for duration in (slo.completion, slo.first_token)):
        return "a deadline is out of range"
    if not 0 <= slo.confidence < 1 or not math.isfinite(length.limit_probability):
        return "a probability is out of range"
    if abs(query.priority) > MAX_PRIORITY:
        return "priority is out of range"
    return ""
