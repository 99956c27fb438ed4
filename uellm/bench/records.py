"""What became of each query, by the client's clock: as it is written to a file, and as the simulator's `Fate`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from uellm_simulator.fates import Fate
from uellm_simulator.workload import Arrival, Request

from uellm.bench.workload import CONFIDENCE, Planned, ServiceClass
from uellm.cost.lengths import LengthDistribution
from uellm.v1 import query_pb2
from uellm.v1.query_pb2 import QUERY_STATE_FAILED, QUERY_STATE_QUEUED, QueryState

_STATE = "QUERY_STATE_"


@dataclass(slots=True)
class Record:
    """One query. Times are seconds from the begin of its run; None: not known, or it did not happen."""

    planned: Planned
    name: str = ""
    """Resource name; empty: it was not accepted, or a peer served it."""
    state: QueryState = QUERY_STATE_QUEUED
    reason: str = ""
    """Of a refusal or a failure."""
    sent: float | None = None
    dispatched: float | None = None
    first_token: float | None = None
    finished: float | None = None
    prompt_tokens: int = 0
    output_tokens: int = 0
    predicted: LengthDistribution | None = None

    @property
    def lag(self) -> float:
        """Seconds by which it was sent later than planned; 0: it was not sent."""
        return 0.0 if self.sent is None else self.sent - self.planned.seconds

    def failed(self, reason: str) -> None:
        """It could not be served."""
        self.state, self.reason = QUERY_STATE_FAILED, reason

    def fate(self) -> Fate:
        """For `metrics_of`. Latencies count from the planned send; a query asks for as many tokens as it may get."""
        planned = self.planned
        limit = planned.max_output_tokens
        request = Request(
            name=self.name,
            arrival=Arrival(planned.seconds, max(1, self.prompt_tokens), limit, planned.tenant),
            slo_class=planned.service.name,
            completion_seconds=planned.service.completion_seconds,
            first_token_seconds=planned.service.first_token_seconds,
            confidence=CONFIDENCE,
            predicted=self.predicted or LengthDistribution((limit,), (1.0,), 1.0),
        )
        return Fate(
            request,
            state=self.state,
            dispatch_seconds=_or_never(self.dispatched),
            first_token_seconds=_or_never(self.first_token),
            finish_seconds=_or_never(self.finished),
            output_tokens=self.output_tokens,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain. The deadline is seconds from the begin of the run, too."""
        planned, service = self.planned, self.planned.service
        return {
            "name": self.name,
            "class": service.name,
            "tenant": planned.tenant,
            "prompt_tokens": self.prompt_tokens,
            "output_tokens": self.output_tokens,
            "max_output_tokens": planned.max_output_tokens,
            "planned": planned.seconds,
            "sent": self.sent,
            "dispatched": self.dispatched,
            "first_token": self.first_token,
            "finished": self.finished,
            "state": QueryState.Name(self.state).removeprefix(_STATE),
            "reason": self.reason,
            "completion_seconds": service.completion_seconds,
            "first_token_seconds": service.first_token_seconds,
            "deadline": planned.seconds + service.completion_seconds if service.completion_seconds else None,
            "predicted": None if self.predicted is None else _plain(self.predicted),
        }

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Record:
        """What `to_json` gave, without the prompt."""
        service = ServiceClass(plain["class"], 1.0, plain["completion_seconds"], plain["first_token_seconds"])
        predicted = plain["predicted"]
        return cls(
            Planned(plain["planned"], service, "", plain["max_output_tokens"], plain["tenant"]),
            name=plain["name"],
            state=cast("QueryState", QueryState.Value(_STATE + plain["state"])),
            reason=plain["reason"],
            sent=plain["sent"],
            dispatched=plain["dispatched"],
            first_token=plain["first_token"],
            finished=plain["finished"],
            prompt_tokens=plain["prompt_tokens"],
            output_tokens=plain["output_tokens"],
            predicted=predicted
            and LengthDistribution(
                tuple(predicted["edges"]), tuple(predicted["probabilities"]), predicted["limit_probability"]
            ),
        )


def read_prediction(profile: query_pb2.ResourceProfile) -> LengthDistribution | None:
    """The predicted length of a profile; None if it holds none."""
    return LengthDistribution.from_proto(profile.output_length) if profile.output_length.bucket_edges_tokens else None


def _plain(predicted: LengthDistribution) -> dict[str, Any]:
    return {
        **{f"p{round(100 * level)}": predicted.quantile(level) for level in (0.5, 0.9, 0.99)},
        "edges": predicted.edges,
        "probabilities": predicted.probabilities,
        "limit_probability": predicted.limit_probability,
    }


def _or_never(seconds: float | None) -> float:
    return math.inf if seconds is None else seconds
