"""What the scheduler shows to Prometheus."""

from __future__ import annotations

from dataclasses import fields

from prometheus_client import Counter, Gauge, Histogram

from uellm.cost.steps import StepTime
from uellm.messaging.queries import FinishRow, state_name
from uellm.v1.query_pb2 import QUERY_STATE_COMPLETED
from uellm.v1.scheduler_pb2 import CostModelStatus

from .costs import cost_model_status
from .effects import BeginAttempts, FinishQueries, PublishCostModels, StoreEffect

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Counts what the core wants done; made once a process."""

    def __init__(self) -> None:
        self.outcomes = Counter("uellm_outcomes_total", "Queries that ended.", ["model", "state", "slo_met"])
        self.tokens = Counter("uellm_output_tokens_total", "Tokens of completed answers.", ["model"])
        self.batch_rows = Histogram("uellm_batch_rows", "Rows of dispatched batches.", buckets=(1, 2, 4, 8, 16, 32, 64))
        self.wait = Histogram("uellm_queue_wait_seconds", "From acceptance to the last dispatch.", buckets=SECONDS)
        self.service = Histogram("uellm_service_seconds", "From the last dispatch to the end.", buckets=SECONDS)
        self.pending = Gauge("uellm_pending_queries", "Queries waiting, by queue.", ["queue"])
        self.running = Gauge("uellm_running_queries", "Queries on engines, by queue.", ["queue"])

        labels = ["model", "deployment"]
        self.coefficient = Gauge(
            "uellm_cost_model_coefficient_seconds",
            "Step time per step, row, context token, prompt token and batch.",
            [*labels, "coefficient"],
        )
        self.deviation = Gauge(
            "uellm_cost_model_deviation_seconds",
            "Standard deviation of each coefficient.",
            [*labels, "coefficient"],
        )
        self.relative_error = Gauge(
            "uellm_cost_model_relative_error", "Mean relative error of the last batches, predicted before.", labels
        )
        self.coverage = Gauge(
            "uellm_cost_model_interval_coverage", "Share of the same batches within their 90 % interval.", labels
        )
        self.interval = Gauge(
            "uellm_cost_model_interval_ratio", "Half width of the last batch's 90 % interval over its time.", labels
        )
        self.condition = Gauge(
            "uellm_cost_model_condition_number", "Of what batches say of decoding; above 30: hardly told apart.", labels
        )
        self.observations = Gauge("uellm_cost_model_observations", "Batches learnt from.", labels)

    def count(self, model: str, effect: StoreEffect) -> None:
        """Count an effect that is about to be carried out for a model."""
        if isinstance(effect, BeginAttempts):
            self.batch_rows.observe(len(effect.rows))
        elif isinstance(effect, FinishQueries):
            for row in effect.rows:
                self._count_outcome(row)
        elif isinstance(effect, PublishCostModels):
            for state in effect.states:
                self._show_cost_model(model, cost_model_status(state))

    def _show_cost_model(self, model: str, status: CostModelStatus) -> None:
        labels = (model, status.deployment)
        for gauge, values in ((self.coefficient, status.step_time), (self.deviation, status.standard_deviation)):
            for coefficient in fields(StepTime):
                value = getattr(values, f"{coefficient.name}_seconds")
                gauge.labels(*labels, coefficient.name).set(value)
        self.observations.labels(*labels).set(status.observations)
        self.interval.labels(*labels).set(status.interval_ratio)
        self.condition.labels(*labels).set(status.condition_number)
        if status.HasField("relative_error"):
            self.relative_error.labels(*labels).set(status.relative_error)
            self.coverage.labels(*labels).set(status.interval_coverage)

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
