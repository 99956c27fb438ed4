"""Installing predictors and rolling them back, on several replicas."""

from __future__ import annotations

from pathlib import Path

import pytest
from uellm_profiler.adapters.loader import AdapterLoader, neural_reader, shipped_adapter
from uellm_profiler.adapters.micro_batch import MicroBatcher
from uellm_profiler.app.ports import PredictorError
from uellm_profiler.app.predictors import KEPT, ActivePredictor, Predictors
from uellm_profiler.domain.predictor import LengthPredictor

from tests.support.length_model import HashModel, expected, prompt, read_hash_adapter, write_hash_adapter
from uellm.rpc.errors import AbortedError, FailedPreconditionError, InvalidArgumentError
from uellm.v1.stream_pb2 import PredictorInstallation


class Installations:
    """What is installed, in memory; somebody else may write first."""

    def __init__(self) -> None:
        self.content = PredictorInstallation()
        self.rival = False

    async def read(self) -> PredictorInstallation:
        copy = PredictorInstallation()
        copy.CopyFrom(self.content)
        return copy

    async def replace(self, generation: int, installation: PredictorInstallation) -> bool:
        if self.rival:
            self.content.generation += 1
        if generation != self.content.generation:
            return False
        self.content.CopyFrom(installation)
        return True


class Replica:
    def __init__(self, installations: Installations, configured: Path) -> None:
        self.loader = AdapterLoader(MicroBatcher(), read_hash_adapter, "fast", configured, None)
        self.installations = installations
        self.observed: list[tuple[str, str]] = []

    async def start(self) -> Replica:
        self.active = ActivePredictor(await self.loader.load(""))
        self.predictors = Predictors(self.active, self.loader, self.installations, self._observe)
        await self.predictors.follow()
        return self

    @property
    def version(self) -> str:
        return self.active.version

    def _observe(self, predictor: LengthPredictor, problem: str) -> None:
        self.observed.append((predictor.version, problem))


@pytest.fixture
def installations() -> Installations:
    return Installations()


@pytest.fixture
async def replica(installations: Installations, tmp_path: Path) -> Replica:
    return await Replica(installations, write_hash_adapter(tmp_path / "configured", "0")).start()


def adapter(folder: Path, version: str) -> str:
    return str(write_hash_adapter(folder / f"adapter-{version}", version))


async def test_install_and_roll_back(replica: Replica, tmp_path: Path) -> None:
    assert (replica.version, replica.predictors.path) == ("0", "")
    one, two = adapter(tmp_path, "1"), adapter(tmp_path, "2")
    assert (await replica.predictors.install(one)).version == replica.version == "1"
    assert (await replica.predictors.install(two)).version == replica.version == "2"
    assert replica.predictors.path == two
    prediction = await replica.active.predict([prompt("p")])
    assert (prediction.version, prediction.lengths) == ("fast/2", [expected("p", 100, "2")])
    assert (await replica.predictors.rollback()).version == replica.version == "1"
    assert (await replica.predictors.rollback()).version == replica.version == "0"
    assert replica.predictors.path == ""
    with pytest.raises(FailedPreconditionError, match="nothing is installed: fast/0, with which"):
        await replica.predictors.rollback()
    assert [version for version, _ in replica.observed] == ["0", "1", "2", "1", "0"]


async def test_validate_only_changes_nothing(replica: Replica, tmp_path: Path) -> None:
    checked = await replica.predictors.install(adapter(tmp_path, "1"), validate_only=True)
    assert (checked.version, replica.version) == ("1", "0")
    assert replica.installations.content == PredictorInstallation()


