"""A service that loses connections and answers by heart: what tests of the clients talk to."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.rpc import error_details_pb2

from uellm.client import (
    Outcome,
    Restarted,
    TokenDelta,
)
from uellm.v1 import profiler_pb2, query_pb2, scheduler_pb2, stream_pb2
from uellm.v1.profiler_pb2_grpc import ProfilerServiceServicer
from uellm.v1.scheduler_pb2_grpc import SchedulerServiceServicer

NAME = "tenants/local/models/tiny/queries/q"


def delta(index: int, text: str, attempt: int = 1) -> stream_pb2.QueryEvent:
    return stream_pb2.QueryEvent(
        token_delta=TokenDelta(attempt=attempt, first_token_index=index, token_ids=[index], text=text)
    )


STORED = [
    stream_pb2.QueryEvent(admitted=stream_pb2.Admitted()),
    delta(0, "void "),
    stream_pb2.QueryEvent(restarted=Restarted(attempt=2, resume_index=0)),
    delta(0, "the ", 2),
    delta(1, "answer", 2),
    stream_pb2.QueryEvent(outcome=Outcome(state=query_pb2.QUERY_STATE_COMPLETED, text="the answer")),
]


@dataclass
class Server(SchedulerServiceServicer, ProfilerServiceServicer):
    """Has one query; each connection carries `per_connection` events and is then lost with the next of `losses`."""

    per_connection: int = 1000
    losses: list[grpc.StatusCode | None] = field(default_factory=list)
    refusals: int = 0
    cursors: list[str] = field(default_factory=list)
    submitted: list[str] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    watched: threading.Event = field(default_factory=threading.Event)
    stream_answers: int = 1_000_000
    """Answers of one SubmitStream before it is lost."""
    streamed: list[list[str]] = field(default_factory=list)
    """Ids that came over each SubmitStream."""
    stored: set[str] = field(default_factory=set)

    def Watch(self, request: Any, context: Any) -> Iterator[scheduler_pb2.WatchResponse]:
        if request.parent:
            yield from self._watch_tenant(request, context)
            return
        target = request.targets[0]
        if target.name != NAME:
            context.abort(grpc.StatusCode.NOT_FOUND, "there is no such query")
        self.cursors.append(target.cursor)
        self.watched.set()
        begin = int(target.cursor or 0)
        for number, event in enumerate(STORED[begin : begin + self.per_connection], begin + 1):
            yield scheduler_pb2.WatchResponse(name=NAME, cursor=str(number), event=event)
        if begin + self.per_connection < len(STORED):
            loss = self.losses[len(self.cursors) % len(self.losses)]
            if loss is not None:
                context.abort(loss, "gone")

    def _watch_tenant(self, request: Any, context: Any) -> Iterator[scheduler_pb2.WatchResponse]:
        """Ends of `q1` to `q9`; `from now on` is from the beginning."""
        if request.cursor == "old":
            context.abort(grpc.StatusCode.OUT_OF_RANGE, "kept for an hour")
        self.cursors.append(request.cursor)
        begin = int(request.cursor or 0)
        yield scheduler_pb2.WatchResponse(name=request.parent, cursor=str(begin))
        for number in range(begin + 1, min(begin + self.per_connection, 9) + 1):
            event = stream_pb2.QueryEvent(outcome=Outcome(text=str(number)))
            yield scheduler_pb2.WatchResponse(name=f"q{number}", cursor=str(number), event=event)
        loss = self.losses[len(self.cursors) % len(self.losses)]
        if loss is not None:
            context.abort(loss, "gone")

    def ListQueries(self, request: Any, context: Any) -> scheduler_pb2.ListQueriesResponse:
        begin = int(request.page_token or 0)
        names = [f"{request.parent}/queries/{number}" for number in range(begin, begin + 2)]
        queries = [scheduler_pb2.QueryStatus(name=name) for name in names]
        return scheduler_pb2.ListQueriesResponse(queries=queries, next_page_token=str(begin + 2) if begin < 4 else "")

    def ListDeadLetters(self, request: Any, context: Any) -> scheduler_pb2.ListDeadLettersResponse:
        begin = int(request.page_token or 0)
        letters = [stream_pb2.DeadLetter(name=f"{request.model}/{begin}")] if begin != 1 else []
        return scheduler_pb2.ListDeadLettersResponse(
            dead_letters=letters, next_page_token=str(begin + 1) if begin < 2 else ""
        )

    def ReplayDeadLetter(self, request: Any, context: Any) -> scheduler_pb2.ReplayDeadLetterResponse:
        return scheduler_pb2.ReplayDeadLetterResponse(name=f"{request.name}-replay")

    def GetQuery(self, request: Any, context: Any) -> scheduler_pb2.GetQueryResponse:
        status = scheduler_pb2.QueryStatus(name=request.name, state=query_pb2.QUERY_STATE_RUNNING)
        return scheduler_pb2.GetQueryResponse(status=status)

    def CancelQuery(self, request: Any, context: Any) -> scheduler_pb2.CancelQueryResponse:
        self.cancelled.append(request.name)
        return scheduler_pb2.CancelQueryResponse(state=query_pb2.QUERY_STATE_RUNNING)

    def Submit(self, request: Any, context: Any) -> profiler_pb2.SubmitResponse:
        self.submitted.append(request.query_id)
        if len(self.submitted) <= self.refusals:
            context.abort(grpc.StatusCode.UNAVAILABLE, "not yet")
        return profiler_pb2.SubmitResponse(name=NAME, queue_depth=1)

    def SubmitStream(self, requests: Any, context: Any) -> Iterator[profiler_pb2.SubmitStreamResponse]:
        ids: list[str] = []
        self.streamed.append(ids)
        held: list[profiler_pb2.SubmitStreamResponse] = []
        for request in requests:
            ids.append(request.submit.query_id)
            held.append(self._decide(request))
            if len(held) == 3:  # backwards: answers are not in order
                yield from reversed(held)
                held = []
            if len(ids) >= self.stream_answers:
                context.abort(self.losses[len(self.streamed) % len(self.losses)], "gone")
        yield from held

    def _decide(self, request: Any) -> profiler_pb2.SubmitStreamResponse:
        correlation, identifier = request.correlation_id, request.submit.query_id
        if request.submit.query.prompt == "refuse":
            status = _status(8, "full", error_details_pb2.ErrorInfo(reason="FULL", domain="uellm"))
            refused = profiler_pb2.Refused(code=8, message="full", status=status)
            return profiler_pb2.SubmitStreamResponse(correlation_id=correlation, refused=refused)
        again = identifier in self.stored
        self.stored.add(identifier)
        accepted = profiler_pb2.SubmitResponse(name=identifier, already_submitted=again)
        return profiler_pb2.SubmitStreamResponse(correlation_id=correlation, accepted=accepted)

    def Profile(self, request: Any, context: Any) -> profiler_pb2.ProfileResponse:
        bad = error_details_pb2.BadRequest()
        bad.field_violations.add(field="query.prompt", description="must not be empty")
        context.set_trailing_metadata([("grpc-status-details-bin", _status(3, "bad", bad))])
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "bad")
        raise AssertionError


def _status(code: int, message: str, detail: Any) -> bytes:
    from google.rpc import status_pb2

    status = status_pb2.Status(code=code, message=message)
    status.details.add().Pack(detail)
    return bytes(status.SerializeToString())
