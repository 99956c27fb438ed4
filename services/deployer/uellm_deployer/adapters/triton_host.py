"""Who runs Triton: nobody that is known, or the local stack. For Docker see `docker_host`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path

from uellm.local.state import StateFolder
from uellm.rpc.errors import FailedPreconditionError, UnavailableError
from uellm_deployer.domain.visible import VARIABLE

PART = "triton"
"""Name of Triton's part in a local stack."""

ASKED_SECONDS = 60.0
"""The stack answers at once, unless it waits for a process to end."""
POLL_SECONDS = 0.05


class FixedHost:
    """A Triton that was there before, at an endpoint."""

    def __init__(self, endpoint: str, visible_devices: str = "") -> None:
        """`visible_devices` is what somebody says of its `CUDA_VISIBLE_DEVICES`; empty: it has none."""
        self._endpoint = endpoint
        self._visible_devices = visible_devices

    async def environment(self) -> Mapping[str, str]:
        """What was said of it."""
        return {VARIABLE: self._visible_devices} if self._visible_devices else {}

    async def check(self) -> None:
        """Always refuses."""
        raise FailedPreconditionError(
            "triton",
            f"the deployer did not start the Triton at {self._endpoint} and cannot restart it: restart it where it was "
            "started, and what serves is loaded again within seconds. Or set --triton-host, so that the deployer can",
            reason="TRITON_HOST_FIXED",
        )

    async def restart(self) -> None:
        """Always refuses."""
        await self.check()


class LocalHost:
    """The `uellm up` (or `demo`) whose state folder this is: it owns Triton's process, and is asked by a file."""

    def __init__(self, state: Path, environment: Mapping[str, str], asked_seconds: float = ASKED_SECONDS) -> None:
        """`environment` is the one that the stack has given to all of its parts."""
        self._folder = StateFolder(state)
        self._environment = dict(environment)
        self._asked_seconds = asked_seconds

    async def environment(self) -> Mapping[str, str]:
        """That of all parts."""
        return self._environment

    async def check(self) -> None:
        """Whether a stack runs there."""
        if not await asyncio.to_thread(self._folder.is_held):
            raise FailedPreconditionError(
                "triton",
                f"no stack runs in {self._folder.root} that could restart Triton: start one with `uellm up`, or set "
                "--triton-state to its folder",
                reason="TRITON_HOST_GONE",
            )

    async def restart(self) -> None:
        """Ask, and wait until it was done."""
        await self.check()
        self._folder.ask_restart(PART)
        end = time.monotonic() + self._asked_seconds
        try:
            while PART in self._folder.restarts_asked():
                if time.monotonic() >= end:
                    raise UnavailableError(
                        f"the stack in {self._folder.root} has not restarted Triton within {self._asked_seconds:g} s",
                        reason="TRITON_HOST_UNAVAILABLE",
                    )
                await asyncio.sleep(POLL_SECONDS)
        finally:
            self._folder.restart_done(PART)  # nobody waits for it any more