async def test_what_can_not_be_used_changes_nothing(replica: Replica, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder, text in (("missing", "is no folder"), ("empty", "holds no adapter")):
        with pytest.raises(InvalidArgumentError, match=text) as error:
            await replica.predictors.install(str(tmp_path / folder))
        assert [violation.field for violation in error.value.violations] == ["path"]
    assert (replica.version, replica.installations.content.generation) == ("0", 0)


async def test_replicas_and_restarts_follow(replica: Replica, tmp_path: Path) -> None:
    other = await Replica(replica.installations, tmp_path / "configured").start()
    await replica.predictors.install(adapter(tmp_path, "1"))
    assert other.version == "0"
    await other.predictors.follow()
    restarted = await Replica(replica.installations, tmp_path / "configured").start()
    assert other.version == restarted.version == "1"
    await restarted.predictors.rollback()
    await other.predictors.follow()
    await replica.predictors.follow()
    assert other.version == replica.version == "0"


async def test_only_one_of_two_at_once_wins(replica: Replica, tmp_path: Path) -> None:
    path = adapter(tmp_path, "1")
    replica.installations.rival = True
    with pytest.raises(AbortedError, match="at the same time"):
        await replica.predictors.install(path)
    assert replica.version == "0"


async def test_a_replica_that_can_not_follow_says_so_and_follows_later(replica: Replica, tmp_path: Path) -> None:
    other = await Replica(replica.installations, tmp_path / "configured").start()
    path = adapter(tmp_path, "1")
    await replica.predictors.install(path)
    write_hash_adapter(Path(path), "changed")
    await other.predictors.follow()
    assert other.version == "0"
    assert "holds fast/changed, but fast/1 was installed" in other.predictors.problem
    assert other.observed[-1] == ("0", other.predictors.problem)
    assert other.predictors.settled
    write_hash_adapter(Path(path), "1")
    await other.predictors.follow()
    assert other.predictors.problem, "not at once again: loading takes long"
    other.predictors._retry_at = 0
    await other.predictors.follow()
    assert (other.version, other.predictors.problem) == ("1", "")
    assert other.observed[-1] == ("1", "")


async def test_rolling_back_to_what_is_gone_is_refused(replica: Replica, tmp_path: Path) -> None:
    one = adapter(tmp_path, "1")
    await replica.predictors.install(one)
    await replica.predictors.install(adapter(tmp_path, "2"))
    (Path(one) / "version").unlink()
    with pytest.raises(FailedPreconditionError, match=r"can't be loaded: .* holds no adapter. Install another one"):
        await replica.predictors.rollback()
    assert replica.version == "2"


async def test_so_many_installations_are_kept(replica: Replica, tmp_path: Path) -> None:
    for number in range(KEPT + 3):
        await replica.predictors.install(adapter(tmp_path, str(number + 1)))
    for _ in range(KEPT):
        await replica.predictors.rollback()
    assert replica.version == "0"


def loader(folder: Path, kind: str = "fast", model: HashModel | None = None) -> AdapterLoader:
    return AdapterLoader(MicroBatcher(), lambda path, base: model or HashModel(), kind, folder, None)


async def test_a_predictor_is_tried_before_it_is_used(tmp_path: Path) -> None:
    class Failing(HashModel):
        def predict(self, prompts: object) -> list[object]:  # type: ignore[override]
            raise ValueError("no such layer")

    class Wrong(HashModel):
        def predict(self, prompts: object) -> list[object]:  # type: ignore[override]
            return [expected("p", 7)] * 3

    for model, text in ((Failing(), "fails on a trial prompt"), (Wrong(), "does not keep to the limits")):
        with pytest.raises(PredictorError, match=text):
            await loader(tmp_path, model=model).load(str(tmp_path))
    assert (await loader(tmp_path).load(str(tmp_path))).version == "1"


async def test_the_configured_kind_is_checked(tmp_path: Path) -> None:
    with pytest.raises(PredictorError, match="of kind fast, not lora: change --predictor"):
        await loader(tmp_path, "lora").load("")
    assert (await loader(tmp_path, "lora").load(str(tmp_path))).kind == "fast", "another kind may be installed"
    assert (await loader(tmp_path, "prior").load("")).kind == "prior"


async def test_a_missing_adapter_is_no_fallback(tmp_path: Path) -> None:
    configured = AdapterLoader(MicroBatcher(), neural_reader(1), "lora", tmp_path / "missing", None)
    with pytest.raises(PredictorError, match="is no folder"):
        await configured.load("")


def test_a_kind_without_an_adapter_in_the_package_says_what_to_do() -> None:
    with pytest.raises(PredictorError, match=r"no adapter of kind none.*`uellm predictor train`.*--predictor-adapter"):
        shipped_adapter("none")
