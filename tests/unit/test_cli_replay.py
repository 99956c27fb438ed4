"""`uellm replay` and `uellm explain`, and the clients below them, against an in-process server with a recording."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
import pytest

from tests.support.recording import Life
from uellm.cli.main import main
from uellm.client import AsyncClient, Client, Endpoints
from uellm.rpc.errors import InvalidArgumentError, NotFoundError
from uellm.v1 import scheduler_pb2 as pb
from uellm.v1.query_pb2 import QUERY_STATE_COMPLETED, Outcome
from uellm.v1.scheduler_pb2_grpc import SchedulerServiceServicer, add_SchedulerServiceServicer_to_server

NAME = "tenants/t/models/tiny/queries/q"


@dataclass
class Server(SchedulerServiceServicer):
    """Has a recording; every query of odd number was late, and some are not known any more."""

    life: Life

    def ReadDecisions(self, request: Any, context: Any) -> Iterator[pb.ReadDecisionsResponse]:
        if request.after_decision_id == "x":
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no id")
        ids = [name for name, _ in self.life.entries]
        after = ids.index(request.after_decision_id) + 1 if request.after_decision_id else 0
        for name, record in self.life.entries[after:]:
            yield pb.ReadDecisionsResponse(decision_id=name, decision=record)

    def GetQuery(self, request: Any, context: Any) -> pb.GetQueryResponse:
        number = int(request.name.rpartition("q")[2])
        if number % 5 == 0:
            context.abort(grpc.StatusCode.NOT_FOUND, "gone")
        outcome = Outcome(state=QUERY_STATE_COMPLETED, slo_met=number % 2 == 0)
        return pb.GetQueryResponse(status=pb.QueryStatus(name=request.name, outcome=outcome))

    def ExplainQuery(self, request: Any, context: Any) -> pb.ExplainQueryResponse:
        if request.name != NAME:
            context.abort(grpc.StatusCode.NOT_FOUND, f"there is no query {request.name!r}")
        return pb.ExplainQueryResponse(explanation="It waited [3.0 s].", decisions=[self.life.entries[0][1]])


@pytest.fixture
def life() -> Life:
    life = Life(["fifo"], 11)
    life.live(150)
    return life


@pytest.fixture
def endpoint(life: Life) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(4))
    add_SchedulerServiceServicer_to_server(Server(life), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.fixture
def run(
    endpoint: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run the command; returns its exit status and what it said on stdout and stderr."""
    for name in ("UELLM_PROFILER", "UELLM_SCHEDULER", "UELLM_DEPLOYER"):
        monkeypatch.setenv(name, endpoint)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["uellm", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return run


def test_a_recording_is_verified(run, life: Life):
    decisions = sum(bool(record.policy) for _, record in life.entries)
    status, said, _ = run("replay")
    assert (status, f"{decisions} decisions replayed, every one as recorded" in said) == (0, True)
    status, said, _ = run("replay", "--json")
    assert json.loads(said) == {"decisions": decisions, "asked_again": decisions, "bit_for_bit": True}


def test_the_first_difference_is_shown(run, life: Life):
    changed, record = next((name, record) for name, record in life.entries if record.batches and record.queued > 8)
    record.batches[0].names[:] = [*record.batches[0].names[::-1], "one-more"]
    status, _, said = run("replay")
    assert status == 1
    assert f"differs: decision {changed}: recorded deployments/" in said
    status, said, _ = run("replay", "--json")
    assert (status, json.loads(said)["first"]["decision_id"]) == (1, changed)


def test_policies_that_this_version_does_not_have_are_said(run, life: Life):
    for _, record in life.entries[-3:]:
        record.policy_version = 99
    asked = sum(bool(record.policy) for _, record in life.entries)
    left = sum(bool(record.policy) for _, record in life.entries[-3:])
    status, said, _ = run("replay")
    assert status == 0
    assert f"{asked - left} decisions replayed" in said
    assert f"{left} are of policies or versions" in said


def test_another_policy_is_compared(run):
    status, said, _ = run("replay", "--policy", "edf")
    assert status == 0
    assert "edf asked about" in said
    assert "no answer changes the next" in said
    assert "Missed in truth, and dispatched at an earlier decision by edf" in said
    status, said, _ = run("replay", "--policy", "edf", "--json")
    report = json.loads(said)
    assert 0 < report["alike"] < report["decisions"]
    assert report["dispatched"]["earlier"] > 0
    missed = report["missed_but_dispatched_earlier"]
    assert {int(one["name"].rpartition("q")[2]) % 2 for one in missed} == {1}
    assert {one["in_truth"] for one in missed} == {"late"}
    assert all(one["has_deadline"] and one["other_id"] != one["recorded_id"] for one in missed)
    assert report["ends_not_known"] > 0


def test_without_a_recording_it_is_said(run, life: Life):
    life.entries.clear()
    for arguments in (["replay"], ["replay", "--policy", "edf"]):
        status, said, _ = run(*arguments)
        assert (status, said) == (0, "no decision is recorded that can be replayed\n")


def test_errors_are_one_line(run, life: Life, monkeypatch: pytest.MonkeyPatch):
    status, _, said = run("replay", "--policy", "best")
    assert status == 1
    assert "must be one of" in said
    life.entries[0][1].slots.append(1)
    status, _, said = run("replay")
    assert status == 1
    assert f"decision {life.entries[0][0]} can't be read" in said
    monkeypatch.delattr("uellm.cli.replay")
    monkeypatch.delitem(sys.modules, "uellm.cli.replay")
    monkeypatch.setitem(sys.modules, "uellm_scheduler.policies", None)
    status, _, said = run("replay")
    assert status == 1
    assert "pip install 'uellm[scheduler]'" in said


def test_a_query_is_explained(run):
    assert run("explain", NAME)[:2] == (0, "It waited [3.0 s].\n")
    assert json.loads(run("explain", NAME, "--json")[1])["explanation"] == "It waited [3.0 s]."
    status, _, said = run("explain", "tenants/t/models/tiny/queries/none")
    assert status == 1
    assert "there is no query" in said


async def test_both_clients_read_and_explain(endpoint: str, life: Life):
    where = Endpoints(endpoint, endpoint, endpoint)
    with Client(where) as client:
        assert list(client.decisions()) == life.entries
        assert list(client.decisions(after=life.entries[4][0])) == life.entries[5:]
        assert client.explain(NAME).explanation
        with pytest.raises(InvalidArgumentError):
            list(client.decisions(after="x"))
    async with AsyncClient(where) as client:
        assert [one async for one in client.decisions()] == life.entries
        assert (await client.explain(NAME)).explanation
        with pytest.raises(NotFoundError):
            await client.explain("nothing")
        with pytest.raises(InvalidArgumentError):
            [one async for one in client.decisions(after="x")]
