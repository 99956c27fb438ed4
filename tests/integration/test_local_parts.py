"""The parts of the embedded stack: processes, Redis, Triton, the default model."""

from __future__ import annotations

import json
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import redis
from transformers import AutoTokenizer

from tests.support import triton
from tests.support.tiny_model import make_tiny_model
from uellm.local import model as default
from uellm.local.process import ManagedProcess, ProcessError, free_port
from uellm.local.redis import EmbeddedRedis
from uellm.local.triton import TritonOptions, assemble_backends, triton_command

SERVER = "import socket, sys, time; s = socket.create_server(('127.0.0.1', int(sys.argv[1]))); time.sleep(60)"


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def managed(tmp_path: Path, code: str, port: int = 0) -> ManagedProcess:
    return ManagedProcess(
        "server",
        [sys.executable, "-c", code, str(port)],
        log=tmp_path / "server.log",
        ready=lambda: port > 0 and listens(port),
        grace_seconds=0.3,
    )


def test_a_process_that_ends_tells_the_end_of_its_log(tmp_path: Path) -> None:
    process = managed(tmp_path, "print('out of luck'); raise SystemExit(3)")
    process.start()
    with pytest.raises(ProcessError, match=r"server ended \(status 3\)(.|\n)*out of luck"):
        process.wait_ready(10)
    process.stop()


def test_a_process_that_never_gets_ready(tmp_path: Path) -> None:
    process = managed(tmp_path, "import time; time.sleep(60)")
    process.start()
    with pytest.raises(ProcessError, match=r"not ready after 0\.1 s"):
        process.wait_ready(0.1)
    process.stop()
    assert not process.running


def test_a_program_that_does_not_exist(tmp_path: Path) -> None:
    process = ManagedProcess("ghost", [str(tmp_path / "ghost")], log=tmp_path / "log", ready=lambda: True)
    with pytest.raises(ProcessError, match="ghost cannot be started"):
        process.start()


def test_stopping_kills_what_ignores_the_signal_and_its_children(tmp_path: Path) -> None:
    port = free_port()
    stubborn = (
        "import signal, subprocess, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        f"subprocess.run([sys.executable, '-c', {SERVER!r}, sys.argv[1]])"
    )
    process = managed(tmp_path, stubborn, port)
    process.start()
    process.wait_ready(10)
    assert process.pid is not None
    children = psutil.Process(process.pid).children()
    process.stop()
    psutil.wait_procs(children, timeout=5)
    assert not any(child.is_running() for child in children)
    assert not listens(port)


def test_redis_keeps_its_data(tmp_path: Path) -> None:
    port = free_port()
    for expected in (None, b"1"):
        server = EmbeddedRedis(tmp_path / "data", port)
        server.start()
        try:
            server.wait_ready()
            with redis.Redis.from_url(server.url) as client:
                assert client.get("key") == expected
                client.set("key", "1")
                settings = client.config_get("*")
                assert [settings[key] for key in ("appendonly", "appendfsync", "maxmemory-policy", "bind")] == [
                    "yes",
                    "everysec",
                    "noeviction",
                    "127.0.0.1",
                ]
        finally:
            server.stop()
        assert not listens(port)


def test_redis_is_ready_when_it_has_read_its_data(tmp_path: Path) -> None:
    """It answers INFO before."""
    server = EmbeddedRedis(tmp_path / "data", free_port())
    server.start()
    try:
        server.wait_ready()
        with redis.Redis.from_url(server.url) as client:
            client.eval("for i = 1, 200000 do redis.call('SET', 'key' .. i, i) end", 0)
        server.stop()
        server.start()
        server.wait_ready()
        with redis.Redis.from_url(server.url) as client:
            assert client.get("key200000") == b"200000"
    finally:
        server.stop()


def test_redis_does_not_take_another_server_for_its_own(tmp_path: Path) -> None:
    port = free_port()
    first = EmbeddedRedis(tmp_path / "first", port)
    second = EmbeddedRedis(tmp_path / "second", port)
    first.start()
    try:
        first.wait_ready()
        second.start()
        with pytest.raises(ProcessError, match="Redis ended"):
            second.wait_ready(10)
    finally:
        second.stop()
        first.stop()


def test_triton_command(tmp_path: Path) -> None:
    options = TritonOptions(tmp_path / "models", tmp_path / "state", 1234, metrics_port=1235, control_secret="s3")
    backends = assemble_backends(tmp_path / "backends")
    command = triton_command(options, backends)
    assert {
        "--model-control-mode=explicit",
        "--allow-http=false",
        "--grpc-address=127.0.0.1",
        "--grpc-restricted-protocol=model-repository,shared-memory,trace,logging:uellm-control=s3",
        "--metrics-address=127.0.0.1",
        "--metrics-port=1235",
    } < set(command.argv)
    assert "s3" not in repr(options)
    assert command.env["LC_ALL"] == "C.UTF-8"
    assert {file.name for file in (backends / "python").iterdir()} == {
        "libtriton_python.so",
        "triton_python_backend_stub",
        "triton_python_backend_utils.py",
    }
    assert all(file.resolve().exists() for file in (backends / "python").iterdir())


