"""The adapters that ship: they are whole, and predict what their committed report card says, to the digit."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from uellm_profiler.adapters.loader import shipped_adapter
from uellm_profiler.learning.evaluation import CARD
from uellm_profiler.neural.adapter import read_adapter

from uellm.local.model import NAME

KINDS = ("lora", "fast")


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_ships_with_its_model_card(kind: str) -> None:
    folder = shipped_adapter(kind)
    manifest, lora, _ = read_adapter(folder)
    assert manifest.kind == kind
    assert (manifest.base == NAME) == (kind == "lora")
    assert lora
    assert f"`{kind}/{manifest.version}`" in (folder / "README.md").read_text("utf-8")


@pytest.mark.timeout(600)
def test_the_committed_card_is_reproduced_to_the_digit() -> None:
    command = [sys.executable, "-m", "uellm.cli.main", "predictor", "evaluate", "--json"]
    ran = subprocess.run(command, check=False, capture_output=True, text=True, timeout=570)
    assert ran.returncode == 0, ran.stderr
    assert "the same as the committed card, to the digit" in ran.stderr
    assert ran.stdout == (CARD / "card.json").read_text("utf-8")
    assert {
        name.partition("/")[0] for name, one in json.loads(ran.stdout)["entrants"].items() if not one["baseline"]
    } == {*KINDS}
