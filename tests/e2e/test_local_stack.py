"""The local stack as a user meets it: real Redis, real Triton, the real default model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import grpc
import pytest

from tests.support.local_stack import LocalUp, gone, wait_for
from tests.support.tiny_model import make_tiny_model
from uellm.client import Client, Outcome, TokenDelta, Transcript
from uellm.rpc.errors import InvalidArgumentError, NotFoundError, RefusedError
from uellm.v1 import deployer_pb2
from uellm.v1.deployer_pb2_grpc import DeployerServiceStub
from uellm.v1.query_pb2 import (
    FINISH_REASON_LENGTH,
    QUERY_STATE_CANCELLED,
    QUERY_STATE_COMPLETED,
    QUERY_STATE_RUNNING,
)

ROOT = Path(__file__).resolve().parents[2]
LONG = "Tell me a long story about a lighthouse keeper."

pytestmark = pytest.mark.timeout(300)


def test_an_answer_streams_and_ends(client: Client) -> None:
    query = client.submit("List three colors.", slo_seconds=60, max_output_tokens=40)
    transcript = Transcript()
    events = list(client.stream(query))
    for event in events:
        transcript.add(event)
    outcome = events[-1]
    assert isinstance(outcome, Outcome)
    assert sum(isinstance(event, TokenDelta) for event in events) > 1
    assert sum(isinstance(event, Outcome) for event in events) == 1
    assert outcome.state == QUERY_STATE_COMPLETED
    assert outcome.text == transcript.text != ""
    assert 1 <= outcome.output_tokens <= 40
    assert outcome.profile == query.profile
    assert outcome.slo_met
    assert client.get(query).outcome == outcome


def test_greedy_answers_are_the_same_again(client: Client) -> None:
    first, second = (client.generate("What is the capital of Japan?", max_output_tokens=24) for _ in range(2))
    assert first.text == second.text
    assert "Tokyo" in first.text


def test_generate_prints_the_answer_and_predicted_against_actual(stack: LocalUp) -> None:
    ran = stack.run("generate", "What is the capital of Italy?", "--slo", "60s", "--max-tokens", "16")
    assert ran.returncode == 0, ran.stderr
    assert "Rome" in ran.stdout
    assert "predicted" not in ran.stdout
    assert len(ran.stderr.splitlines()) == 1
    for word in ("completed", "tokens", "predicted", "p90", "waited", "served in", "deadline 60 s kept"):
        assert word in ran.stderr


def test_generate_as_json(stack: LocalUp) -> None:
    ran = stack.run("generate", "Count to 100.", "--max-tokens", "5", "--json")
    answer = json.loads(ran.stdout)
    assert answer["state"] == "QUERY_STATE_COMPLETED"
    assert answer["output_tokens"] == 5
    assert answer["finish_reason"] == "FINISH_REASON_LENGTH"


def test_a_prediction_has_no_side_effect(stack: LocalUp, client: Client) -> None:
    before = [query.name for query in client.queries()]
    profile = client.profile(LONG, max_output_tokens=100)
    length = profile.output_length
    assert profile.prompt_tokens > 10
    assert 1 <= length.p50_tokens <= length.p90_tokens <= length.p99_tokens <= length.limit_tokens == 100
    assert profile.kv_cache_bytes_limit >= profile.kv_cache_bytes_p90 > 0
    assert [query.name for query in client.queries()] == before
    ran = stack.run("profile", LONG, "--max-tokens", "100")
    assert f"{profile.prompt_tokens} tokens" in ran.stdout
    assert "service time" in ran.stdout


def test_status_shows_parts_deployment_and_queue(stack: LocalUp) -> None:
    ran = stack.run("status")
    assert ran.returncode == 0, ran.stderr
    for word in ("profiler", "scheduler", "deployer", "triton", "redis", "smollm2-135m", "ready", "policy uellm"):
        assert word in ran.stdout
    assert "starting again" not in ran.stdout


def test_a_running_query_can_be_cancelled(stack: LocalUp, client: Client) -> None:
    query = client.submit(LONG, max_output_tokens=400)
    transcript = Transcript()
    for event in client.stream(query):
        transcript.add(event)
        if isinstance(event, TokenDelta) and event.first_token_index == 0:
            assert client.get(query).state == QUERY_STATE_RUNNING
            assert stack.run("cancel", query.name).stdout.strip() == "it was running"
    assert isinstance(event, Outcome)
    assert event.state == QUERY_STATE_CANCELLED
    assert event.output_tokens < 400
    assert event.text == transcript.text


def test_ctrl_c_while_generating_cancels_the_query(stack: LocalUp, client: Client) -> None:
    command = stack.command("generate", LONG, "--max-tokens", "400")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said.decode()
    name = said.decode().split()[-1]
    assert client.outcome(name).state == QUERY_STATE_CANCELLED


def test_bad_input_is_answered_with_what_is_wrong(client: Client) -> None:
    with pytest.raises(InvalidArgumentError) as invalid:
        client.submit("", temperature=-1.0, max_output_tokens=0)
    fields = {violation.field for violation in invalid.value.violations}
    assert {"query.generation.temperature", "query.generation.max_output_tokens"} <= fields
    with pytest.raises(RefusedError) as too_long:
        client.submit("word " * 5000)
    assert too_long.value.reason == "PROMPT_TOO_LONG"
    assert too_long.value.refusal.prompt_too_long.tokens > too_long.value.refusal.prompt_too_long.limit > 0
    with pytest.raises(RefusedError) as unknown:
        client.submit("hi", model="no-such-model")
    assert unknown.value.reason == "MODEL_NOT_DEPLOYED"
    with pytest.raises(NotFoundError):
        client.get("tenants/local/models/smollm2-135m/queries/nothing")


def test_errors_on_the_command_line_are_lines(stack: LocalUp) -> None:
    ran = stack.run("generate", "word " * 5000)
    assert ran.returncode == 1
    assert ran.stdout == ""
    assert len(ran.stderr.splitlines()) == 1
    assert "tokens" in ran.stderr


def test_a_second_stack_in_the_same_folder_is_refused(stack: LocalUp) -> None:
    ran = stack.run("up", "--port-base", "0")
    assert ran.returncode == 1
    assert "runs already" in ran.stderr


def test_a_taken_port_is_refused_before_anything_starts(stack: LocalUp, tmp_path: Path) -> None:
    port = stack.info().parts["scheduler"].endpoint.rpartition(":")[2]
    ran = LocalUp(tmp_path).run("up", "--port-base", str(int(port) - 1))
    assert ran.returncode == 1
    assert f"port {port}, wanted for scheduler, is taken" in ran.stderr
    assert "--port-base" in ran.stderr
    assert not list(tmp_path.glob("**/*.log"))


@pytest.mark.parametrize("part", ["scheduler", "triton"])
def test_a_part_that_is_killed_is_started_again_and_the_answer_goes_on(
    stack: LocalUp, client: Client, part: str
) -> None:
    expected = client.generate(LONG, max_output_tokens=48).text
    before = stack.info().parts[part]
    query = client.submit(LONG, max_output_tokens=48)
    transcript = Transcript()
    for event in client.stream(query):
        transcript.add(event)
        if isinstance(event, TokenDelta) and event.first_token_index == 0:
            os.kill(before.pid, signal.SIGKILL)
    assert isinstance(event, Outcome)
    assert event.state == QUERY_STATE_COMPLETED
    assert event.finish_reason == FINISH_REASON_LENGTH
    assert event.dispatch_count >= 2
    assert event.text == transcript.text == expected
    wait_for(lambda: stack.info().parts[part].restarts == before.restarts + 1)
    assert f"{part} has crashed" in stack.log.read_text()


def accepted(client: Client) -> bool:
    """Whether the profiler has heard that the model is served."""
    try:
        client.profile(LONG)
    except RefusedError:
        return False
    return True


def test_triton_is_restarted_when_somebody_asks_and_what_is_in_flight_ends_first(
    stack: LocalUp, client: Client
) -> None:
    before = stack.info().parts["triton"]
    query = client.submit(LONG, max_output_tokens=48)
    events = client.stream(query)
    while not isinstance(next(events), TokenDelta):
        pass
    with grpc.insecure_channel(stack.info().parts["deployer"].endpoint) as channel:
        asking = DeployerServiceStub(channel).Reconcile.future(  # type: ignore[no-untyped-call]
            deployer_pb2.ReconcileRequest(restart_triton=True), timeout=200
        )
        outcome = list(events)[-1]
        assert next(drift.subject for drift in asking.result().drifts) == "triton"
    assert isinstance(outcome, Outcome)
    assert (outcome.state, outcome.dispatch_count) == (QUERY_STATE_COMPLETED, 1)
    wait_for(lambda: stack.info().parts["triton"].pid not in (0, before.pid))
    assert "triton has crashed" not in stack.log.read_text().rpartition("the deployer asks for it")[2]
    wait_for(lambda: accepted(client))
    assert client.generate(LONG, max_output_tokens=8).text


def test_the_quickstart_is_the_readme_and_runs(stack: LocalUp) -> None:
    quickstart = (ROOT / "examples" / "quickstart.py").read_text()
    code = quickstart[quickstart.index("from uellm") :]
    assert code in (ROOT / "README.md").read_text()
    endpoints = stack.endpoints()
    environment = {
        "UELLM_PROFILER": endpoints.profiler,
        "UELLM_SCHEDULER": endpoints.scheduler,
        "UELLM_DEPLOYER": endpoints.deployer,
    }
    ran = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
    )
    assert "deadline kept" in ran.stdout


def test_the_policy_is_changed_while_the_stack_runs(stack: LocalUp, client: Client) -> None:
    before = client.queue().policy
    changed = stack.run("policy", "edf")
    assert changed.returncode == 0, changed.stderr
    assert f"is served by edf now, before by {before}" in changed.stdout
    listed = stack.run("policy")
    assert "is served by edf" in listed.stdout
    assert {"fifo", "edf", "slo-odbs", "uellm"} <= set(listed.stdout.split())
    wrong = stack.run("policy", "best")
    assert wrong.returncode == 1
    assert "must be one of" in wrong.stderr
    assert client.set_policy(before) == "edf"


def test_the_demo_ends_with_one_outcome_each(stack: LocalUp, tmp_path: Path) -> None:
    file = tmp_path / "demo.json"
    ran = stack.run("demo", "--requests", "6", "--rate", "20", "--seed", "59", "--json", str(file))
    assert ran.returncode == 0, ran.stderr
    report = json.loads(file.read_text())
    assert report["summary"]["submitted"] == report["summary"]["completed"] == 6
    assert report["summary"]["exactly_one_outcome"]
    assert all(row["defects"] == [] and row["output_tokens"] > 0 for row in report["requests"])
    assert {row["predictor"].partition("/")[0] for row in report["requests"]} == {"lora"}
    assert "tokens/s" in ran.stdout
    assert "within their predicted p90 (lora/" in ran.stdout


def test_no_process_is_left_behind(tmp_path: Path) -> None:
    up = LocalUp(tmp_path / "state", "--weights", str(make_tiny_model(tmp_path / "tiny")), "--model", "tiny")
    up.state.mkdir()
    try:
        up.start()
        killed = up.tree()
        assert len(killed) >= 7  # itself, five parts, Triton's stub
        with Client(up.endpoints(), model="tiny") as client:
            next(event for event in client.stream(client.submit(LONG)) if isinstance(event, TokenDelta))
            up.signal(signal.SIGKILL)  # in the middle of an answer
        up.wait()
        wait_for(lambda: all(gone(process) for process in killed))
        assert up.run("status").returncode == 1

        up.start()  # what was killed is no obstacle
        ended = up.tree()
        up.signal(signal.SIGINT)
        assert up.wait() == 0
        assert all(gone(process) for process in ended)
        assert up.log.read_text().rstrip().endswith("stopped")
    finally:
        up.end()
