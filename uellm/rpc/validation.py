"""Request checks that several services make, by hand because they are on the way of every query.

The rules are the comments of `protos/uellm/v1/query.proto`.
"""

from __future__ import annotations

import math
import re

from google.protobuf.struct_pb2 import Struct, Value

from uellm.rpc.names import DeploymentName, ModelName, QueryName
from uellm.rpc.violations import Violations, quote
from uellm.v1.query_pb2 import ChatMessages, GenerationParameters, OnMiss, Query, Slo

__all__ = [
    "DeploymentName",
    "ModelName",
    "QueryName",
    "Violations",
    "check_query",
    "quote",
    "validate_query",
]

MAX_PROMPT_BYTES = 1_048_576
MAX_CHAT_MESSAGES = 256
MAX_STOP_STRINGS = 8
MAX_STOP_BYTES = 64
MAX_LABELS = 32
MAX_LABEL_KEY_BYTES = 63
MAX_LABEL_VALUE_BYTES = 255
MAX_PREFIX_HASH_BYTES = 64
MAX_ENGINE_PARAMETERS_BYTES = 65_536
MAX_PRIORITY = 100
MAX_REPETITION_PENALTY = 10.0
MAX_SLO_SECONDS = 86_400.0
_ROLES = ("system", "user", "assistant")
# An adapter's name may become a path.
_ADAPTER = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")


def validate_query(query: Query, field_prefix: str = "query") -> None:
    """Checks a query as a client sends it, but for what depends on the model.

    Args:
        query: the query.
        field_prefix: path of the query in its request.

    Raises:
        InvalidArgumentError: with every violation, not only the first.
    """
    violations = Violations()
    check_query(violations, query, field_prefix)
    violations.raise_if_any()


def check_query(violations: Violations, query: Query, prefix: str) -> None:
    """Notes everything that is wrong with a query; as `validate_query`, for several queries in one request."""
    _check_input(violations, query, prefix)
    if query.HasField("generation"):
        _check_generation(violations, query.generation, f"{prefix}.generation")
    if query.HasField("engine_parameters"):
        _check_engine_parameters(violations, query.engine_parameters, f"{prefix}.engine_parameters")
    if query.adapter and (not _ADAPTER.fullmatch(query.adapter) or ".." in query.adapter):
        rule = "1 to 63 letters, digits, '.', '_' and '-', letters or digits at both ends, without '..'"
        violations.add(f"{prefix}.adapter", f"must be {rule}; got {quote(query.adapter)}")
    if query.HasField("slo"):
        _check_slo(violations, query.slo, f"{prefix}.slo")
    if abs(query.priority) > MAX_PRIORITY:
        violations.add(f"{prefix}.priority", f"must be from -{MAX_PRIORITY} to {MAX_PRIORITY}; got {query.priority}")
    _check_labels(violations, query, f"{prefix}.labels")
    violations.size(f"{prefix}.prefix_hash", query.prefix_hash, MAX_PREFIX_HASH_BYTES)


def _check_input(violations: Violations, query: Query, prefix: str) -> None:
    match query.WhichOneof("input"):
        case "prompt":
            if not query.prompt.strip():
                violations.add(f"{prefix}.prompt", "must not be empty or only white space")
            violations.size(f"{prefix}.prompt", query.prompt, MAX_PROMPT_BYTES)
        case "chat":
            _check_chat(violations, query.chat, f"{prefix}.chat")
        case "prompt_token_ids":
            if not query.prompt_token_ids.ids:
                violations.add(f"{prefix}.prompt_token_ids.ids", "must not be empty")
        case _:
            violations.add(prefix, "must set exactly one of prompt, chat and prompt_token_ids; got none")


def _check_chat(violations: Violations, chat: ChatMessages, prefix: str) -> None:
    if not 1 <= len(chat.messages) <= MAX_CHAT_MESSAGES:
        violations.add(
            f"{prefix}.messages",
            f"must have 1 to {MAX_CHAT_MESSAGES} messages; got {len(chat.messages):,}",
        )
        return
    for index, message in enumerate(chat.messages):
        path = f"{prefix}.messages[{index}]"
        if message.role not in _ROLES:
            violations.add(f"{path}.role", f"must be one of {', '.join(_ROLES)}; got {quote(message.role)}")
        if not message.content.strip():
            violations.add(f"{path}.content", "must not be empty or only white space")
        violations.size(f"{path}.content", message.content, MAX_PROMPT_BYTES)


