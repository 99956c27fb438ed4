"""`uellm bench` on a stack that runs already."""

from __future__ import annotations

import json

from tests.support.local_stack import LocalUp


def test_a_policy_and_the_engine_itself_on_a_running_stack(stack: LocalUp) -> None:
    before = stack.run("policy").stdout
    ended = stack.run(
        *("bench", "--attach", "--policy", "edf", "--policy", "engine-directly", "--json"),
        *("--rate", "4", "--rounds", "1", "--queries", "4", "--warm-up", "0", "--max-tokens", "4"),
    )
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    ((load),) = found["loads"]
    assert list(load["servers"]) == ["edf", "engine-directly"]
    for server in load["servers"].values():
        assert server["tokens_per_second"] > 0
        assert {"client", "profiler", "scheduler", "redis", "triton"} <= server["processor_cores"].keys()
    assert load["servers"]["engine-directly"]["longest_wait_seconds"] is None
    assert stack.run("policy").stdout == before, "the policy was not set back"


def test_peers_that_need_a_triton_of_their_own(stack: LocalUp) -> None:
    ended = stack.run("bench", "--attach", "--policy", "fifo", "--policy", "morphling", "--rate", "1")
    assert ended.returncode == 1
    assert "morphling: only an embedded stack has a Triton of ours" in ended.stderr
    ended = stack.run("bench", "--attach", "--policy", "nope", "--rate", "1")
    assert ended.returncode == 1
    assert "'nope' is neither a policy (edf, fifo," in ended.stderr