def test_triton_stops_with_its_stubs_and_frees_its_port(tmp_path: Path) -> None:
    triton.write_static_engine(tmp_path / "models", "tiny", make_tiny_model(tmp_path / "weights"))
    server = triton.start_triton(tmp_path)
    try:
        triton.load(server, "tiny")
        assert server.process.pid is not None
        stubs = psutil.Process(server.process.pid).children(recursive=True)
        assert stubs
    finally:
        server.stop()
    psutil.wait_procs(stubs, timeout=5)
    assert not any(stub.is_running() for stub in stubs)
    assert not listens(server.options.grpc_port)


def test_stubs_end_when_triton_is_killed(tmp_path: Path) -> None:
    triton.write_static_engine(tmp_path / "models", "tiny", make_tiny_model(tmp_path / "weights"))
    server = triton.start_triton(tmp_path)
    try:
        triton.load(server, "tiny")
        process = psutil.Process(server.process.pid)
        stubs = process.children(recursive=True)
        assert stubs
        process.kill()
        _, alive = psutil.wait_procs(stubs, timeout=10)
        assert not alive
    finally:
        server.stop()


def test_a_repository_that_does_not_fit_is_reported(tmp_path: Path) -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        server = triton.EmbeddedTriton(TritonOptions(tmp_path / "models", tmp_path / "state", port))
        server.start()
        try:
            with pytest.raises(ProcessError, match="Triton ended"):
                server.wait_ready(30)
        finally:
            server.stop()


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, list[tuple[int, int, str]]]]:
    """The default model, really converted (about half a minute), and the progress that was reported."""
    cache = tmp_path_factory.mktemp("cache")
    progress: list[tuple[int, int, str]] = []
    yield default.default_model(cache, lambda *news: progress.append(news)).parent.parent, progress
    shutil.rmtree(cache)


def test_the_default_model_is_converted_once(converted: tuple[Path, list[tuple[int, int, str]]]) -> None:
    cache, progress = converted
    assert [done for done, _, _ in progress] == [0, 1, 2, 3, 4]
    assert {total for _, total, _ in progress} == {4}
    again: list[tuple[int, int, str]] = []
    folder = default.default_model(cache, lambda *news: again.append(news))
    assert not again
    assert {file.name for file in folder.iterdir()} == {
        "config.json",
        "generation_config.json",
        "manifest.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert not [entry for entry in folder.parent.iterdir() if entry.name.startswith(".")]
    default.verify(folder, full=True)


def test_the_default_model_says_how_it_is_spoken_to(converted: tuple[Path, list[tuple[int, int, str]]]) -> None:
    folder = default.default_model(converted[0])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False
    )
    assert text == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    generation = json.loads((folder / "generation_config.json").read_text())
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert (generation["eos_token_id"], generation["pad_token_id"]) == (end, end)
    digits = [tokenizer.decode([token]) for token in tokenizer("  2025")["input_ids"]]
    assert digits == ["  ", "2", "0", "2", "5"]


def test_a_damaged_cache_names_the_file_and_the_way_out(
    converted: tuple[Path, list[tuple[int, int, str]]], tmp_path: Path
) -> None:
    folder = default.default_model(converted[0])
    copy = tmp_path / "models" / folder.name
    copy.mkdir(parents=True)
    for file in folder.iterdir():
        if file.name == "model.safetensors":
            (copy / file.name).symlink_to(file)
        else:
            shutil.copy(file, copy)
    assert default.default_model(tmp_path) == copy
    config = copy / "config.json"
    config.write_text(config.read_text().replace("30", "31"))
    with pytest.raises(default.DamagedCacheError, match=r"config\.json has another content.*uellm cache clear"):
        default.default_model(tmp_path)
    (copy / "model.safetensors").unlink()
    (copy / "model.safetensors").write_bytes(b"torn")
    shutil.copy(folder / "config.json", copy)
    with pytest.raises(default.DamagedCacheError, match=r"model\.safetensors has 4 bytes instead of"):
        default.default_model(tmp_path)
    default.clear_cache(tmp_path)
    assert not copy.exists()


def test_too_little_space_names_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(default, "CONVERTED_BYTES", 2**60)
    with pytest.raises(default.NotEnoughSpaceError, match=f"needs {2**60:,} bytes in {tmp_path}") as refused:
        default.default_model(tmp_path)
    assert refused.value.available_bytes > 0


def test_a_conversion_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF but not really")
    monkeypatch.setattr(default, "find_gguf", lambda: broken)
    with pytest.raises(default.ConversionError, match=r"broken\.gguf ended with status 1"):
        default.default_model(tmp_path / "cache")
    assert [entry.suffix for entry in (tmp_path / "cache" / "models").iterdir()] in ([".lock"], [])
