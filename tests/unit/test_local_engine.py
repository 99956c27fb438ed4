"""Where the local stack looks for vLLM."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from uellm.local.engine import VLLM_ENVIRONMENT, VllmNotInstalledError, first_on_path


def test_vllm_is_looked_for_where_the_variable_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VLLM_ENVIRONMENT, str(tmp_path))
    with pytest.raises(VllmNotInstalledError, match=r"`make vllm-env`.*UELLM_VLLM_ENV"):
        first_on_path("vllm")
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    (tmp_path / "lib" / version / "site-packages" / "vllm").mkdir(parents=True)
    assert first_on_path("vllm") == tmp_path / "bin"
    assert first_on_path("hf") == Path(sys.executable).parent
