"""A stand-in for the Docker Engine: the calls of its API that restart a container, on a unix socket."""

from __future__ import annotations

import contextlib
import json
import socketserver
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass
class Container:
    """One that the engine has."""

    id: str
    name: str
    labels: list[str] = field(default_factory=list)
    env: list[str] = field(default_factory=list)
    restarts: int = 0


@dataclass
class DockerEngine:
    """What it has, and what it was asked."""

    containers: list[Container] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def answer(self, method: str, target: str) -> tuple[int, Any]:
        """Status and content, as the API's reference says."""
        self.asked.append(f"{method} {target}")
        url = urlsplit(target)
        path = [unquote(part) for part in url.path.split("/")[1:]]
        if path == ["containers", "json"]:
            wanted = set(json.loads(parse_qs(url.query)["filters"][0])["label"])
            found = [one for one in self.containers if wanted <= set(one.labels)]
            return 200, [{"Id": one.id, "Names": [f"/{one.name}"]} for one in found]
        found = [one for one in self.containers if path[1] in (one.id, one.name)]
        if not found:
            return 404, {"message": f"No such container: {path[1]}"}
        (one,) = found
        if (method, path[2:]) == ("POST", ["restart"]):
            one.restarts += 1
            return 204, None
        return 200, {"Id": one.id, "Config": {"Env": one.env or None}}

    @contextlib.contextmanager
    def on(self, path: Path) -> Iterator[DockerEngine]:
        """Listen at a socket while the block runs."""
        engine = self

        class Handler(BaseHTTPRequestHandler):
            def _serve(self) -> None:
                status, content = engine.answer(self.command, self.path)
                body = b"" if content is None else json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = _serve  # noqa: N815  (the names that the base class looks for)

            def address_string(self) -> str:
                return "unix"

            def log_message(self, *words: object) -> None:
                """Silent."""

        with socketserver.ThreadingUnixStreamServer(str(path), Handler) as server:
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
            thread.start()
            try:
                yield self
            finally:
                server.shutdown()
                thread.join()
