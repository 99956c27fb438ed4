"""What the scheduler shows to Prometheus."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from uellm.messaging.queries import FinishRow, state_name
from uellm.v1.query_pb2 import QUERY_STATE_COMPLETED

from .effects import BeginAttempts, FinishQueries, StoreEffect

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Counts what the core wants done; made once a process."""

    def __init__(self) -> None:
        self.outcomes = Counter("uellm_outcomes_total", "Queries that ended.", ["model", "state", "slo_met"])
        self.tokens = Counter("uellm_output_tokens_total", "Tokens of completed answers.", ["model"])
        self.batch_rows = Histogram("uellm_batch_rows", "Rows of dispatched batches.", buckets=(1, 2, 4, 8, 16, 32, 64))
        self.wait = Histogram("uellm_queue_wait_seconds", "From acceptance to the last dispatch.", buckets=SECONDS)
        self.service = Histogram("uellm_service_seconds", "From the last dispatch to the end.", buckets=SECONDS)
        self.pending = Gauge("uellm_pending_queries", "Queries waiting, by model.", ["model"])
        self.running = Gauge("uellm_running_queries", "Queries on engines, by model.", ["model"])

    def count(self, effect: StoreEffect) -> None:
        """Count an effect that is about to be carried out."""
        if isinstance(effect, BeginAttempts):
            self.batch_rows.observe(len(effect.rows))
        elif isinstance(effect, FinishQueries):
            for row in effect.rows:
                self._count_outcome(row)

    def _count_outcome(self, row: FinishRow) -> None:
        outcome, model = row.outcome, row.name.split("/")[3]
        self.outcomes.labels(model, state_name(outcome.state), str(outcome.slo_met).lower()).inc()
        if outcome.state == QUERY_STATE_COMPLETED:
            timing = outcome.timing
            accepted, dispatched, finished = (
                stamp.ToMilliseconds() / 1000
                for stamp in (timing.accept_time, timing.dispatch_time, timing.finish_time)
            )
            self.tokens.labels(model).inc(outcome.output_tokens)
            self.wait.observe(max(0.0, dispatched - accepted))
            self.service.observe(max(0.0, finished - dispatched))
