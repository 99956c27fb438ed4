"""The command line's errors: readable lines, the right exit status, no traceback."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.support.command_line import Run

Said = Callable[..., tuple[int, str]]


@pytest.fixture
def run(uellm: Run, monkeypatch: pytest.MonkeyPatch) -> Said:
    """Run the command; returns its exit status and what it said on stderr."""
    monkeypatch.setenv("COLUMNS", "400")

    def run(*arguments: str) -> tuple[int, str]:
        status, _, said = uellm(*arguments)
        return status, said

    return run


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "hi"],
        ["profile", "hi"],
        ["status"],
        ["cancel", "tenants/t/models/m/queries/q"],
        ["queries"],
        ["queries", "--watch"],
        ["dead-letters", "list"],
        ["dead-letters", "replay", "tenants/t/models/m/queries/q"],
        ["down"],
        ["deploy", "folder"],
        ["deployments"],
        ["undeploy", "name"],
        ["rollback"],
        ["reconcile"],
        ["operation", "name"],
        ["topology"],
        ["plan", "folder"],
    ],
)
def test_without_a_stack_one_line_says_how_to_start_it(run: Said, arguments: Sequence[str]) -> None:
    status, said = run(*arguments)
    assert status == 1
    assert len(said.splitlines()) == 1
    assert "no stack is running" in said
    assert "`uellm up`" in said
    assert ("--file" in said) == (arguments[0] in ("topology", "plan")), "which can do without"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["generate", "hi", "--slo", "3x"], "500ms, 20s or 2m"),
        (["generate", "hi", "--max-tokens", "0"], "--max-tokens"),
        (["generate", "hi", "--max-tokens", str(2**40)], "--max-tokens"),
        (["generate", "\udcff"], "UTF-8"),
        (["generate"], "PROMPT"),
        (["up", "--weights", "/"], "belong together"),
        (["up", "--weights", "/no/such/folder", "--model", "m"], "--weights"),
        (["up", "--port-base", "65535"], "--port-base"),
        (["demo", "--requests", "0"], "--requests"),
        (["demo", "--rate", "nan"], "--rate"),
        (["nonsense"], "nonsense"),
    ],
)
def test_wrong_usage_is_status_2_and_names_what_is_wrong(run: Said, arguments: Sequence[str], expected: str) -> None:
    status, said = run(*arguments)
    assert status == 2
    assert expected in said


def test_a_damaged_cache_says_what_to_do(run: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from uellm.local.model import FOLDER

    folder = tmp_path / "cache" / "models" / FOLDER
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{")
    monkeypatch.setenv("UELLM_CACHE", str(tmp_path / "cache"))
    status, said = run("up", "--port-base", "0")
    assert status == 1
    assert "uellm cache clear" in said
    assert run("cache", "clear")[0] == 0
    assert not folder.exists()
