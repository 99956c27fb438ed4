"""The gRPC face of the profiler: decode, call one use case, encode."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from uellm.messaging.clock import entry_time_ms, timestamp
from uellm.rpc.errors import NotFoundError, UellmError
from uellm.v1 import profiler_pb2 as pb
from uellm.v1.profiler_pb2_grpc import ProfilerServiceServicer
from uellm_profiler import requests
from uellm_profiler.adapters.metrics import SUBMISSIONS
from uellm_profiler.app.profile import Profiler
from uellm_profiler.app.submit import Submitted, Submitter

SERVICE = pb.DESCRIPTOR.services_by_name["ProfilerService"].full_name
_TRACE_PARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")

Context = Any
"""A `grpc.aio.ServicerContext`."""


@dataclass(frozen=True, slots=True)
class ProfilerServicer(ProfilerServiceServicer):
    """`uellm.v1.ProfilerService`; what is not here is answered with UNIMPLEMENTED."""

    profiler: Profiler
    submitter: Submitter
    models: Callable[[], Iterable[str]]
    """The logical models that have a deployment."""

    async def Profile(self, request: pb.ProfileRequest, context: Context) -> pb.ProfileResponse:
        """Predict without any side effect."""
        parent = requests.check_profile(request)
        (profiled,) = await self.profiler.profile(parent.model, [request.query], ["query"])
        return pb.ProfileResponse(profile=profiled.profile)

    async def BatchProfile(
        self,
        request: pb.BatchProfileRequest,
        context: Context,
    ) -> pb.BatchProfileResponse:
        """Predict for many queries, without any side effect."""
        parent, paths = requests.check_batch(request)
        profiled = await self.profiler.profile(parent.model, request.queries, paths)
        return pb.BatchProfileResponse(profiles=[one.profile for one in profiled])

    async def Submit(self, request: pb.SubmitRequest, context: Context) -> pb.SubmitResponse:
        """Profile, admit and enqueue."""
        try:
            parent = requests.check_submit(request)
            trace_parent = _trace_parent(context)
            submitted = await self.submitter.submit(parent, request.query_id, request.query, trace_parent)
        except Exception as error:
            SUBMISSIONS.labels("refused", error.reason if isinstance(error, UellmError) else "ERROR").inc()
            raise
        SUBMISSIONS.labels("accepted" if submitted.accepted.created else "repeated", "").inc()
        return _submit_response(submitted)

    async def DescribePredictor(
        self,
        request: pb.DescribePredictorRequest,
        context: Context,
    ) -> pb.DescribePredictorResponse:
        """Say what predicts. Nothing is calibrated in this version: the calibrations carry no version."""
        requests.check_describe(request)
        models = sorted(self.models())
        if request.model and request.model not in models:
            raise NotFoundError("model", request.model)
        predictor = self.profiler.predictor
        return pb.DescribePredictorResponse(
            kind=predictor.kind,
            version=predictor.version,
            description=predictor.description,
            calibrations=[pb.ModelCalibration(model=model) for model in models if request.model in ("", model)],
        )


def _submit_response(submitted: Submitted) -> pb.SubmitResponse:
    accepted = submitted.accepted
    return pb.SubmitResponse(
        name=submitted.name,
        profile=accepted.profile,
        accept_time=timestamp(entry_time_ms(accepted.entry_id)),
        queue_depth=accepted.depth,
        already_submitted=not accepted.created,
    )


def _trace_parent(context: Context) -> str:
    """The call's W3C `traceparent`; empty if it has none that is well-formed."""
    for key, value in context.invocation_metadata() or ():
        if key == "traceparent" and isinstance(value, str) and _TRACE_PARENT.fullmatch(value):
            return value
    return ""
