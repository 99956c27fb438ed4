"""Every Redis key, in one place.

The braces are Redis Cluster hash tags: all keys of a model live in one slot, so that one script may touch them.
Tenant, model and query ids contain neither colon nor slash (`uellm.rpc.validation`), so keys cannot collide.

A model's queue may be divided into shards, each with an owner of its own. A queue is named as its model, shards after
the first one `{model}/{shard}`.
"""

from __future__ import annotations

from dataclasses import dataclass

from uellm.rpc.violations import Violations

DEPLOYMENTS = "uellm:deployments"
"""Hash: resource name of a deployment -> `DeploymentRecord`."""

MODELS = "uellm:models"
"""Set: models that have, or had, a deployment."""

QUEUES = "uellm:queues"
"""Set: names of their queues, each of which somebody must own."""

SCHEDULERS = "uellm:schedulers"
"""Sorted set: replica ids of schedulers by when each was last heard of, in ms."""

PREDICTOR = "uellm:predictor"
"""`PredictorInstallation`: which predictor all replicas of the profiler use."""

GROUP = "scheduler"
"""The consumer group of every queue."""


@dataclass(frozen=True, slots=True)
class QueryKeys:
    """Keys of one query."""

    record: str
    """Hash: body_hash, queue (its name), entry_id, state, attempts, profile, payload (`QueryRecord`, till the outcome),
    cancel, outcome (its profile is `profile`)."""
    events: str
    """Stream of `QueryEvent`."""


@dataclass(frozen=True, slots=True)
class ModelKeys:
    """Keys of one model, and of a shard of its queue: `queue` to `decisions`."""

    model: str
    shard: int = 0

    @classmethod
    def of(cls, queue: str) -> ModelKeys:
        """Those of a queue, by its name."""
        model, _, shard = queue.partition("/")
        return cls(model, int(shard or 0))

    def _of_shard(self, key: str) -> str:
        return f"uellm:{{{self.model}}}:{key}" + (f":{self.shard}" if self.shard else "")

    @property
    def queue(self) -> str:
        """Stream: field `q` holds a `ProfiledQuery`, field `c` a `ControlMessage`."""
        return self._of_shard("queue")

    @property
    def depth(self) -> str:
        """Counter of the queries waiting or running; kept by the submit and finish scripts."""
        return self._of_shard("depth")

    @property
    def owner(self) -> str:
        """Id of the replica that owns the queue; expires with its lease."""
        return self._of_shard("owner")

    @property
    def owner_epoch(self) -> str:
        """Epoch of the newest lease; every write of an owner is fenced by it."""
        return self._of_shard("owner-epoch")

    @property
    def backlog(self) -> str:
        """`Backlog` as the owner last published it."""
        return self._of_shard("backlog")

    @property
    def policy(self) -> str:
        """Name of the batching policy that was chosen while the queue was served; absent: the schedulers' default."""
        return f"uellm:{{{self.model}}}:policy"

    @property
    def running(self) -> str:
        """Hash: resource name of a deployment -> `{DeploymentState that the owner acts on}:{queries in flight}`."""
        return self._of_shard("running")

    @property
    def cost(self) -> str:
        """Hash: resource name of a deployment -> `CostModelState`."""
        return f"uellm:{{{self.model}}}:cost"

    @property
    def observations(self) -> str:
        """Stream: field `o` an `Observation`, `p` the profile in it; bounded."""
        return f"uellm:{{{self.model}}}:observations"

    @property
    def calibration(self) -> str:
        """Hash: `state` a `CalibrationState`, `last` the id of the last observation in it."""
        return f"uellm:{{{self.model}}}:calibration"

    @property
    def calibrator(self) -> str:
        """Id of the profiler replica that folds the observations; expires with its lease."""
        return f"uellm:{{{self.model}}}:calibrator"

    @property
    def calibrator_epoch(self) -> str:
        """Epoch of the newest lease of a calibrator."""
        return f"uellm:{{{self.model}}}:calibrator-epoch"

    @property
    def decisions(self) -> str:
        """Stream of `DecisionRecord`, bounded: the flight recorder."""
        return self._of_shard("decisions")

    @property
    def dead_letters(self) -> str:
        """Stream: field `d` a `DeadLetter`, `r` its `QueryRecord`, `q` its `ProfiledQuery`; bounded."""
        return f"uellm:{{{self.model}}}:dead-letters"

    def queries(self, tenant: str) -> str:
        """Stream, ids as in the queue; field `q` the id of a query: those that have not ended, those in `outcomes`."""
        return f"uellm:{{{self.model}}}:t:{tenant}:queries"

    def outcomes(self, tenant: str) -> str:
        """Stream, by end, bounded: `q` the id of a query, `a` its entry in `queries`, `p` the outcome before or ""."""
        return f"uellm:{{{self.model}}}:t:{tenant}:outcomes"

    def query(self, tenant: str, query: str) -> QueryKeys:
        """Keys of one query of this model."""
        record = f"uellm:{{{self.model}}}:q:{tenant}:{query}"
        return QueryKeys(record=record, events=f"{record}:events")


def queue_name(model: str, shard: int) -> str:
    """The name of a shard of a model's queue."""
    return f"{model}/{shard}" if shard else model


def is_queue_name(name: str) -> bool:
    """Whether a shard of some model's queue may be named so."""
    model, slash, shard = name.partition("/")
    violations = Violations()
    violations.model_identifier("model", model)
    return not violations and (not slash or (shard.isdecimal() and shard == str(int(shard)) and shard != "0"))


def query_keys(name: str) -> QueryKeys:
    """Keys of the query `tenants/{tenant}/models/{model}/queries/{query}`."""
    _, tenant, _, model, _, query = name.split("/")
    return ModelKeys(model).query(tenant, query)


def tenant_of(name: str) -> str:
    """The tenant of the query `tenants/{tenant}/models/{model}/queries/{query}`."""
    return name.split("/", 2)[1]


def model_of(name: str) -> str:
    """The model of the query `tenants/{tenant}/models/{model}/queries/{query}`."""
    return name.split("/")[3]
