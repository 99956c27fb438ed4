"""From a state folder to the services."""

from __future__ import annotations

import os
from pathlib import Path

from uellm.client.endpoints import DEFAULT_MODEL, Endpoints
from uellm.local.state import StackInfo, StateFolder

VARIABLES = ("UELLM_PROFILER", "UELLM_SCHEDULER", "UELLM_DEPLOYER")


def find(state: Path) -> tuple[Endpoints, str]:
    """Endpoints and model of the stack in the folder, or of what the environment names.

    Raises NotRunningError if there is no stack and the environment does not name all three services.
    """
    if all(os.environ.get(name) for name in VARIABLES):
        return Endpoints.from_environment(), DEFAULT_MODEL
    info = StateFolder(state).read()
    return endpoints_of(info), info.model


def endpoints_of(info: StackInfo) -> Endpoints:
    """Where a stack's services answer."""
    return Endpoints(**{name: info.parts[name].endpoint for name in ("profiler", "scheduler", "deployer")})
