"""Triton in a container: restarted through the Docker Engine's API on its unix socket."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from uellm.rpc.errors import FailedPreconditionError, PermissionDeniedError, UnavailableError

SERVICE_LABEL = "com.docker.compose.service=triton"
"""What Compose puts on the containers of a service."""

CALL_SECONDS = 10.0
GRACE_SECONDS = 30
"""Between SIGTERM and SIGKILL; docker-compose.yml gives Triton as much."""


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path, limit_seconds: float) -> None:
        super().__init__("docker", timeout=limit_seconds)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class DockerHost:
    """One container, found by its name or as the only one of Compose's service `triton`."""

    def __init__(self, docker: Path, container: str = "") -> None:
        """`docker` is the engine's socket."""
        self._docker = docker
        self._container = container

    async def environment(self) -> Mapping[str, str]:
        """That of the container, as it was created."""
        described = await self._call("GET", f"/containers/{await self._id()}/json")
        variables = (variable.partition("=") for variable in described["Config"]["Env"] or ())
        return {name: value for name, _, value in variables}

    async def check(self) -> None:
        """Whether the engine answers and has the container."""
        await self._id()

    async def restart(self) -> None:
        """The engine answers once it was restarted."""
        path = f"/containers/{await self._id()}/restart?t={GRACE_SECONDS}"
        await self._call("POST", path, GRACE_SECONDS + CALL_SECONDS)

    async def _id(self) -> str:
        if self._container:
            described = await self._call("GET", f"/containers/{quote(self._container, safe='')}/json")
            return str(described["Id"])
        query = urlencode({"all": "true", "filters": json.dumps({"label": [SERVICE_LABEL]})})
        found = await self._call("GET", f"/containers/json?{query}")
        if len(found) == 1:
            return str(found[0]["Id"])
        names = ", ".join(sorted(one["Names"][0].removeprefix("/") for one in found)) or "none"
        raise FailedPreconditionError(
            "triton",
            f"Triton's container is not clear: with the label {SERVICE_LABEL} there are: {names}. Name it with "
            "--triton-container",
            reason="TRITON_HOST_UNCLEAR",
        )

    async def _call(self, method: str, path: str, limit_seconds: float = CALL_SECONDS) -> Any:
        return await asyncio.to_thread(self._request, method, path, limit_seconds)

    def _request(self, method: str, path: str, limit_seconds: float) -> Any:
        connection = _UnixConnection(self._docker, limit_seconds)
        try:
            connection.request(method, path)
            response = connection.getresponse()
            body = response.read()
        except PermissionError:
            raise PermissionDeniedError(
                f"the deployer may not use {self._docker}: let its user do so, or set --triton-host fixed",
                reason="TRITON_HOST_DENIED",
            ) from None
        except (OSError, http.client.HTTPException) as error:
            raise UnavailableError(
                f"the Docker Engine at {self._docker} does not answer ({error}): check --docker-socket, or set "
                "--triton-host fixed",
                reason="TRITON_HOST_UNAVAILABLE",
            ) from None
        finally:
            connection.close()
        return self._content(response.status, body)

    def _content(self, status: int, body: bytes) -> Any:
        content = _json(body)
        if status < http.HTTPStatus.BAD_REQUEST:
            return content
        message = content.get("message") if isinstance(content, dict) else None
        raise FailedPreconditionError(
            "triton",
            f"the Docker Engine refuses ({status}): {message or body[:200]!r}. Check --triton-container",
            reason="TRITON_HOST_REFUSED",
        )


def _json(body: bytes) -> Any:
    """None for what is no JSON: a restart's answer is empty."""
    try:
        return json.loads(body)
    except ValueError:
        return None
