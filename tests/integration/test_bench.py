"""`uellm bench` as a process: an embedded stack with a tiny model, a policy and a peer in turns, and Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.support.local_stack import gone, wait_for
from tests.support.tiny_model import make_tiny_model
from uellm.bench.records import Record
from uellm.bench.workload import held_out_prompts

SERVERS = ("uellm", "morphling")
ROUNDS = 200
QUERIES = 6
READY_SECONDS = 120.0


@pytest.mark.timeout(300)
def test_turns_until_ctrl_c(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"  # a byte is a token of the tiny model, whose context is small
    short = [prompt for prompt in held_out_prompts() if len(prompt) < 100]
    prompts.write_text("".join(json.dumps({"id": str(at), "prompt": text}) + "\n" for at, text in enumerate(short)))
    out, said = tmp_path / "runs.json", tmp_path / "stderr"
    arguments = [
        *("--weights", str(make_tiny_model(tmp_path / "weights")), "--model", "tiny", "--predictor", "prior"),
        *("--rate", "40", "--rounds", str(ROUNDS), "--queries", str(QUERIES), "--warm-up", "1", "--max-tokens", "8"),
        *(word for server in SERVERS for word in ("--policy", server)),
        *("--prompts", str(prompts), "--out", str(out), "--markdown"),
    ]
    with said.open("w") as stderr:
        process = subprocess.Popen(
            # A shell's background jobs, and what they start, ignore Ctrl-C.
            ["env", "--default-signal=INT", sys.executable, "-m", "uellm.cli.main", "bench", *arguments],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            start_new_session=True,
            env={**os.environ, "TMPDIR": str(tmp_path)},
        )
    try:
        wait_for(lambda: process.poll() is not None or "round 2, " in said.read_text(), READY_SECONDS, said.read_text)
        parts = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.send_signal(signal.SIGINT)
        printed, _ = process.communicate(timeout=READY_SECONDS)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, said.read_text()
    wait_for(lambda: all(map(gone, parts)))
    assert parts, "there was no stack"
    assert not list(tmp_path.glob("uellm-bench-*")), "files of the stack are left"

    found = json.loads(out.read_text())
    assert found["interrupted"]
    assert f"the {len(found['runs'])} complete runs of {2 * ROUNDS} are kept" in said.read_text()
    assert {run["server"] for run in found["runs"]} == set(SERVERS)
    assert [run["server"] for run in found["runs"]][:3] == ["uellm", "morphling", "morphling"]
    tuning = found["morphling"]
    assert tuning["seconds"] > 0
    assert tuning["queries"] == sum(2 * one["rows"] for one in tuning["measured"])
    assert tuning["chosen"] in [{key: one[key] for key in tuning["chosen"]} for one in tuning["measured"]]
    assert f"and {tuning['queries']} queries, in no figure above" in printed
    for run in found["runs"]:
        _check(run)
    assert all(f"| {server} |" in printed for server in SERVERS)
    assert "uellm against the others" in printed


def _check(run: dict) -> None:
    """Every query has its line, its times in order, and, of ours, a prediction."""
    assert [query["counted"] for query in run["queries"]] == [False] + [True] * QUERIES
    assert run["metrics"]["requests"] == QUERIES
    assert run["processor_cores"].keys() == {
        *("client", "profiler", "scheduler", "deployer", "triton", "redis", "peers' triton")
    }
    for query in run["queries"]:
        assert query["state"] == "COMPLETED", query
        assert query["planned"] <= query["sent"] <= query["dispatched"] <= query["first_token"] <= query["finished"]
        assert query["prompt_tokens"] > 8
        assert 0 < query["output_tokens"] <= 8
        assert (query["predicted"] is not None) == (run["server"] == "uellm")
        assert Record.from_json(query).fate().in_time
