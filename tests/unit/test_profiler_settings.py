"""Which predictor a profiler is started with."""

from __future__ import annotations

from pathlib import Path

import pytest
from uellm_profiler.config import ProfilerSettings

from uellm.rpc.settings import load


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (
            [],
            "--predictor lora needs --predictor-base (UELLM_PREDICTOR_BASE), the folder of its base model",
        ),
        (["--predictor-base=/missing"], "--predictor-base (UELLM_PREDICTOR_BASE): Path does not point to a directory"),
        (["--predictor=prior", "--predictor-adapter=."], "--predictor prior has no adapter"),
        (["--predictor=best"], "--predictor (UELLM_PREDICTOR)"),
        (["--predictor=prior", "--predictor-bulk-queue-limit=100"], "--predictor-bulk-queue-limit"),
    ],
    ids=["base", "missing", "prior", "kind", "bulk"],
)
def test_a_wrong_choice_ends_the_start(flags: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        load(ProfilerSettings, flags)
    assert ended.value.code == 2
    assert text in capsys.readouterr().err


def test_choices_that_are_right(tmp_path: Path) -> None:
    assert load(ProfilerSettings, [f"--predictor-base={tmp_path}"]).predictor == "lora"
    own = ["--predictor=lora", f"--predictor-base={tmp_path}", f"--predictor-adapter={tmp_path}"]
    assert load(ProfilerSettings, own).predictor_adapter == tmp_path
    assert load(ProfilerSettings, ["--predictor=fast", f"--predictor-adapter={tmp_path}"]).predictor_base is None
    assert load(ProfilerSettings, ["--predictor=prior"]).predictor == "prior"
