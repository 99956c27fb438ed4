"""From a state folder to the services."""

from __future__ import annotations

import os
from pathlib import Path

from uellm.client.endpoints import DEFAULT_MODEL, Endpoints
from uellm.local.state import NotRunningError, StackInfo, StateFolder

VARIABLES = ("UELLM_PROFILER", "UELLM_SCHEDULER", "UELLM_DEPLOYER")


def find(state: Path) -> tuple[Endpoints, str]:
    """Endpoints and model of the stack in the folder, or of what the environment names.

    Raises NotRunningError if there is no stack and the environment does not name all three services.
    """
    if all(os.environ.get(name) for name in VARIABLES):
        return Endpoints.from_environment(), DEFAULT_MODEL
    info = StateFolder(state).read()
    return endpoints_of(info), info.model


def find_deployer(state: Path) -> tuple[Endpoints, str]:
    """As `find`, for what can be asked of a file, too."""
    try:
        return find(state)
    except NotRunningError as error:
        raise NotRunningError(f"{error}, or describe a machine with --file (docs/topology.md)") from None


def endpoints_of(info: StackInfo) -> Endpoints:
    """Where a stack's services answer."""
    return Endpoints(**{name: info.parts[name].endpoint for name in ("profiler", "scheduler", "deployer")})
