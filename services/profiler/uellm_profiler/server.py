"""The gRPC face of the profiler: decode, call one use case, encode."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from uellm.messaging.clock import entry_time_ms, timestamp
from uellm.rpc.errors import NotFoundError, UellmError
from uellm.rpc.status import to_status
from uellm.v1 import profiler_pb2 as pb
from uellm.v1.profiler_pb2_grpc import ProfilerServiceServicer
from uellm_profiler import requests
from uellm_profiler.adapters.metrics import SUBMISSIONS
from uellm_profiler.app.predictors import Predictors
from uellm_profiler.app.profile import Profiler
from uellm_profiler.app.stream import answer_all
from uellm_profiler.app.submit import Submitted, Submitter
from uellm_profiler.domain.predictor import Urgency

SERVICE = pb.DESCRIPTOR.services_by_name["ProfilerService"].full_name
_TRACE_PARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")

Context = Any
"""A `grpc.aio.ServicerContext`."""


@dataclass(frozen=True, slots=True)
class ProfilerServicer(ProfilerServiceServicer):
    """`uellm.v1.ProfilerService`."""

    profiler: Profiler
    submitter: Submitter
    predictors: Predictors
    stream_in_flight: int
    """Requests of one stream that are decided at once."""
    models: Callable[[], Iterable[str]]
    """The logical models that have a deployment."""
    calibration: Callable[[str, str], pb.ModelCalibration]
    """How well a predictor version has done lately for a model."""

    async def Profile(self, request: pb.ProfileRequest, context: Context) -> pb.ProfileResponse:
        """Predict without any side effect."""
        parent = requests.check_profile(request)
        (profiled,) = await self.profiler.profile(
            parent.model, [request.query], ["query"], allow_prior=request.allow_prior
        )
        return pb.ProfileResponse(profile=profiled.profile)

    async def BatchProfile(
        self,
        request: pb.BatchProfileRequest,
        context: Context,
    ) -> pb.BatchProfileResponse:
        """Predict for many queries, without any side effect."""
        parent, paths = requests.check_batch(request)
        profiled = await self.profiler.profile(
            parent.model, request.queries, paths, urgency=Urgency.BULK, allow_prior=request.allow_prior
        )
        return pb.BatchProfileResponse(profiles=[one.profile for one in profiled])

    async def Submit(self, request: pb.SubmitRequest, context: Context) -> pb.SubmitResponse:
        """Profile, admit and enqueue."""
        return await self._submit(request, _trace_parent(context))

    async def SubmitStream(
        self,
        requests_: AsyncIterable[pb.SubmitStreamRequest],
        context: Context,
    ) -> AsyncGenerator[pb.SubmitStreamResponse, None]:
        """Submit what comes, many at once; a refusal is an answer."""
        trace_parent = _trace_parent(context)

        async def answer(request: pb.SubmitStreamRequest) -> pb.SubmitStreamResponse:
            return await self._answer(request, trace_parent)

        async with aclosing(answer_all(requests_, answer, self.stream_in_flight)) as answers:
            async for one in answers:
                yield one

    async def DescribePredictor(
        self,
        request: pb.DescribePredictorRequest,
        context: Context,
    ) -> pb.DescribePredictorResponse:
        """Say what predicts, and how well."""
        requests.check_describe(request)
        models = sorted(self.models())
        if request.model and request.model not in models:
            raise NotFoundError("model", request.model)
        predictor = self.profiler.predictor
        version = f"{predictor.kind}/{predictor.version}"
        return pb.DescribePredictorResponse(
            kind=predictor.kind,
            version=predictor.version,
            description=predictor.description,
            path=self.predictors.path,
            problem=self.predictors.problem,
            calibrations=[self.calibration(model, version) for model in models if request.model in ("", model)],
        )

    async def InstallPredictor(
        self,
        request: pb.InstallPredictorRequest,
        context: Context,
    ) -> pb.InstallPredictorResponse:
        """Load and check an adapter, and switch to it."""
        requests.check_install(request)
        installed = await self.predictors.install(request.path, validate_only=request.validate_only)
        return pb.InstallPredictorResponse(kind=installed.kind, version=installed.version)

    async def RollbackPredictor(
        self,
        request: pb.RollbackPredictorRequest,
        context: Context,
    ) -> pb.RollbackPredictorResponse:
        """Return to the predictor before the last installation."""
        restored = await self.predictors.rollback()
        return pb.RollbackPredictorResponse(kind=restored.kind, version=restored.version)

    async def _submit(self, request: pb.SubmitRequest, trace_parent: str) -> pb.SubmitResponse:
        try:
            parent = requests.check_submit(request)
            submitted = await self.submitter.submit(
                parent, request.query_id, request.query, trace_parent, allow_prior=request.allow_prior
            )
        except Exception as error:
            SUBMISSIONS.labels("refused", error.reason if isinstance(error, UellmError) else "ERROR").inc()
            raise
        SUBMISSIONS.labels("accepted" if submitted.accepted.created else "repeated", "").inc()
        return _submit_response(submitted)

    async def _answer(self, request: pb.SubmitStreamRequest, trace_parent: str) -> pb.SubmitStreamResponse:
        try:
            requests.check_correlation(request)
            accepted = await self._submit(request.submit, trace_parent)
        except Exception as error:  # noqa: BLE001  (`to_status` logs what is unexpected)
            status = to_status(error)
            refused = pb.Refused(code=status.code, message=status.message, status=status.SerializeToString())
            return pb.SubmitStreamResponse(correlation_id=request.correlation_id, refused=refused)
        return pb.SubmitStreamResponse(correlation_id=request.correlation_id, accepted=accepted)


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
