"""The command line in the process of the test, and deployers that it can ask."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from uellm.cli.connect import VARIABLES
from uellm.cli.main import main
from uellm.v1.deployer_pb2_grpc import DeployerServiceServicer, add_DeployerServiceServicer_to_server

Run = Callable[..., tuple[int, str, str]]
"""Runs a command; returns its exit status and what it said on stdout and stderr."""


def runner(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["uellm", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return run


def ask(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """Have commands and clients look for the services there."""
    for name in VARIABLES:
        monkeypatch.setenv(name, address)


@contextlib.contextmanager
def answering(servicer: DeployerServiceServicer, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A deployer that answers by heart."""
    server = grpc.server(ThreadPoolExecutor(2))
    add_DeployerServiceServicer_to_server(servicer, server)
    ask(monkeypatch, f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
    server.start()
    try:
        yield
    finally:
        server.stop(None).wait()