def _check_generation(violations: Violations, generation: GenerationParameters, prefix: str) -> None:
    if generation.HasField("max_output_tokens") and generation.max_output_tokens < 1:
        violations.add(
            f"{prefix}.max_output_tokens",
            f"must be at least 1; got {generation.max_output_tokens}. Leave it out for the deployment's default",
        )
    if generation.HasField("temperature"):
        violations.finite(f"{prefix}.temperature", generation.temperature, 0, 2)
    if generation.HasField("top_p"):
        violations.finite(f"{prefix}.top_p", generation.top_p, 0, 1, above=True)
    if generation.HasField("repetition_penalty"):
        penalty = generation.repetition_penalty
        violations.finite(f"{prefix}.repetition_penalty", penalty, 0, MAX_REPETITION_PENALTY, above=True)
    if len(generation.stop) > MAX_STOP_STRINGS:
        violations.add(f"{prefix}.stop", f"must have at most {MAX_STOP_STRINGS} strings; got {len(generation.stop):,}")
        return
    for index, stop in enumerate(generation.stop):
        if not stop:
            violations.add(f"{prefix}.stop[{index}]", "must not be empty")
        violations.size(f"{prefix}.stop[{index}]", stop, MAX_STOP_BYTES)


def _check_slo(violations: Violations, slo: Slo, prefix: str) -> None:
    completion = first_token = None
    if slo.HasField("completion"):
        completion = violations.duration_seconds(f"{prefix}.completion", slo.completion, MAX_SLO_SECONDS)
    if slo.HasField("first_token"):
        first_token = violations.duration_seconds(f"{prefix}.first_token", slo.first_token, MAX_SLO_SECONDS)
    if completion is not None and first_token is not None and first_token > completion:
        violations.add(
            f"{prefix}.first_token",
            f"must be at most completion, which is {completion:,} s; got {first_token:,} s",
        )
    if slo.HasField("confidence") and slo.confidence != 0:  # 0 stands for the default
        violations.finite(f"{prefix}.confidence", slo.confidence, 0, 1, above=True, below=True)
    if slo.on_miss not in OnMiss.values():
        known = ", ".join(OnMiss.keys())
        violations.add(f"{prefix}.on_miss", f"must be one of {known}; got {slo.on_miss:d}")


def _check_labels(violations: Violations, query: Query, prefix: str) -> None:
    if len(query.labels) > MAX_LABELS:
        violations.add(prefix, f"must have at most {MAX_LABELS} entries; got {len(query.labels):,}")
        return
    for key, value in query.labels.items():
        if len(key.encode()) > MAX_LABEL_KEY_BYTES:
            violations.add(prefix, f"must have keys of at most {MAX_LABEL_KEY_BYTES} bytes; got {quote(key)}")
        violations.size(f"{prefix}[{quote(key)}]", value, MAX_LABEL_VALUE_BYTES)


def _check_engine_parameters(violations: Violations, parameters: Struct, prefix: str) -> None:
    size = parameters.ByteSize()
    if size > MAX_ENGINE_PARAMETERS_BYTES:
        violations.add(prefix, f"must have at most {MAX_ENGINE_PARAMETERS_BYTES:,} bytes; got {size:,}")
        return
    for key, value in parameters.fields.items():
        if not _is_json(value):
            violations.add(f"{prefix}[{quote(key)}]", "must be JSON: no NaN, no infinity, no value without a kind")


def _is_json(value: Value) -> bool:
    match value.WhichOneof("kind"):
        case "number_value":
            return math.isfinite(value.number_value)
        case "struct_value":
            return all(_is_json(part) for part in value.struct_value.fields.values())
        case "list_value":
            return all(_is_json(part) for part in value.list_value.values)
        case kind:
            return kind is not None
