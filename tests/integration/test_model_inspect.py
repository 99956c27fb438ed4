"""`uellm model inspect` on tiny models of transformers, and the facts.json that the deployer reads."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, PreTrainedModel
from typer.testing import CliRunner
from uellm_deployer.adapters.facts_file import FACTS_FILE, read_inspection
from uellm_deployer.adapters.model_folder import read_config, read_shape
from uellm_deployer.domain.facts import ModelShape, model_shape
from uellm_deployer.domain.layers import ModelLayers, PartShape, Weights
from uellm_deployer.domain.placement import HelrPlanner

from tests.support.command_line import runner
from tests.support.deployer import CPU, a_spec, machine
from tests.support.families import BASE, CONFIGS, GROUPED
from tests.support.live_tensors import LiveTensors
from uellm.cli.errors import InspectionError
from uellm.cli.main import app
from uellm.cli.model_inspection import inspect_model
from uellm.local.model import default_model
from uellm.rpc.errors import InvalidArgumentError

EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
UNKNOWN: dict[str, tuple[str, dict[str, Any]]] = {
    "dense": ("olmo2", GROUPED),
    "experts": ("granitemoe", GROUPED | EXPERTS),
    "experts and windows": ("gpt_oss", GROUPED | EXPERTS | {"head_dim": 16, "sliding_window": 6}),
    "convolutions": ("lfm2", GROUPED | {"layer_types": ["conv", "full_attention", "conv"]}),
    "linear attention": (
        "qwen3_next",
        GROUPED
        | {
            "num_hidden_layers": 4,
            "head_dim": 16,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 16,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
        },
    ),
}


def write_config(folder: Path, kind: str, values: dict[str, Any]) -> dict[str, Any]:
    """The config.json that transformers writes."""
    config = AutoConfig.for_model(kind, **values)
    with torch.device("meta"):
        architecture = type(AutoModelForCausalLM.from_config(config)).__name__
    content = json.loads(config.to_json_string()) | {"architectures": [architecture]}
    (folder / "config.json").write_text(json.dumps(content))
    return content


def write_facts(folder: Path) -> None:
    (folder / FACTS_FILE).write_text(inspect_model(folder).model_dump_json())


def real_model(folder: Path) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).train(mode=False)


def undivided(part: PartShape) -> PartShape:
    """Without what a group of devices would repeat of it: an inspection does not see that, and allows no groups."""
    return replace(part, whole=Weights())


def all_undivided(layers: ModelLayers) -> ModelLayers:
    decoders = tuple(map(undivided, layers.layers))
    return replace(layers, embedding=undivided(layers.embedding), layers=decoders, head=undivided(layers.head))


@pytest.mark.parametrize("name", CONFIGS)
def test_known_families_are_inspected_as_they_are_known(tmp_path: Path, name: str) -> None:
    config = write_config(tmp_path, *CONFIGS[name])
    shape = model_shape(config, (), "")
    found = read_inspection(inspect_model(tmp_path).model_dump_json().encode(), config)
    assert (found.tied_head, found.hidden_size) == (shape.tied_head, shape.hidden_size)
    assert (found.vocabulary_size, found.context_limit_tokens) == (shape.vocabulary_size, shape.context_limit_tokens)
    plain = all_undivided(shape.layers)
    assert (found.layers.embedding, found.layers.head) == (plain.embedding, plain.head)
    for inspected, known in zip(found.layers.layers, plain.layers, strict=True):
        # A cache as transformers has it is what can be seen; compressed, it does not show the width of attention.
        width = known.attention_width if config.get("kv_lora_rank") else inspected.attention_width
        assert replace(inspected, attention_width=width) == replace(known, compact_kv_width=known.kv_width)


@pytest.mark.parametrize("name", UNKNOWN)
def test_other_families_need_an_inspection(tmp_path: Path, name: str) -> None:
    write_config(tmp_path, *UNKNOWN[name])
    with pytest.raises(InvalidArgumentError, match="uellm model inspect"):
        read_shape(str(tmp_path))
    write_facts(tmp_path)
    shape, model = read_shape(str(tmp_path)), real_model(tmp_path)
    assert shape.parameter_count == model.num_parameters()
    assert not shape.has_weights
    plan = HelrPlanner().place(a_spec(context_tokens=128), replace(shape, has_weights=True), machine(CPU)).plan
    assert plan.facts.kv_bytes_per_token == shape.facts(4).kv_bytes_per_token
    check_cache(model, shape)


@torch.inference_mode()
def check_cache(model: PreTrainedModel, shape: ModelShape) -> None:
    """What a real pass leaves in the cache is what the facts say, byte by byte."""
    layout = shape.facts(4).kv_cache
    cache = DynamicCache(config=model.config)
    for context, new in ((4, 4), (5, 1), (12, 7), (13, 1)):
        model(torch.ones(1, new, dtype=torch.long), past_key_values=cache, use_cache=True)
        tensors = {id(t): t for layer in cache.layers for part in vars(layer).values() for t in leaves(part)}
        assert sum(t.numel() * t.element_size() for t in tensors.values()) == layout.row_bytes(context)


def leaves(part: Any) -> list[torch.Tensor]:
    if isinstance(part, dict):
        return [leaf for value in part.values() for leaf in leaves(value)]
    if isinstance(part, list | tuple):
        return [leaf for value in part for leaf in leaves(value)]
    return [part] if isinstance(part, torch.Tensor) and part.is_floating_point() else []


@pytest.mark.parametrize("name", ["dense", "experts", "experts and windows"])
def test_activations_stay_below_what_was_inspected(tmp_path: Path, name: str) -> None:
    write_config(tmp_path, *UNKNOWN[name])
    write_facts(tmp_path)
    shape, model = read_shape(str(tmp_path)), real_model(tmp_path)
    rows, tokens = 2, 160
    cache = DynamicCache(config=model.config)
    prompt, mask = torch.ones(rows, tokens, dtype=torch.long), torch.ones(rows, tokens, dtype=torch.long)
    with torch.inference_mode(), LiveTensors() as live:
        model(prompt, attention_mask=mask, past_key_values=cache, use_cache=True, logits_to_keep=1)
    held = rows * shape.facts(4).kv_cache.allocated_row_bytes(tokens, tokens)
    assert live.peak <= held + shape.activations.bytes_of(rows, tokens, tokens, 4)


def test_weights_count_where_they_are(tmp_path: Path) -> None:
    write_config(tmp_path, *UNKNOWN["experts"])
    real_model(tmp_path).save_pretrained(tmp_path)
    write_facts(tmp_path)
    stored = read_shape(str(tmp_path))
    (tmp_path / "model.safetensors").unlink()
    planned = read_shape(str(tmp_path))
    assert all_undivided(stored.layers) == planned.layers
    assert (stored.has_weights, planned.has_weights) == (True, False)
    assert stored.fingerprint != planned.fingerprint


def test_the_command_writes_the_file_that_the_deployer_reads(tmp_path: Path) -> None:
    write_config(tmp_path, *UNKNOWN["dense"])
    shown = CliRunner().invoke(app, ["model", "inspect", str(tmp_path)], catch_exceptions=False)
    assert shown.exit_code == 0
    assert "Olmo2ForCausalLM" in shown.output
    elsewhere = tmp_path / "other" / "facts.json"
    told = CliRunner().invoke(app, ["model", "inspect", str(tmp_path), "--json", "-o", str(elsewhere)])
    content = (tmp_path / FACTS_FILE).read_text()
    assert json.loads(told.stdout) == json.loads(content) == json.loads(elsewhere.read_text())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", FACTS_FILE, "other"]
    shape = read_shape(str(tmp_path))
    assert (shape.architecture, shape.division) == ("Olmo2ForCausalLM", None)
    assert "knows this family" not in shown.output


def test_the_command_says_when_it_is_not_needed(tmp_path: Path) -> None:
    write_config(tmp_path, "llama", BASE)
    shown = CliRunner().invoke(app, ["model", "inspect", str(tmp_path)], catch_exceptions=False)
    assert "knows this family by itself" in shown.output


def test_a_context_limit_that_the_config_lacks_must_be_given(tmp_path: Path) -> None:
    write_config(tmp_path, "bloom", {"vocab_size": 96, "hidden_size": 32, "n_layer": 2, "n_head": 4})
    with pytest.raises(InspectionError, match="--context-limit"):
        inspect_model(tmp_path)
    (tmp_path / FACTS_FILE).write_text(inspect_model(tmp_path, 2048).model_dump_json())
    assert read_shape(str(tmp_path)).context_limit_tokens == 2048


def test_code_in_the_folder_is_not_run(tmp_path: Path) -> None:
    config = {"model_type": "of_their_own", "architectures": ["TheirForCausalLM"]}
    config["auto_map"] = {"AutoConfig": "their.TheirConfig", "AutoModelForCausalLM": "their.TheirForCausalLM"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "their.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(InspectionError, match="brings its own code"):
        inspect_model(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_facts_of_another_config_are_refused(tmp_path: Path) -> None:
    write_config(tmp_path, *UNKNOWN["dense"])
    write_facts(tmp_path)
    write_config(tmp_path, "olmo2", GROUPED | {"num_hidden_layers": 2})
    with pytest.raises(InvalidArgumentError, match=r"another config\.json"):
        read_shape(str(tmp_path))


def test_facts_beside_a_known_family_are_not_read(tmp_path: Path) -> None:
    write_config(tmp_path, "llama", BASE)
    (tmp_path / FACTS_FILE).write_text("nonsense")
    assert read_shape(str(tmp_path)).architecture == "LlamaForCausalLM"


def test_the_default_model_by_its_headers_its_config_and_an_inspection() -> None:
    folder = default_model()
    config = read_config(folder / "config.json")
    stored, planned = read_shape(str(folder)), model_shape(config, (), "")
    inspected = read_inspection(inspect_model(folder).model_dump_json().encode(), config)
    assert stored.layers == planned.layers
    assert all_undivided(planned.layers) == inspected.layers
    assert stored.parameter_count == 134_515_008
    assert stored.attention == planned.attention == inspected.attention


def test_errors_name_the_argument(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = runner(monkeypatch, capsys)("model", "inspect", tmp_path)
    assert (status, out) == (1, "")
    assert err == "error: FOLDER: config.json cannot be read: No such file or directory\n"
