"""Fixtures that several unit tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.command_line import Run, ask, runner
from tests.support.deployer_server import DeployerServer
from uellm.cli.connect import VARIABLES


@pytest.fixture
def uellm(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """The command line, with a state folder in which no stack runs."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("UELLM_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("COLUMNS", "200")
    return runner(monkeypatch, capsys)


@pytest.fixture
def deployer_server(tmp_path: Path) -> Iterator[DeployerServer]:
    """The deployer with a real repository, and fakes for Triton, Redis and the machine; answers on a port."""
    with DeployerServer(tmp_path / "repository") as server:
        yield server


@pytest.fixture
def asked_deployer(deployer_server: DeployerServer, uellm: Run, monkeypatch: pytest.MonkeyPatch) -> DeployerServer:
    """The same, which commands ask."""
    ask(monkeypatch, deployer_server.address)
    return deployer_server
