"""Checks of the profiler's requests: everything that is wrong whatever is deployed."""

from __future__ import annotations

from uellm.rpc.errors import InvalidArgumentError
from uellm.rpc.validation import ModelName, Violations, check_query
from uellm.v1.profiler_pb2 import (
    BatchProfileRequest,
    DescribePredictorRequest,
    InstallPredictorRequest,
    ProfileRequest,
    SubmitRequest,
    SubmitStreamRequest,
)

MAX_BATCH = 1_024
MAX_CORRELATION_ID_BYTES = 128
MAX_PATH_BYTES = 4_096


def check_profile(request: ProfileRequest) -> ModelName:
    """Check a request; returns the model it is for. Raises InvalidArgumentError with everything that is wrong."""
    violations = Violations()
    _check_query(violations, request)
    return _finish(violations, request.parent)


def check_submit(request: SubmitRequest) -> ModelName:
    """Check a request; returns the model it is for. Raises InvalidArgumentError with everything that is wrong."""
    violations = Violations()
    if request.query_id:
        violations.identifier("query_id", request.query_id)
    _check_query(violations, request)
    return _finish(violations, request.parent)


def check_batch(request: BatchProfileRequest) -> tuple[ModelName, list[str]]:
    """Check a request; returns the model it is for and the paths of its queries.

    Raises InvalidArgumentError with everything that is wrong.
    """
    violations = Violations()
    count = len(request.queries)
    paths = [f"queries[{index}]" for index in range(min(count, MAX_BATCH))]
    if 1 <= count <= MAX_BATCH:
        for path, query in zip(paths, request.queries, strict=True):
            check_query(violations, query, path)
    else:
        violations.add("queries", f"must have 1 to {MAX_BATCH:,} entries; got {count:,}")
    return _finish(violations, request.parent), paths


def check_correlation(request: SubmitStreamRequest) -> None:
    """Check what a streamed request has besides its submission; raises InvalidArgumentError."""
    violations = Violations()
    violations.size("correlation_id", request.correlation_id, MAX_CORRELATION_ID_BYTES)
    violations.raise_if_any()


def check_install(request: InstallPredictorRequest) -> None:
    """Check a request; raises InvalidArgumentError."""
    violations = Violations()
    if not request.path.startswith("/") or "\0" in request.path:
        violations.add("path", "must be the absolute path of a folder, since every replica of the profiler reads it")
    violations.size("path", request.path, MAX_PATH_BYTES)
    violations.raise_if_any()


def check_describe(request: DescribePredictorRequest) -> None:
    """Check a request; raises InvalidArgumentError."""
    violations = Violations()
    if request.model:
        violations.model_identifier("model", request.model)
    violations.raise_if_any()


def _check_query(violations: Violations, request: ProfileRequest | SubmitRequest) -> None:
    if request.HasField("query"):
        check_query(violations, request.query, "query")
    else:
        violations.add("query", "must be set")


def _finish(violations: Violations, parent: str) -> ModelName:
    """Check the parent, too, and end the checks."""
    try:
        model = ModelName.parse(parent)
    except InvalidArgumentError as error:
        violations.extend(error.violations)
        violations.raise_if_any()
        raise
    violations.raise_if_any()
    return model
