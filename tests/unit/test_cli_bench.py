"""`uellm bench`: what it refuses before anything is started."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import typer

from uellm.bench.workload import ServiceClass
from uellm.cli.bench import read_class
from uellm.cli.main import main

ONE_A_SECOND = "".join(f'{{"timestamp": {1000 * at}, "input_length": 5, "output_length": 5}}\n' for at in range(9))


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--policy", "nope"], 2, "'nope' is neither a policy (edf, fifo,"),
        (["--policy", "dynamic-batcher", "--engine", "vllm"], 2, "take engine-directly"),
        (["--load", "0"], 2, "Invalid value for '--load'"),
        (["--load", "-1"], 2, "Invalid value for '--load'"),
        (["--load", "1", "--rate", "2"], 2, "takes the place of --load"),
        (["--queries", "1"], 2, "Invalid value for '--queries'"),
        (["--class", "chat=2"], 2, "a share above 0 and up to 1"),
        (["--arrivals", "now"], 2, "say poisson, gamma:CV"),
        (["--endpoint", "here"], 2, "name profiler, scheduler and deployer"),
        (["--out", "{folder}/no/such.json"], 2, "there is no folder"),
        (["--weights", "{folder}"], 2, "needs --model"),
        (
            ["{folder}/trace.jsonl"],
            2,
            "has 9 requests, and a run takes 65 with its warm-up: lower --queries",
        ),
        (["{folder}/broken.csv"], 2, "the column TIMESTAMP is missing"),
        (["--prompts", "{folder}/broken.csv"], 1, "broken.csv, line 1: no prompt"),
        (["--attach", "--state", "{folder}"], 1, "start it with `uellm up`"),
        (["--endpoint", "127.0.0.1:1,127.0.0.1:1,127.0.0.1:1", "--rate", "1"], 1, "a service does not answer"),
    ],
)
def test_what_cannot_be_measured(
    arguments: list[str],
    status: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "trace.jsonl").write_text(ONE_A_SECOND)
    (tmp_path / "broken.csv").write_text("a,b\n1,2\n")
    monkeypatch.setenv("COLUMNS", "400")
    for name in ("UELLM_PROFILER", "UELLM_SCHEDULER", "UELLM_DEPLOYER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "argv", ["uellm", "bench", *(one.format(folder=tmp_path) for one in arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    captured = capsys.readouterr()
    assert ended.value.code == status
    assert said in captured.err
    assert not captured.out


def test_classes_on_the_command_line() -> None:
    assert read_class("chat=0.5:20s:500ms") == ServiceClass("chat", 0.5, 20.0, 0.5)
    assert read_class("talk=0.2:-:2s") == ServiceClass("talk", 0.2, 0.0, 2.0)
    assert read_class("rest=1") == ServiceClass("rest", 1.0)
    for wrong in ("chat", "=1", "chat=0", "chat=1:1s:1s:1s", "chat=1:soon"):
        with pytest.raises(typer.BadParameter, match="NAME=SHARE"):
            read_class(wrong)
