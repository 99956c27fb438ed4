"""Predictors of a profiler on a real Redis. A predictor is a hash of the prompt: whose answer is whose can be told."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import Result
from google.rpc import error_details_pb2, status_pb2
from prometheus_client import REGISTRY
from typer.testing import CliRunner

from tests.support.length_model import HashModel, expected, read_hash_adapter, write_hash_adapter
from tests.support.profiler import MODEL, PARENT, Running, failure, running, until
from uellm.cli.main import app
from uellm.local.redis import EmbeddedRedis
from uellm.messaging.connection import RedisClient
from uellm.messaging.keys import PREDICTOR, ModelKeys
from uellm.rpc.errors import FailedPreconditionError, InvalidArgumentError, RefusedError
from uellm.v1 import profiler_pb2 as pb
from uellm.v1.query_pb2 import GenerationParameters, Query
from uellm.v1.stream_pb2 import DeploymentRecord

KEYS = ModelKeys(MODEL)
LIMIT = GenerationParameters(max_output_tokens=50)


def profile_request(prompt: str, *, allow_prior: bool = False) -> pb.ProfileRequest:
    return pb.ProfileRequest(parent=PARENT, query=Query(prompt=prompt, generation=LIMIT), allow_prior=allow_prior)


async def until_waiting(prompts: int) -> None:
    """Wait until so many prompts wait for the predictor. A call to find out would be one more."""

    async def so() -> bool:
        labels = {"urgency": "interactive"}
        return REGISTRY.get_sample_value("uellm_profiler_predictor_waiting", labels) == prompts

    await until(so)


def of(prompt: str, version: str) -> float:
    """What tells the prediction of a prompt."""
    return expected(prompt, 50, version).limit_probability


async def test_concurrent_calls_share_batches_and_get_their_own_answers(profiler: Running, model: HashModel) -> None:
    model.hold()
    calls = [asyncio.ensure_future(profiler.stub.Profile(profile_request("p0")))]
    await asyncio.to_thread(model.entered)
    calls += [asyncio.ensure_future(profiler.stub.Profile(profile_request(f"p{i}"))) for i in range(1, 5)]
    queries = [Query(prompt=f"b{i}", generation=LIMIT) for i in range(100)]
    bulk = asyncio.ensure_future(profiler.stub.BatchProfile(pb.BatchProfileRequest(parent=PARENT, queries=queries)))
    release = asyncio.get_running_loop().call_later(0.3, model.release)
    for i, call in enumerate(calls):
        profile = (await call).profile
        assert profile.output_length.limit_probability == pytest.approx(of(f"p{i}", "0"))
        assert profile.predictor_version == "fast/0"
    profiles = (await bulk).profiles
    release.cancel()
    found = [profile.output_length.limit_probability for profile in profiles]
    assert found == pytest.approx([of(f"b{i}", "0") for i in range(100)])
    assert all(len(batch) <= 32 for batch in model.batches)
    assert len(model.batches) < 12


async def test_bulk_calls_do_not_hold_up_a_submit(profiler: Running, model: HashModel) -> None:
    """Of 1,024 queries in bulk, at most the batch that is being computed goes before a Submit."""
    model.hold()
    queries = [Query(prompt=f"b{i}", generation=LIMIT) for i in range(1_024)]
    bulk = asyncio.ensure_future(profiler.stub.BatchProfile(pb.BatchProfileRequest(parent=PARENT, queries=queries)))
    await asyncio.to_thread(model.entered)
    submit = asyncio.create_task(profiler.submit(Query(prompt="now", generation=LIMIT)))
    others = [asyncio.ensure_future(profiler.stub.Profile(profile_request(f"o{i}"))) for i in range(3)]
    await until_waiting(4)
    model.release()
    assert (await submit).profile.predictor_version == "fast/0"
    assert "now" in [one.content for one in model.batches[1]]
    await asyncio.gather(*others)
    assert len((await bulk).profiles) == 1_024


async def test_overload_is_a_refusal_or_the_prior(profiler: Running, model: HashModel, redis: RedisClient) -> None:
    model.hold()
    running_call = asyncio.ensure_future(profiler.stub.Profile(profile_request("first")))
    await asyncio.to_thread(model.entered)
    waiting = [asyncio.ensure_future(profiler.stub.Profile(profile_request(f"w{i}"))) for i in range(4)]
    await until_waiting(4)
    probe = await profiler.stub.Profile(profile_request("x", allow_prior=True))
    assert probe.profile.predictor_version == "prior/1"
    error = await failure(profiler.submit(Query(prompt="x"), "q"))
    assert isinstance(error, RefusedError)
    assert (error.code, error.reason) == ("RESOURCE_EXHAUSTED", "PREDICTOR_OVERLOADED")
    assert error.refusal.predictor_overloaded.waiting == error.refusal.predictor_overloaded.limit == 4
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await profiler.stub.Profile(profile_request("x"))
    details = dict(caught.value.trailing_metadata() or ())["grpc-status-details-bin"]
    retry = [
        one for one in status_pb2.Status.FromString(details).details if one.Is(error_details_pb2.RetryInfo.DESCRIPTOR)
    ]  # type: ignore[arg-type]
    assert len(retry) == 1
    request = pb.SubmitRequest(parent=PARENT, query=Query(prompt="x"), allow_prior=True)
    accepted = await profiler.stub.Submit(request)
    assert accepted.profile.predictor_version == "prior/1"
    assert await redis.xlen(KEYS.queue) == 1
    model.release()
    await asyncio.gather(running_call, *waiting)
    assert (await profiler.submit(Query(prompt="x"))).profile.predictor_version == "fast/0"


async def test_prompts_of_a_cancelled_call_are_not_computed(profiler: Running, model: HashModel) -> None:
    model.hold()
    first = asyncio.ensure_future(profiler.stub.Profile(profile_request("first")))
    await asyncio.to_thread(model.entered)
    gone = [profiler.stub.Profile(profile_request("gone")) for _ in range(4)]
    await until_waiting(4)
    for call in gone:
        call.cancel()
    await until_waiting(0)
    model.release()
    await first
    assert not any(one.content == "gone" for batch in model.batches for one in batch)


# Installing.


@pytest.fixture
def configured(tmp_path: Path) -> dict[str, Any]:
    return {"predictor": "fast", "predictor_adapter": write_hash_adapter(tmp_path / "configured", "0")}


def install(profiler: Running, folder: Path, *, validate_only: bool = False) -> Any:
    return profiler.stub.InstallPredictor(pb.InstallPredictorRequest(path=str(folder), validate_only=validate_only))


async def version_of(profiler: Running) -> str:
    """The version that predicts, and it does what it should."""
    predicted = (await profiler.stub.Profile(profile_request("p"))).profile
    kind, _, version = predicted.predictor_version.partition("/")
    assert kind == "fast"
    assert predicted.output_length.limit_probability == pytest.approx(of("p", version))
    return str(version)


async def test_install_survives_restarts_and_reaches_all_replicas(
    redis_server: EmbeddedRedis,
    redis: RedisClient,
    published: DeploymentRecord,
    configured: dict[str, Any],
    tmp_path: Path,
) -> None:
    one = write_hash_adapter(tmp_path / "one", "1")
    async with (
        running(redis_server.url, read_hash_adapter, **configured) as first,
        running(redis_server.url, read_hash_adapter, **configured) as second,
    ):
        assert (await install(first, one, validate_only=True)).version == "1"
        assert await version_of(first) == "0"
        assert await redis.get(PREDICTOR) is None
        installed = await install(first, one)
        assert (installed.kind, installed.version) == ("fast", "1")
        assert await version_of(first) == "1"

        async def followed() -> bool:
            return await version_of(second) == "1"

        await until(followed)
        described = await second.stub.DescribePredictor(pb.DescribePredictorRequest())
        assert (described.version, described.path, described.problem) == ("1", str(one), "")
    async with running(redis_server.url, read_hash_adapter, **configured) as restarted:
        assert await version_of(restarted) == "1"
        assert (await restarted.stub.RollbackPredictor(pb.RollbackPredictorRequest())).version == "0"
        assert await version_of(restarted) == "0"
        error = await failure(restarted.stub.RollbackPredictor(pb.RollbackPredictorRequest()))
        assert (error.code, error.reason) == ("FAILED_PRECONDITION", "NOTHING_INSTALLED")
        assert "nothing is installed" in error.message
    async with running(redis_server.url, read_hash_adapter, **configured) as restarted:
        assert await version_of(restarted) == "0"
    (one / "version").unlink()


async def test_a_folder_that_can_not_be_used_is_named(
    redis_server: EmbeddedRedis, published: DeploymentRecord, configured: dict[str, Any], tmp_path: Path
) -> None:
    async with running(redis_server.url, read_hash_adapter, **configured) as profiler:
        for path, text in (
            (tmp_path, "holds no adapter"),
            (tmp_path / "missing", "is no folder"),
            (Path("relative"), "absolute"),
        ):
            error = await failure(install(profiler, path))
            assert isinstance(error, InvalidArgumentError)
            assert [violation.field for violation in error.violations] == ["path"]
            assert text in error.violations[0].description
        assert await version_of(profiler) == "0"


async def test_a_restart_without_the_installed_folder_says_so(
    redis_server: EmbeddedRedis, published: DeploymentRecord, configured: dict[str, Any], tmp_path: Path
) -> None:
    one = write_hash_adapter(tmp_path / "one", "1")
    async with running(redis_server.url, read_hash_adapter, **configured) as profiler:
        await install(profiler, one)
    (one / "version").unlink()
    async with running(redis_server.url, read_hash_adapter, **configured) as profiler:
        assert await version_of(profiler) == "0"
        described = await profiler.stub.DescribePredictor(pb.DescribePredictorRequest())
        assert "holds no adapter" in described.problem
        assert (await profiler.stub.RollbackPredictor(pb.RollbackPredictorRequest())).version == "0"
        assert not (await profiler.stub.DescribePredictor(pb.DescribePredictorRequest())).problem


async def test_the_command_line_shows_installs_and_rolls_back(
    redis_server: EmbeddedRedis,
    published: DeploymentRecord,
    configured: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = write_hash_adapter(tmp_path / "one", "1")
    async with running(redis_server.url, read_hash_adapter, **configured) as profiler:
        for service in ("PROFILER", "SCHEDULER", "DEPLOYER"):
            monkeypatch.setenv(f"UELLM_{service}", f"127.0.0.1:{profiler.port}")

        async def uellm(*arguments: str) -> Result:
            return await asyncio.to_thread(CliRunner().invoke, app, ["predictor", *arguments])

        shown = await uellm("show")
        assert "fast/0" in shown.output
        assert "the one that the profiler was started with" in shown.output
        assert "fast/1 can be installed" in (await uellm("install", str(one), "--validate-only")).output
        assert "fast/1 is in force" in (await uellm("install", str(one))).output
        assert f"installed from {one}" in (await uellm("show")).output.replace("\n", "")
        output = (await uellm("show", "--json")).output  # and what the profiler logs, in the same process
        described, _ = json.JSONDecoder().raw_decode(output, output.index("{\n"))
        assert (described["kind"], described["version"], described["path"]) == ("fast", "1", str(one))
        assert "fast/0 is in force again" in (await uellm("rollback")).output
        nothing = await uellm("rollback")
        assert isinstance(nothing.exception, FailedPreconditionError)
        wrong = await uellm("install", str(tmp_path))
        assert isinstance(wrong.exception, InvalidArgumentError)


async def test_calls_in_flight_end_with_the_predictor_that_they_began_with(
    profiler: Running, model: HashModel, tmp_path: Path
) -> None:
    """The old predictor is held while the new one is installed; the fixture's reader reads `model` again and again."""
    model.hold()
    began = asyncio.ensure_future(profiler.stub.Profile(profile_request("began")))
    await asyncio.to_thread(model.entered)
    installing = asyncio.ensure_future(install(profiler, tmp_path))
    await asyncio.to_thread(model.entered)  # the trial of the new one, beside the batch
    model.release()
    await installing
    assert (await began).profile.output_length.limit_probability == pytest.approx(of("began", "0"))


def test_a_damaged_adapter_ends_the_start(tmp_path: Path, redis_server: EmbeddedRedis) -> None:
    argv = [sys.executable, "-m", "uellm_profiler", "--listen=127.0.0.1:0", f"--redis-url={redis_server.url}"]
    argv += ["--predictor=fast", f"--predictor-adapter={tmp_path}"]
    ended = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=150)
    assert ended.returncode == 1, ended.stderr
    assert f"the predictor can't be loaded: {tmp_path} holds no adapter" in ended.stderr
    assert "Traceback" not in ended.stderr
