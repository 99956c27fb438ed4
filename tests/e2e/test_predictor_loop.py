"""From prompts to a predictor in force, with the real model: collect, train, install, roll back."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from uellm_profiler.learning.dataset import part_of
from uellm_profiler.learning.labels import read_labels

from tests.support.local_stack import LocalUp, wait_for
from uellm.client import Client

pytestmark = pytest.mark.timeout(300)

TOPICS = ("rain", "bread", "trains", "owls", "chess", "salt", "maps", "tea", "glass", "wolves", "ink", "bees")
PROMPTS = [
    {"id": f"{kind}-{topic}", "prompt": text.format(topic)}
    for topic in TOPICS
    for kind, text in (("word", "One word about {}."), ("story", "A long story about {}, please."))
]


def train(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Needs no stack."""
    command = [sys.executable, "-m", "uellm.cli.main", "predictor", "train", *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("prompts") / "prompts_e2e.jsonl"
    file.write_text("".join(json.dumps(prompt) + "\n" for prompt in PROMPTS))
    assert {part_of(("e2e", prompt["id"])) for prompt in PROMPTS} == {"train", "validation", "test"}
    return file


@pytest.fixture(scope="module")
def labels(stack: LocalUp, prompts: Path) -> Path:
    """Labels of what the stack answers."""
    file = prompts.with_name("labels.jsonl")
    ran = stack.run("predictor", "collect", str(file), "--prompts", str(prompts), "--max-tokens", "12")
    assert ran.returncode == 0, ran.stderr
    assert f"{len(PROMPTS)} labels written" in ran.stdout
    return file


def test_labels_are_what_the_stack_answered_and_are_not_collected_twice(
    stack: LocalUp, prompts: Path, labels: Path
) -> None:
    found = read_labels(labels)
    assert {label.id for label in found} == {prompt["id"] for prompt in PROMPTS}
    assert all(label.model == "smollm2-135m" and 1 <= label.output_tokens <= 12 for label in found)
    assert {label.output_tokens for label in found if label.censored} == {12}
    again = stack.run("predictor", "collect", str(labels), "--prompts", str(prompts), "--max-tokens", "12")
    assert f"0 labels written to {labels}, {len(PROMPTS)} were there already" in again.stdout


def test_a_trained_predictor_is_installed_and_rolled_back(
    stack: LocalUp, client: Client, prompts: Path, labels: Path, tmp_path: Path
) -> None:
    shipped = client.profile("Hello.").predictor_version
    assert shipped.startswith("lora/")
    adapter = tmp_path / "adapter"
    options = ["--prompts", str(prompts), "--labels", str(labels), "--layers", "1", "--epochs", "2", "--version", "e2e"]
    trained = train(str(adapter), *options)
    assert trained.returncode == 0, trained.stderr
    assert f"adapter lora/e2e written to {adapter}" in trained.stdout

    installed = stack.run("predictor", "install", str(adapter))
    assert installed.returncode == 0, installed.stderr
    assert client.profile("One word about soap.").predictor_version == "lora/e2e"
    assert client.generate("Say hello.", max_output_tokens=8).profile.predictor_version == "lora/e2e"
    assert "lora/e2e" in stack.run("predictor", "show").stdout

    assert stack.run("predictor", "rollback").returncode == 0
    wait_for(lambda: client.profile("Hello.").predictor_version == shipped, 10)


def test_prompts_without_labels_and_a_folder_that_is_no_adapter_are_refused_in_words(
    stack: LocalUp, prompts: Path, tmp_path: Path
) -> None:
    alone = train(str(tmp_path / "adapter"), "--prompts", str(prompts))
    assert alone.returncode == 1
    assert "--prompts and --labels belong together" in alone.stderr
    nothing = stack.run("predictor", "install", str(tmp_path))
    assert nothing.returncode == 1
    assert "manifest.json" in nothing.stderr
