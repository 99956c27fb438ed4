"""Journal, repository and rendered entries."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInstanceGroup
from uellm_deployer.adapters.journal import FileJournal, JournalError, decode, encode
from uellm_deployer.adapters.repository import ModelRepository, RepositoryBusyError, UnsafeNameError
from uellm_deployer.adapters.triton_config import InvalidEntryError, TritonRenderer, check_entry
from uellm_deployer.app.book import KEPT_OPERATIONS, Book, compacted
from uellm_deployer.app.ports import JournalEntry, RepositoryEntry
from uellm_deployer.backends.vllm import stages as vllm
from uellm_deployer.backends.vllm.options import EngineOptions
from uellm_deployer.domain.deployment import Deployment, Failure, Operation, OperationKind, Stage, State
from uellm_deployer.domain.placement import HelrPlanner
from uellm_deployer.domain.plan import Generation

from tests.support.deployer import SHAPE, a_spec, gpu, machine

PLAN = (
    HelrPlanner()
    .place(a_spec(default_generation=Generation(temperature=0.5, seed=-1, stop=("\n", "é"))), SHAPE, machine())
    .plan
)
ONE = Deployment("deployments/one", State.READY, PLAN, 1_700_000_000.25, 3, "", 46_080, 0.09)
OPERATION = Operation("operations/1", OperationKind.CREATE, ONE.name, 1.5, "id", "digest").at(Stage.LOAD, "loading")
ENTRIES = [
    JournalEntry(OPERATION, replace(ONE, state=State.CREATING)),
    JournalEntry(deployment=ONE),
    JournalEntry(OPERATION.ended("failed", Failure("ABORTED", "X", "why")), removed="deployments/two"),
]
NAME = PLAN.triton_model
FILES = {"config.pbtxt": b"text", "1/model.py": b"code", "1/uellm_backends/hf/engine.py": b"more"}


# Journal.


def test_entries_read_back_as_they_were_written():
    content = b"".join(map(encode, ENTRIES))
    assert decode(content) == (ENTRIES, len(content))


@given(st.data())
def test_a_torn_tail_is_dropped_wherever_it_was_torn(data):
    lines = [encode(entry) for entry in ENTRIES]
    cut = data.draw(st.integers(0, len(lines[-1]) - 1))
    kept = data.draw(st.integers(0, len(lines) - 1))
    content = b"".join(lines[:kept]) + lines[-1][:cut]
    assert decode(content) == (ENTRIES[:kept], sum(map(len, lines[:kept])))


def test_a_torn_tail_is_dropped_at_every_byte():
    whole, torn = encode(ENTRIES[0]), encode(ENTRIES[1])
    for cut in range(len(torn)):
        assert decode(whole + torn[:cut]) == (ENTRIES[:1], len(whole))


@given(position=st.integers(0, len(encode(ENTRIES[0])) - 1), value=st.integers(1, 255))
def test_damage_before_the_end_is_no_torn_tail(position, value):
    content = bytearray(b"".join(map(encode, ENTRIES)))
    content[position] ^= value
    try:
        entries, _ = decode(bytes(content))
    except JournalError:
        return
    assert entries == ENTRIES  # what changed means the same, such as a digit in upper case


async def test_a_journal_goes_on_behind_a_torn_tail(tmp_path):
    journal = FileJournal(tmp_path, list)
    await journal.append(ENTRIES[0])
    with (tmp_path / "journal").open("ab") as file:
        file.write(encode(ENTRIES[1])[:-1])
    again = FileJournal(tmp_path, list)
    assert list(again.entries()) == ENTRIES[:1]
    await again.append(ENTRIES[2])
    assert list(FileJournal(tmp_path, list).entries()) == [ENTRIES[0], ENTRIES[2]]


async def test_compaction_keeps_what_the_book_knows(tmp_path):
    book = Book(FileJournal(tmp_path, compacted))
    for number in range(KEPT_OPERATIONS + 20):
        begun = replace(OPERATION, name=f"operations/{number}", request_id=str(number))
        await book.write(JournalEntry(begun, ONE))
        await book.write(JournalEntry(begun.ended("done", None)))
    await book.write(JournalEntry(removed="deployments/none"))
    before = (tmp_path / "journal").stat().st_size
    again = Book(FileJournal(tmp_path, compacted))
    assert again.deployments == book.deployments
    assert again.operations == book.operations
    assert len(again.operations) == KEPT_OPERATIONS
    assert (tmp_path / "journal").stat().st_size < before / 2


# Repository.


@pytest.fixture
def repository(tmp_path):
    repository = ModelRepository(tmp_path / "root")
    yield repository
    repository.close()


async def test_an_entry_comes_and_goes(repository):
    await repository.stage(RepositoryEntry(NAME, FILES))
    assert not repository.contains(NAME)
    await repository.install(NAME)
    assert repository.contains(NAME)
    files = {path.relative_to(repository.models / NAME).as_posix(): path for path in repository.models.rglob("*.*")}
    assert {name: path.read_bytes() for name, path in files.items() if path.is_file()} == FILES
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in files.values() if path.is_file())
    await repository.remove(NAME)
    await repository.remove(NAME)
    assert not any((*repository.models.iterdir(), *(repository.root / "staging").iterdir()))


async def test_staging_and_installing_may_be_repeated(repository):
    for content in (b"old", b"new"):
        await repository.stage(RepositoryEntry(NAME, {"config.pbtxt": content, "1/model.py": b""}))
        await repository.stage(RepositoryEntry(NAME, {"config.pbtxt": content}))
        await repository.install(NAME)
        assert (repository.models / NAME / "config.pbtxt").read_bytes() == content
        assert not (repository.models / NAME / "1").exists()


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../evil--0123456789", "/tmp/x--0123456789", "a/b--0123456789", "smol", "x--0123456789\n"]
)
async def test_names_that_lead_elsewhere(repository, name):
    for attempt in (repository.stage(RepositoryEntry(name, FILES)), repository.install(name), repository.remove(name)):
        with pytest.raises(UnsafeNameError):
            await attempt


@pytest.mark.parametrize("path", ["", "/etc/passwd", "../x", "1/../../x", "1//x", "./x", ".hidden", "1/a\0b", "1/a b"])
async def test_paths_that_lead_elsewhere(repository, path):
    with pytest.raises(UnsafeNameError):
        await repository.stage(RepositoryEntry(NAME, {path: b""}))
    assert not any((repository.root / "staging").iterdir())


async def test_links_are_not_followed(repository, tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").touch()
    for folder in (repository.models, repository.root / "staging"):
        (folder / NAME).symlink_to(precious)
        with pytest.raises(UnsafeNameError):
            await repository.remove(NAME)
        (folder / NAME).unlink()
    assert (precious / "file").exists()


def test_a_repository_has_one_deployer(repository):
    with pytest.raises(RepositoryBusyError, match="another deployer"):
        ModelRepository(repository.root)
    repository.close()
    ModelRepository(repository.root).close()


async def test_what_a_crash_left_in_staging_is_dropped(repository):
    await repository.stage(RepositoryEntry(NAME, FILES))
    repository.close()
    again = ModelRepository(repository.root)
    assert not any((again.root / "staging").iterdir())
    again.close()


async def test_an_entry_is_on_disk_before_it_is_seen(repository, monkeypatch):
    """Every file and folder of an entry is synchronised before the rename, the parent after it."""
    events: list[str] = []

    def synchronise(descriptor: int, fsync=os.fsync) -> None:
        events.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).relative_to(repository.root).as_posix())
        fsync(descriptor)

    def rename(self: Path, target: Path, rename=Path.rename) -> Path:
        events.append("rename")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", synchronise)
    monkeypatch.setattr(Path, "rename", rename)
    await repository.stage(RepositoryEntry(NAME, FILES))
    await repository.install(NAME)
    before = set(events[: events.index("rename")])
    assert before == {
        f"staging/{NAME}{path}"
        for path in ("", "/1", "/1/uellm_backends", "/1/uellm_backends/hf", *(f"/{f}" for f in FILES))
    } | {"staging"}
    assert "models" in events[events.index("rename") :]


# Rendered entries.


def config_of(entry: RepositoryEntry) -> ModelConfig:
    return text_format.Parse(entry.files["config.pbtxt"].decode(), ModelConfig())


def test_a_rendered_entry(tmp_path):
    entry = TritonRenderer(tmp_path).render(PLAN)
    config = config_of(entry)
    assert entry.name == config.name == f"smol--{PLAN.plan_hash}"
    assert config.backend == "python"
    assert config.model_transaction_policy.decoupled
    assert config.instance_group[0].kind == ModelInstanceGroup.KIND_CPU
    parameters = {key: value.string_value for key, value in config.parameters.items()}
    assert parameters == {
        "uellm_plan_hash": PLAN.plan_hash,
        "weights": "/models/smol",
        "stages": '[["cpu", 30]]',
        "dtype": "float32",
    }
    assert {"1/model.py", "1/uellm_backends/hf/engine.py"} < set(entry.files)
    assert all(tensor.optional for tensor in config.input)


def test_a_rendered_entry_of_a_continuous_engine(tmp_path):
    plan = HelrPlanner().place(a_spec(backend="vllm", max_batch_rows=32), SHAPE, machine()).plan
    entry = TritonRenderer(tmp_path).render(plan)
    config = config_of(entry)
    assert config.model_transaction_policy.decoupled
    parameters = {key: value.string_value for key, value in config.parameters.items()}
    stages, kv_bytes = (vllm.Stage(("cpu",), 30),), plan.kv_budget_bytes + 32 * 23_040
    assert EngineOptions.from_parameters(parameters) == EngineOptions(
        "/models/smol", "bfloat16", os.cpu_count(), stages, 32, 2048, kv_bytes, 32, plan.memory_utilization
    )
    assert {"1/model.py", "1/uellm_backends/vllm/core.py", "1/uellm_backends/common/job.py"} < set(entry.files)


def test_a_gpu_is_named_in_the_stages(tmp_path):
    plan = HelrPlanner().place(a_spec(), SHAPE, machine(gpu("GPU-a"), gpu("GPU-b", bandwidth=9e12))).plan
    config = config_of(TritonRenderer(tmp_path).render(plan))
    assert config.parameters["stages"].string_value == '[["cuda:1", 30]]'
    assert config.instance_group[0].kind == ModelInstanceGroup.KIND_MODEL
    assert not config.instance_group[0].gpus


@pytest.mark.parametrize(
    ("weights", "seen"), [("/data/repo/weights/smol", "/triton/weights/smol"), ("/elsewhere/smol", "/elsewhere/smol")]
)
def test_weights_in_the_repository_are_named_as_triton_sees_them(weights, seen):
    plan = replace(PLAN, spec=replace(PLAN.spec, weights_path=weights))
    entry = TritonRenderer(Path("/data/repo"), Path("/triton")).render(plan)
    assert config_of(entry).parameters["weights"].string_value == seen


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda config: setattr(config, "name", "other--0123456789"), "plan-unique"),
        (lambda config: setattr(config.model_transaction_policy, "decoupled", False), "decoupled"),
        (lambda config: setattr(config, "max_batch_size", 8), "decoupled"),
        (lambda config: config.dynamic_batching.SetInParent(), "batching"),
        (lambda config: config.instance_group.add(count=1), "one instance group"),
        (lambda config: config.instance_group[0].gpus.append(0), "GPU list"),
        (lambda config: setattr(config.instance_group[0], "kind", ModelInstanceGroup.KIND_GPU), "GPU list"),
        (lambda config: setattr(config.parameters["weights"], "string_value", ""), "not empty"),
        (lambda config: setattr(config.parameters["uellm_plan_hash"], "string_value", "0123456789"), "plan hash"),
    ],
)
def test_entries_that_triton_would_misunderstand(tmp_path, change, rule):
    entry = TritonRenderer(tmp_path).render(PLAN)
    config = config_of(entry)
    change(config)
    with pytest.raises(InvalidEntryError, match=rule):
        check_entry(replace(entry, files={**entry.files, "config.pbtxt": text_format.MessageToString(config).encode()}))


@pytest.mark.parametrize("change", [{"1/model.py": None}, {"2/model.py": b""}, {"extra": b""}])
def test_entries_with_other_files(tmp_path, change):
    entry = TritonRenderer(tmp_path).render(PLAN)
    files = {path: content for path, content in {**entry.files, **change}.items() if content is not None}
    with pytest.raises(InvalidEntryError, match="version 1"):
        check_entry(replace(entry, files=files))
