"""`uellm simulate` and `uellm capacity`: what they print, and what they refuse."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from uellm.cli.main import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["uellm", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return run


def test_policies_and_what_ifs_side_by_side(run: Run, tmp_path: Path) -> None:
    timeline = tmp_path / "run.json"
    status, out, _ = run(
        *("simulate", "--count", 60, "--seeds", 2, "--jobs", 1, "--policy", "uellm", "--policy", "fifo"),
        *("--what-if", "gpus=2", "--trace-out", timeline),
    )
    assert status == 0
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["uellm", "fifo", "gpus=2"]
    assert " x, " in lines[2]
    assert "full engines serve" in lines[4]
    assert json.loads(timeline.read_text())["traceEvents"]


def test_json_has_every_run(run: Run) -> None:
    arguments = ("simulate", "--count", 40, "--seeds", 2, "--jobs", 2, "--what-if", "gpus=3", "--json")
    status, out, _ = run(*arguments)
    assert status == 0
    found = json.loads(out)
    base, more = found["alternatives"]
    assert [one["seed"] for one in base["runs"]] == [0, 1]
    assert more["gpus"] == 3
    assert [one["rate"] for one in base["runs"]] == [one["rate"] for one in more["runs"]], "not the same world"
    assert more["goodput_against_first"]["ratio"] >= 1
    assert run(*arguments)[1] == out, "equal seeds, unequal bytes"


def test_how_many_gpus(run: Run) -> None:
    status, out, _ = run("capacity", "--count", 60, "--rate", 2, "--attainment", 0.8, "--json")
    assert status == 0
    found = json.loads(out)
    kept = {one["gpus"]: one["in_time"] for one in found["tried"]}
    assert kept[found["gpus"]] >= 0.8
    assert all(share < 0.8 for gpus, share in kept.items() if gpus < found["gpus"])


def test_more_than_can_be_had(run: Run) -> None:
    status, _, err = run("capacity", "--count", 40, "--rate", 50, "--most", 1)
    assert status == 1
    assert "1 GPUs keep less than 95%" in err


def test_clients_of_a_file_and_drawn_ones(run: Run, tmp_path: Path) -> None:
    lengths = {"lengths": [20, 30]}
    windows = [{"start": 0, "seconds": 30, "rate": 2, "prompts": lengths, "answers": lengths}]
    (tmp_path / "c.json").write_text(json.dumps({"clients": [{"name": name, "windows": windows} for name in "ab"]}))
    status, out, _ = run("simulate", "--arrivals", tmp_path / "c.json", "--load", 0, "--count", 100, "--json")
    (found,) = json.loads(out)["alternatives"]
    assert status == 0
    assert found["runs"][0]["rate"] == pytest.approx(4, rel=0.3)
    status, out, _ = run("capacity", "--arrivals", "clients:3", "--count", 40, "--rate", 1, "--json")
    assert status == 0
    assert json.loads(out)["gpus"] >= 1


@pytest.mark.parametrize("engine", ["static", "continuous"])
def test_decisions_can_be_replayed(run: Run, tmp_path: Path, engine: str) -> None:
    file = tmp_path / "decisions"
    status, out, _ = run("simulate", "--count", 60, "--load", 1.5, "--engine", engine, "--decisions", file)
    assert status == 0
    assert f"uellm replay --file {file}" in "".join(out.splitlines())
    status, out, _ = run("replay", "--file", file, "--json")
    verified = json.loads(out)
    assert (status, verified["bit_for_bit"]) == (0, True)
    assert verified["asked_again"] == verified["decisions"] > 10
    status, out, _ = run("replay", "--file", file, "--policy", "edf", "--json")
    compared = json.loads(out)
    assert (status, compared["decisions"]) == (0, verified["decisions"])
    assert compared["dispatched"]["total"] + compared["refused"]["total"] == 60
    refused = [one["name"] for one in compared["missed_but_dispatched_earlier"]]
    assert len(refused) == compared["refused"]["earlier"]


def test_what_is_no_recording_is_told(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "decisions"
    assert run("simulate", "--count", 20, "--decisions", file)[0] == 0
    whole = file.read_bytes()
    for damaged in (whole[:-3], whole + b"\x05nonsense", b"\x02\x0a\x00"):
        file.write_bytes(damaged)
        status, _, err = run("replay", "--file", file)
        assert status == 1
        assert "entry" in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--policy", "nono"), "is no policy; choose"),
        (("--what-if", "gpus"), "is not KEY=VALUE"),
        (("--what-if", "gpus=0"), "gpus can't be '0'"),
        (("--what-if", "colour=red"), "can't be changed; there are"),
        (("--what-if", "policy=nono"), "is no policy"),
        (("--arrivals", "gamma:x"), "say poisson, gamma:CV"),
        (("--predictions", "magic"), "say measured, oracle"),
        (("--arrivals", "clients:0"), "say clients:COUNT"),
        (("--arrivals", "none.json"), "No such file"),
        (("--predictions", "normal:9"), "say measured, oracle"),
        (("--predictions", "none.json"), "No such file"),
    ],
)
def test_wrong_input_is_told(run: Run, arguments: tuple[str, ...], says: str) -> None:
    status, _, err = run("simulate", "--count", 10, *arguments)
    assert status == 2
    assert says in " ".join(err.replace("│", " ").split())


def test_a_short_trace_is_played_as_far_as_it_goes(run: Run, tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"timestamp": 0, "input_length": 3, "output_length": 5}\n')
    status, _, err = run("simulate", trace)
    assert status == 2
    assert "at least two requests" in err
    trace.write_text(trace.read_text() + '{"timestamp": 1000, "input_length": 9, "output_length": 3}\n')
    status, out, _ = run("simulate", trace, "--load", 0)
    assert status == 0
    assert "arrivals 1/s; 2 requests" in out
