"""facts.json is read strictly: every violation is named, and only the file of this very config counts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from uellm_deployer.adapters.facts_file import document, read_inspection
from uellm_deployer.adapters.model_folder import read_shape
from uellm_deployer.domain.inspection import Inspection, config_fingerprint
from uellm_deployer.domain.layers import ModelLayers, PartShape, plain

from uellm.cost.kv_config import AttentionShape
from uellm.cost.memory import ActivationShape
from uellm.rpc.errors import InvalidArgumentError

CONFIG = {"architectures": ["TheirForCausalLM"], "model_type": "their_own", "state_size": 16}


def layer(parameters: int, active: int, width: int, window: int, fixed: int) -> PartShape:
    weights = plain(parameters), plain(active)
    return PartShape(*weights, width, width, window, fixed, attention_width=2 * width)


FOUND = Inspection(
    config_fingerprint=config_fingerprint(CONFIG),
    hidden_size=64,
    vocabulary_size=100,
    context_limit_tokens=512,
    tied_head=True,
    attention=AttentionShape(heads=4, kv_heads=2, head_size=16, cached_width=64, windows=(0, 128)),
    activations=ActivationShape(320, 200, 128, 2, 0, 100),
    layers=ModelLayers(
        embedding=PartShape(plain(6400), plain(64), computes=False),
        layers=(layer(5000, 3000, 0, 0, 4096), layer(5000, 5000, 64, 128, 0)),
        head=PartShape(plain(6464), plain(6464)),
        tied=plain(6400),
    ),
)


def written() -> dict[str, Any]:
    return json.loads(document(FOUND, "TheirForCausalLM", "a test").model_dump_json())


def refused(content: bytes | dict[str, Any]) -> list[str]:
    with pytest.raises(InvalidArgumentError) as caught:
        read_inspection(content if isinstance(content, bytes) else json.dumps(content).encode(), CONFIG)
    assert {violation.field for violation in caught.value.violations} == {"spec.weights_path"}
    return [violation.description for violation in caught.value.violations]


def test_what_is_written_is_read() -> None:
    assert read_inspection(json.dumps(written()).encode(), CONFIG) == FOUND


def test_a_folder_of_an_unknown_family_is_planned_by_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(InvalidArgumentError, match="uellm model inspect"):
        read_shape(str(tmp_path))
    (tmp_path / "facts.json").write_text(json.dumps(written()))
    facts = read_shape(str(tmp_path)).facts(2)
    assert (facts.parameter_count, facts.weight_bytes) == (16_464, 2 * 16_464)
    assert (facts.kv_bytes_per_token, facts.kv_cache.row_bytes(1000)) == (128, 4096 + 127 * 128)


def test_every_violation_is_named() -> None:
    content = written()
    content["layers"][1] |= {"parameters": 0, "window_tokens": "128"}
    content["attention"]["extra"] = 1
    content["hidden_size"] = 64.5
    del content["tied_head"]
    told = refused(content)
    paths = ("hidden_size", "tied_head", "attention.extra", "layers[1].parameters", "layers[1].window_tokens")
    assert len(told) == len(paths)
    assert all(any(f"facts.json: `{path}` " in text for text in told) for path in paths)


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"schema_version": 2}, "schema_version"),
        ({"layers": []}, "layers"),
        ({"config_fingerprint": "0"}, "config_fingerprint"),
        ({"config_fingerprint": "0" * 64}, "config_fingerprint"),
        ({"tied_head": 1}, "tied_head"),
    ],
)
def test_wrong_values_are_refused(change: dict[str, Any], path: str) -> None:
    (told,) = refused(written() | change)
    assert told.startswith(f"facts.json: `{path}` ")


@given(st.data())
def test_a_file_cut_anywhere_is_refused(data: st.DataObject) -> None:
    content = json.dumps(written()).encode()
    refused(content[: data.draw(st.integers(0, len(content) - 1))])


def test_the_order_of_keys_in_a_config_does_not_matter() -> None:
    assert config_fingerprint(dict(reversed(CONFIG.items()))) == config_fingerprint(CONFIG)
    assert config_fingerprint(CONFIG | {"state_size": 8}) != config_fingerprint(CONFIG)


def test_reading_models_needs_no_torch() -> None:
    code = (
        "import sys, uellm.cli.main, uellm.cli.model, uellm_deployer.adapters.model_folder, uellm_deployer.__main__\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
