"""`uellm deploy`, `deployments`, `undeploy`, `rollback`, `operation`, `reconcile` against the deployer's use cases."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Sequence

import pytest
from uellm_deployer.app.ports import EngineReport

from tests.support.command_line import Run, ask
from tests.support.deployer import CPU, SHAPE, gpu, machine
from tests.support.deployer_server import DeployerServer
from uellm.cli.deploy import read_generation
from uellm.cli.values import show_age
from uellm.client import Client
from uellm.client.deploying import Limits
from uellm.local.process import free_port
from uellm.rpc.errors import FailedPreconditionError

FOLDER = "/models/smol"
Deployer = DeployerServer

pytestmark = pytest.mark.usefixtures("asked_deployer")


def one_line(text: str) -> str:
    return " ".join(text.split())


def ready(run: Run) -> dict[str, float]:
    """Traffic share by name, as `uellm deployments --json` has it."""
    found = [one for one in json.loads(run("deployments", "--json")[1])["deployments"] if "record" in one]
    return {one["name"].removeprefix("deployments/"): one["record"].get("traffic_share", 0.0) for one in found}


def test_deploy_list_and_undeploy(uellm: Run) -> None:
    assert uellm("deployments")[:2] == (0, "nothing is deployed: `uellm deploy FOLDER` deploys a model\n")
    status, out, err = uellm("deploy", FOLDER, "--context", 2048)
    assert status == 0
    assert out.startswith("smol-")
    assert "serves smol: layers 0-29 on cpu0, " in out
    assert "a step of one row takes 90 ms (" in out, "the fake engine measured it"
    assert err.splitlines()[-1] == "ask it: uellm generate --model smol 'Why is the sky blue?'"
    name = out.split()[0]

    header, row = uellm("deployments")[1].splitlines()
    columns = ["deployment", "model", "state", "share", "placement", "memory", "step", "measured", "age"]
    assert header.split() == columns
    for word in (name, "smol", "ready", "100 %", "layers 0-29 on cpu0", "90 ms"):
        assert word in row

    status, out, err = uellm("undeploy", name)
    assert (status, out) == (0, f"{name} is removed\n")
    assert "nothing serves smol any more" in err
    assert ready(uellm) == {}


def test_services_that_do_not_learn_of_it_are_told(
    uellm: Run, asked_deployer: Deployer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Client.wait_until_served, "__defaults__", ("", 0.2))
    asked_deployer.others.unheard_of = 1_000
    status, _, err = uellm("deploy", FOLDER)
    assert status == 0
    assert "it is deployed, but queries for it are not taken yet" in err


def test_json_is_the_deployment_and_nothing_else(uellm: Run) -> None:
    made = json.loads(uellm("deploy", FOLDER, "--id", "one", "--json")[1])
    assert (made["name"], made["state"]) == ("deployments/one", "DEPLOYMENT_STATE_READY")
    back = uellm("deploy", FOLDER, "--id", "two", "--concurrency", 4, "--json")
    assert back[0] == 0
    assert json.loads(uellm("rollback", "smol", "--json")[1])["name"] == "deployments/one"


def test_what_was_asked_for_reaches_the_plan(uellm: Run) -> None:
    status, out, _ = uellm(
        "deploy", FOLDER, "--model", "m", "--objective", "he", "--concurrency", 3, "--context", 512,
        "--max-tokens", 99, "--dtype", "float32", "--device", "cpu0", "--shard", 2, "--first-token-slo", "60s",
        "--output-token-slo", "20s", "--default", "temperature=0.5", "--default", 'stop=["x"]', "--json",
    )  # fmt: skip
    assert status == 0
    spec = json.loads(out)["plan"]["spec"]
    assert spec == {
        "model": "m", "weights_path": FOLDER, "backend": "hf", "objective": "PLACEMENT_OBJECTIVE_HE",
        "max_batch_rows": 3, "context_tokens": 512, "max_output_tokens": 99, "dtype": "float32",
        "device_ids": ["cpu0"], "queue_shard": 2, "first_token_slo": "60s", "output_token_slo": "20s",
        "default_generation": {"temperature": 0.5, "stop": ["x"]},
    }  # fmt: skip


def test_a_canary_gets_the_share_that_is_proposed(uellm: Run) -> None:
    uellm("deploy", FOLDER, "--id", "main", "--default", "temperature=0.5")
    uellm("deploy", FOLDER, "--id", "shard", "--shard", 1, "--strategy", "beside")
    _, out, err = uellm("deploy", FOLDER, "--id", "canary", "--concurrency", 4, "--strategy", "beside")
    assert out.startswith("canary serves smol")
    assert ready(uellm) == {"main": 1.0, "shard": 1.0, "canary": 0.0}
    said, _, command = err.splitlines()[-1].partition(": uellm ")
    assert said == "it gets no traffic yet; for a tenth"
    assert command == "traffic --model smol main=0.9 shard=1 canary=0.1"
    assert uellm(*command.split())[0] == 0
    assert ready(uellm) == {"main": 0.9, "shard": 1.0, "canary": 0.1}

    uellm("traffic", "--model", "smol", "main=1", "shard=1", "canary=0")
    uellm("undeploy", "main")
    assert ready(uellm) == {"shard": 1.0, "canary": 1.0}, "who is left takes what the other had"


def test_copies_lie_on_devices_of_their_own_and_share_the_traffic(uellm: Run, asked_deployer: Deployer) -> None:
    asked_deployer.world.machine.topology = machine(gpu("GPU-a"), gpu("GPU-b"), CPU)
    asked_deployer.world.triton.report = EngineReport(
        SHAPE.facts(2).weight_bytes, SHAPE.facts(2).kv_bytes_per_token, 0.01
    )
    uellm("deploy", FOLDER, "--id", "old")
    status, out, _ = uellm("deploy", FOLDER, "--id", "new", "--copies", 2, "--concurrency", 4)
    assert status == 0
    lines = [line.partition(",")[0] for line in out.splitlines()]
    assert lines[:2] == ["new-1: layers 0-29 on GPU-a", "new-2: layers 0-29 on GPU-b"]
    assert out.splitlines()[2] == "each has 1/2 of the traffic of smol"
    assert ready(uellm) == {"new-1": 0.5, "new-2": 0.5}

    status, _, err = uellm("deploy", FOLDER, "--id", "more", "--copies", 2, "--strategy", "beside", "--concurrency", 5)
    assert status == 0
    assert "they get no traffic yet" in err
    assert ready(uellm) == {"new-1": 0.5, "new-2": 0.5, "more-1": 0.0, "more-2": 0.0}


def test_more_copies_than_there_is_room_for(uellm: Run) -> None:
    status, _, err = uellm("deploy", FOLDER, "--copies", 2)
    assert status == 1
    assert "two copies never have the same plan" in one_line(err)
    assert ready(uellm) == {}
    for option in ("--no-wait", "--validate-only", "--strategy=recreate"):
        status, _, err = uellm("deploy", FOLDER, "--copies", 2, option)
        assert status == 2
        assert "goes with neither" in one_line(err)


def test_copies_that_were_made_before_one_failed_stay(uellm: Run, asked_deployer: Deployer) -> None:
    world = asked_deployer.world
    world.machine.topology = machine(gpu("GPU-a"), gpu("GPU-b"), CPU)
    world.triton.report = EngineReport(SHAPE.facts(2).weight_bytes, SHAPE.facts(2).kv_bytes_per_token, 0.01)
    world.triton.most_loaded = 1
    status, out, err = uellm("deploy", FOLDER, "--id", "new", "--copies", 2)
    assert status == 1
    assert out.startswith("new-1: ")
    assert "1 of 2 copies serve" in one_line(err)
    assert ready(uellm) == {"new-1": 1.0}


def test_a_successor_and_the_way_back(uellm: Run) -> None:
    uellm("deploy", FOLDER, "--id", "one")
    _, out, err = uellm("deploy", FOLDER, "--id", "two", "--concurrency", 4)
    assert "it took over from one; back again: uellm rollback smol" in err
    assert list(ready(uellm)) == ["two"]
    status, out, err = uellm("rollback", "smol")
    assert status == 0
    assert out.startswith("one serves smol")
    assert "it took over from two" in err
    assert list(ready(uellm)) == ["one"]


def test_only_checked(uellm: Run, asked_deployer: Deployer) -> None:
    status, out, err = uellm("deploy", FOLDER, "--id", "one", "--validate-only")
    assert (status, out.partition(":")[0]) == (0, "one would serve smol")
    assert "(predicted)" in out
    assert "nothing has changed" in err
    assert asked_deployer.operations() == []


def test_a_load_that_fails(uellm: Run, asked_deployer: Deployer) -> None:
    error = FailedPreconditionError("x", "Triton could not load it: no tokenizer", reason="LOAD_FAILED")
    asked_deployer.world.faults.arm("load", error)
    status, out, err = uellm("deploy", FOLDER, "--id", "one")
    assert (status, out) == (1, "")
    assert err.splitlines()[-2:] == [
        "error: Triton could not load it: no tokenizer",
        "what was done is undone; `uellm undeploy one` takes it off the list",
    ]
    listed = uellm("deployments")[1]
    assert "failed" in listed
    assert listed.splitlines()[-1] == "one: LOAD: Triton could not load it: no tokenizer"
    (name,) = (operation.name for operation in asked_deployer.operations())
    status, _, err = uellm("operation", name)
    assert (status, err.splitlines()[0]) == (1, "error: Triton could not load it: no tokenizer")
    assert uellm("undeploy", "one")[1:] == ("one is removed\n", ""), "it served nobody"


def test_begun_looked_at_and_followed(uellm: Run, asked_deployer: Deployer) -> None:
    asked_deployer.may_load.clear()
    begun = json.loads(uellm("deploy", FOLDER, "--id", "one", "--no-wait", "--json")[1])
    name = begun["operation"]
    assert (begun["done"], begun["deployment"]) == (False, "deployments/one")
    asked_deployer.wait_for_a_load()
    status, out, err = uellm("operation", name)
    assert status == 0
    assert out.startswith(f"{name} on deployments/one: 20 % load: loading smol--")
    assert err == f"follow it: uellm operation {name} --wait\n"
    status, _, err = uellm("operation", name, "--wait", "--timeout", "50ms")
    assert status == 1
    assert err.startswith("20 % load: loading smol--")
    assert f"error: {name} has not ended within 0.05 s; it goes on" in err
    status, _, err = uellm("undeploy", "one")
    assert status == 1
    assert "another operation on deployments/one runs; wait for its end" in err

    asked_deployer.may_load.set()
    status, out, _ = uellm("operation", name.removeprefix("operations/"), "--wait")
    assert (status, out) == (0, f"{name} has ended: deployments/one serves smol\n")
    assert json.loads(uellm("operation", name, "--json")[1])["deployment"]["name"] == "deployments/one"


def test_ctrl_c_while_waiting_leaves_it_going(uellm: Run, asked_deployer: Deployer) -> None:
    asked_deployer.may_load.clear()

    def interrupt() -> None:
        asked_deployer.wait_for_a_load()
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    status, out, err = uellm("deploy", FOLDER, "--id", "one")
    thread.join()
    name = asked_deployer.operations()[0].name
    assert (status, out) == (130, "")
    assert err.splitlines()[-2:] == [f"{name} goes on", f"follow it: uellm operation {name} --wait"]
    asked_deployer.may_load.set()
    assert uellm("operation", name, "--wait")[0] == 0
    assert list(ready(uellm)) == ["one"]


@pytest.mark.parametrize("as_json", [False, True])
def test_drift_is_status_1(uellm: Run, asked_deployer: Deployer, as_json: bool) -> None:
    options = ["--json"] * as_json
    status, out, _ = uellm("reconcile", *options)
    assert (status, out) == (
        0,
        '{\n  "drifts": []\n}\n' if as_json else "journal, repository, Triton and Redis agree\n",
    )
    stray = asked_deployer.world.root / "models" / "ghost--0123456789"
    stray.mkdir()
    for dry_run in (True, False):
        status, out, err = uellm("reconcile", *options, *["--dry-run"] * dry_run)
        assert status == 1
        assert stray.name in out
        assert "a repository entry of no deployment" in out
        assert ("`uellm reconcile` repairs it" in err) == (dry_run and not as_json)
        assert stray.exists() == dry_run
    assert uellm("reconcile")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["undeploy", "none"], "'deployments/none' does not exist"),
        (["undeploy", "a/b"], "name: "),
        (["operation", "none"], "'operations/none' does not exist"),
        (["rollback"], "model 'smollm2-135m' does not exist"),
        (["deploy", FOLDER, "--id", "X"], "--id: must be 1 to 63"),
        (["deploy", FOLDER, "--model", "a--b"], "--model: must"),
        (["deploy", FOLDER, "--dtype", "int3"], "--dtype: must be one of float32"),
        (["deploy", FOLDER, "--context", 9000], "--context: must be at most the model's limit, 8192"),
        (["deploy", FOLDER, "--device", "GPU9"], "--device: no device GPU9 here"),
        (["deploy", FOLDER, "--objective", "fastest"], "--objective: must be one of HELR, LR, HE; got 'fastest'"),
        (["deploy", FOLDER, "--default", "temperature=-1"], "--default temperature: must"),
        (["deploy", FOLDER, "--concurrency", 1024], "does not fit: on one cpu in float32"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(uellm: Run, arguments: Sequence[object], said: str) -> None:
    status, out, err = uellm(*arguments)
    assert (status, out, len(err.splitlines())) == (1, "", 1)
    assert said in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["deploy"], "WEIGHTS"),
        (["deploy", FOLDER, "--strategy", "canary"], "'blue-green', 'recreate', 'beside'"),
        (["deploy", FOLDER, "--default", "temp=1"], "must be NAME=VALUE with one of"),
        (["deploy", FOLDER, "--default", "temperature=hot"], "'hot' is no value of temperature"),
        (["deploy", FOLDER, "--timeout", "soon"], "must be a duration above zero"),
        (["undeploy", "one", "--drain-timeout", "-1s"], "must be a duration above zero"),
    ],
)
def test_wrong_usage(uellm: Run, arguments: Sequence[object], said: str) -> None:
    status, out, err = uellm(*arguments)
    assert (status, out) == (2, "")
    assert said in one_line(err.replace("│", ""))


def test_the_very_same_again(uellm: Run) -> None:
    uellm("deploy", FOLDER, "--id", "one")
    again = uellm("deploy", FOLDER, "--id", "two")[2]
    assert again.startswith("error: this very plan is deployed as deployments/one; other rows, context or devices")
    assert "choose another id or delete it first" in uellm("deploy", FOLDER, "--id", "one", "--concurrency", 4)[2]


@pytest.mark.parametrize("arguments", [["deploy", FOLDER], ["reconcile"]])
def test_no_deployer(uellm: Run, monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    ask(monkeypatch, f"127.0.0.1:{free_port()}")
    status, out, err = uellm(*arguments)
    assert (status, out, len(err.splitlines())) == (1, "", 1)
    assert err.startswith("error: a service does not answer: ")


def test_a_deployer_that_goes_away_meanwhile(
    uellm: Run, asked_deployer: Deployer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("uellm.client.sync_deployments.Limits", lambda call, _: Limits(call, 0.3))
    asked_deployer.may_load.clear()
    asked_deployer.losses["GetOperation"] = 1_000
    status, _, err = uellm("deploy", FOLDER, "--id", "one")
    name = asked_deployer.operations()[0].name
    assert status == 1
    assert err.splitlines()[-2:] == [
        "error: a service does not answer: the answer is lost. See `uellm status`",
        f"follow it: uellm operation {name} --wait",
    ]


def test_parameters_are_read() -> None:
    assert read_generation([]) is None
    read = read_generation(["temperature=0.5", "seed=7", 'stop=["a", "b"]'])
    assert read is not None
    assert (read.temperature, read.seed, list(read.stop)) == (0.5, 7, ["a", "b"])


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(-1, "0 s"), (119, "119 s"), (120, "2 min"), (7199, "120 min"), (7200, "2 h"), (172_800, "2 days")],
)
def test_ages(seconds: float, shown: str) -> None:
    assert show_age(seconds) == shown
