"""Deployments and the operations that change them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from uellm_deployer.domain.plan import DeploymentPlan


class State(StrEnum):
    """Where a deployment stands; the names of `DeploymentState`."""

    CREATING = "CREATING"
    READY = "READY"
    DRAINING = "DRAINING"
    DELETING = "DELETING"
    FAILED = "FAILED"


class Stage(StrEnum):
    """Step of putting a deployment in place or away; the names of `DeploymentStage`."""

    PLAN = "PLAN"
    STAGE = "STAGE"
    PREFLIGHT = "PREFLIGHT"
    LOAD = "LOAD"
    VERIFY = "VERIFY"
    SWITCH = "SWITCH"
    DRAIN = "DRAIN"
    UNLOAD = "UNLOAD"
    DONE = "DONE"
    ROLL_BACK = "ROLL_BACK"


class Strategy(StrEnum):
    """How a new deployment takes over from the old ones of its model."""

    BLUE_GREEN = "BLUE_GREEN"
    """The new one is verified before the old ones drain."""
    RECREATE = "RECREATE"
    """The old ones go first, and come back if the new one fails."""
    BESIDE = "BESIDE"
    """The old ones stay, and the new one waits for its share of the traffic."""


PERCENT = {
    Stage.PLAN: 0,
    Stage.STAGE: 10,
    Stage.PREFLIGHT: 15,
    Stage.LOAD: 20,
    Stage.VERIFY: 80,
    Stage.SWITCH: 90,
    Stage.DRAIN: 92,
    Stage.UNLOAD: 96,
    Stage.ROLL_BACK: 98,
    Stage.DONE: 100,
}
"""How far an operation is when a step begins; the load takes most of the time."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why something failed: gRPC status code, UPPER_SNAKE reason, and words."""

    code: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Deployment:
    """A deployment as the journal has it. Times in seconds since the epoch."""

    name: str
    state: State
    plan: DeploymentPlan
    create_time: float
    revision: int = 0
    """Grows with every change."""
    failure: str = ""
    measured_kv_bytes_per_token: int = 0
    measured_step_seconds: float = 0.0
    """Of a decode step with one row; 0: not measured."""
    traffic_share: float = 1.0
    """Of the traffic of its queue, 0 to 1."""
    replaced_by: str = ""
    """Resource name of the deployment that took over from it, once one has."""
    measured_kv_budget_bytes: int = 0
    """What the engine's cache really holds; 0: the engine does not allocate it beforehand."""

    entry_digest: str = ""
    """Of its repository entry as it was written; empty: not known."""

    @property
    def etag(self) -> str:
        """Changes with every change."""
        return f"{self.plan.plan_hash}-{self.revision}"


class OperationKind(StrEnum):
    """What an operation does."""

    CREATE = "CREATE"
    DELETE = "DELETE"


@dataclass(frozen=True, slots=True)
class Operation:
    """A change that takes time. Times in seconds since the epoch."""

    name: str
    kind: OperationKind
    deployment: str
    """Resource name of the deployment that it changes."""
    start_time: float
    request_id: str = ""
    request_digest: str = ""
    stage: Stage = Stage.PLAN
    percent: int = 0
    """How far, 0 to 100."""
    message: str = ""
    done: bool = False
    failure: Failure | None = None
    replaces: tuple[str, ...] = ()
    """Resource names of the deployments that go now that the created one serves."""

    def at(self, stage: Stage, message: str, percent: int | None = None) -> Operation:
        """The same, one step further."""
        return replace(self, stage=stage, message=message, percent=PERCENT[stage] if percent is None else percent)

    def ended(self, message: str, failure: Failure | None) -> Operation:
        """The same, at its end; one that failed keeps its step."""
        if failure is None:
            return replace(self.at(Stage.DONE, message), done=True)
        return replace(self, message=message, done=True, failure=failure)
