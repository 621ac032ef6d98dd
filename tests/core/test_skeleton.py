"""A configuration that lies about the size of its model costs neither memory nor time."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from nupes_core.errors import LoadCheckError, UnsupportedArchitectureError
from nupes_core.loading import check_buildable, load
from nupes_core.modelfolder import open_folder
from tests.worker.factory import write_tiny_llama

LIES: dict[str, dict[str, Any]] = {
    "negative width": {"hidden_size": -1},
    "no width": {"hidden_size": 0, "head_dim": 0, "num_attention_heads": 0},
    "width that is text": {"hidden_size": "64"},
    "terabytes of a table": {"vocab_size": 10**9},
    "terabytes of a matrix": {"intermediate_size": 10**9},
    "width beyond 64 bits": {"hidden_size": 2**63},
    "a trillion layers": {"num_hidden_layers": 10**12},
    "layers beyond any float": {"num_hidden_layers": 1e308},
    "a hundred thousand layers": {"num_hidden_layers": 10**5},
    "a billion labels": {"num_labels": 10**9},
    "a billion heads": {"num_attention_heads": 10**9},
    "layers in a part": {"text_config": {"num_hidden_layers": 10**9}},
    "unknown activation": {"hidden_act": "__import__('os').system"},
    "rope of nothing": {"rope_parameters": {"rope_type": "nonsense"}},
}


def _folder(tmp_path: Path, changes: dict[str, Any]) -> Path:
    folder = write_tiny_llama(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return folder


@pytest.mark.parametrize("name", LIES)
def test_a_lying_configuration_is_refused_before_it_costs_anything(name: str, tmp_path: Path) -> None:
    folder = _folder(tmp_path, LIES[name])
    started = time.monotonic()
    with pytest.raises(UnsupportedArchitectureError) as refused:
        load(folder)
    assert time.monotonic() - started < 20
    assert "config.json" in refused.value.message
    assert str(tmp_path) not in refused.value.message
    assert refused.value.hint


def test_a_true_configuration_passes_without_its_weights(tmp_path: Path) -> None:
    folder = open_folder(_folder(tmp_path, {}))
    (folder.path / "model.safetensors").unlink()
    check_buildable(folder)


def test_weights_of_another_shape_are_named(tmp_path: Path) -> None:
    folder = _folder(tmp_path, {"vocab_size": 16})
    with pytest.raises(LoadCheckError, match=r"mismatched keys, such as .*embed_tokens"):
        load(folder)
