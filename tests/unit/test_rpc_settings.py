"""Where settings come from, and what is said when one is wrong."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from pydantic import Field, SecretStr, ValidationError

from uellm.rpc.config import ServerConfig, split_address
from uellm.rpc.settings import ServiceSettings, load


class Settings(ServiceSettings):
    """Settings of a service for tests."""

    window: int = Field(default=5, ge=1, examples=[5])
    """Length of the window, in % of something."""
    devices: list[str] = Field(default=[], examples=["gpu0,gpu1"])
    """Devices to use."""
    token: SecretStr | None = Field(default=None, min_length=8, examples=["0123456789"])
    """Token of somebody."""


class Strict(ServiceSettings):
    """Settings with one that must be given."""

    weights: Path = Field(examples=["/models/a"])
    """Folder with weights."""


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("UELLM_")]:
        monkeypatch.delenv(name)


def wrong(argv: list[str], capsys: pytest.CaptureFixture[str], kind: type[ServiceSettings] = Settings) -> list[str]:
    with pytest.raises(SystemExit) as caught:
        load(kind, argv)
    assert caught.value.code == 2
    return capsys.readouterr().err.splitlines()


def test_defaults() -> None:
    settings = load(Settings, [])
    assert (settings.listen, settings.window, settings.devices) == ("127.0.0.1:50051", 5, [])
    assert isinstance(settings, ServerConfig)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.toml", 'window = 7\nlisten = "127.0.0.1:7"\ndevices = ["a"]\n'),
        ("a.yaml", "window: 7\nlisten: 127.0.0.1:7\ndevices: [a]\n"),
        ("a.json", '{"window": 7, "listen": "127.0.0.1:7", "devices": ["a"]}'),
    ],
)
def test_flag_wins_over_environment_wins_over_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: str
) -> None:
    file = tmp_path / name
    file.write_text(content)
    argv = ["--config", str(file)]
    settings = load(Settings, argv)
    assert (settings.window, settings.listen, settings.devices) == (7, "127.0.0.1:7", ["a"])
    monkeypatch.setenv("UELLM_WINDOW", "8")
    monkeypatch.setenv("UELLM_LISTEN", "127.0.0.1:8")
    settings = load(Settings, [*argv, "--window", "9"])
    assert (settings.window, settings.listen, settings.devices) == (9, "127.0.0.1:8", ["a"])


@pytest.mark.parametrize("text", ["gpu0,gpu1", '["gpu0", "gpu1"]'])
def test_lists_as_text(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    assert load(Settings, ["--devices", text]).devices == ["gpu0", "gpu1"]
    monkeypatch.setenv("UELLM_DEVICES", text)
    assert load(Settings, []).devices == ["gpu0", "gpu1"]


def test_booleans_are_switches(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not load(Settings, ["--no-reflection"]).reflection
    monkeypatch.setenv("UELLM_REFLECTION", "false")
    assert not load(Settings, []).reflection
    assert load(Settings, ["--reflection"]).reflection


def test_empty_variable_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UELLM_TLS_CERT", "")
    assert load(Settings, []).tls_cert is None


def test_constructor_does_not_look_around(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UELLM_WINDOW", "8")
    assert Settings().window == 5


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        load(Settings, []).window = 3  # type: ignore[misc]


def test_each_wrong_setting_has_a_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("UELLM_LISTEN", "localhost")
    lines = wrong(["--window", "0", "--log-level", "loud"], capsys)
    assert len(lines) == 3
    assert "--listen (UELLM_LISTEN): must be host:port" in lines[0]
    assert "got 'localhost'; for example --listen 127.0.0.1:50051" in lines[0]
    assert lines[1].startswith("--log-level (UELLM_LOG_LEVEL): ")
    assert lines[2].startswith("--window (UELLM_WINDOW): ")
    assert "greater than or equal to 1; got '0'; for example --window 5" in lines[2]


def test_missing_setting_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = wrong([], capsys, Strict)
    assert line == "--weights (UELLM_WEIGHTS): Field required; for example --weights /models/a"


def test_wrong_secret_is_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    lines = wrong(["--token", "hunter2", "--redis-url", "http://:hunter2@host"], capsys)
    assert len(lines) == 2
    assert lines[0].startswith("--redis-url (UELLM_REDIS_URL): must begin with redis://")
    assert lines[1].startswith("--token (UELLM_TOKEN): ")
    assert "hunter2" not in "".join(lines)


def test_tls_files_belong_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.pem"
    file.touch()
    (line,) = wrong(["--tls-cert", str(file)], capsys)
    assert "--tls-cert (UELLM_TLS_CERT) and --tls-key (UELLM_TLS_KEY) must be set together" in line
    (line,) = wrong(["--tls-client-ca", str(file)], capsys)
    assert line.startswith("--tls-client-ca (UELLM_TLS_CLIENT_CA) needs")
    (line,) = wrong(["--tls-cert", f"{tmp_path}/none.pem"], capsys)
    assert line.startswith("--tls-cert (UELLM_TLS_CERT): Path does not point to a file; got")


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.toml", "window = "), ("a.yaml", "window: ["), ("a.yaml", "just text"), ("a.toml", "windows = 3")],
)
def test_wrong_file(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: str) -> None:
    file = tmp_path / name
    file.write_text(content)
    (line,) = wrong(["--config", str(file)], capsys)
    assert str(file) in line or "windows: there is no such setting" in line


def test_missing_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = wrong(["--config", f"{tmp_path}/none.toml"], capsys)
    assert line == f"--config {tmp_path}/none.toml: there is no such file"


def test_unknown_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--windows" in wrong(["--windows", "3"], capsys)[-1]


def test_print_config_masks_secrets(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        load(Settings, ["--print-config", "--token", "hunter2-hunter2", "--redis-url", "redis://:hunter2@host"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert "hunter2" not in shown
    assert json.loads(shown)["window"] == 5
    assert set(json.loads(shown)) == set(Settings.model_fields)


def test_printed_config_can_be_read_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load(ServiceSettings, ["--print-config", "--listen", "127.0.0.1:1"])
    values = json.loads(capsys.readouterr().out)
    del values["redis_url"]
    file = tmp_path / "again.json"
    file.write_text(json.dumps(values))
    assert load(ServiceSettings, ["--config", str(file)]).listen == "127.0.0.1:1"


def test_help_lists_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        load(Settings, ["--help"], prog="test")
    assert caught.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for name, field in Settings.model_fields.items():
        assert f"--{name.replace('_', '-')}" in shown
        assert f"[UELLM_{name.upper()};" in shown
        assert field.description
        assert " ".join(field.description.split()) in shown
    assert "default: 127.0.0.1:50051" in shown


@pytest.mark.parametrize(
    ("address", "parts"),
    [("127.0.0.1:0", ("127.0.0.1", 0)), ("a.b:65535", ("a.b", 65_535)), ("[::1]:5", ("::1", 5))],
)
def test_addresses(address: str, parts: tuple[str, int]) -> None:
    assert split_address(address) == parts
    assert ServerConfig(listen=address).listen == address


@pytest.mark.parametrize("address", ["", ":5", "a", "a:", "a:-1", "a:65536", "a:b", "::1:5", "a:٣"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(ValidationError):
        ServerConfig(listen=address)
