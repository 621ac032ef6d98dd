from __future__ import annotations

import ast
import hashlib
import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from nupes_core.card import hub_card
from nupes_core.config import QuantizationConfig, TrainingConfig, WeightConfig
from nupes_core.errors import LoadCheckError
from nupes_core.formats import FORMATS
from nupes_core.manifest import finalize, read_manifest, write_manifest
from nupes_core.pipeline import quantize
from nupes_core.report import Report
from tests import models

CONFIG = QuantizationConfig(weights=WeightConfig(bits=3, group_size=16), seed=5)
SOURCE = {"repo_id": "someone/tiny", "revision": "abc123", "license": "apache-2.0"}
METRICS = {"baseline": {"perplexity": 10.0}, "quantized": {"perplexity": 10.5, "kl": 0.01}}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return models.llama(tmp_path / "src")


@pytest.fixture
def made(source: Path, tmp_path: Path) -> tuple[Path, Report]:
    return tmp_path / "out", quantize(source, tmp_path / "out", CONFIG, source=SOURCE)


def sums_hold(folder: Path) -> bool:
    listed = {line.split("  ", 1)[1] for line in (folder / "SHA256SUMS").read_text().splitlines()}
    assert listed == {path.name for path in folder.iterdir()} - {"SHA256SUMS"}
    return subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=folder, check=False).returncode == 0


def test_the_manifest_accounts_for_every_input_and_output(made: tuple[Path, Report], source: Path) -> None:
    folder, report = made
    manifest = read_manifest(folder)
    for name, entry in manifest["inputs"].items():
        content = (source / name).read_bytes()
        assert entry == {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    assert set(manifest["inputs"]) == {path.name for path in source.iterdir()}
    assert set(manifest["outputs"]) == {
        path.name for path in folder.iterdir() if path.name not in {"manifest.json", "README.md", "SHA256SUMS"}
    }
    assert manifest["config"] == json.loads(json.dumps(CONFIG.to_dict()))
    assert QuantizationConfig.from_dict(manifest["config"]) == CONFIG
    assert manifest["source"] == SOURCE
    assert manifest["seed"] == 5
    assert {"nupes", "torch", "python"} <= set(manifest["versions"])
    assert manifest["totals"]["coverage_pct"] == report.coverage_pct
    assert len(manifest["layers"]) == len(report.layers)
    assert any(layer.histogram for layer in report.layers)
    assert not any("histogram" in layer for layer in manifest["layers"])
    assert manifest["metrics"] is None
    assert "tokenizer_config.json: dropped auto_map" in manifest["findings"]


def test_nothing_in_it_depends_on_the_clock(made: tuple[Path, Report]) -> None:
    assert "seconds" not in (made[0] / "manifest.json").read_text()


def test_checksums_hold_before_and_after_metrics_are_added(made: tuple[Path, Report]) -> None:
    folder, _ = made
    assert sums_hold(folder)
    manifest = finalize(folder, metrics=METRICS, source={"model_id": "mdl_1"})
    assert sums_hold(folder)
    assert read_manifest(folder) == manifest
    assert manifest["metrics"] == {"protocol": "nupes-eval-1", **METRICS}
    assert manifest["source"] == {"model_id": "mdl_1"}


def test_adding_the_same_metrics_twice_changes_nothing(made: tuple[Path, Report]) -> None:
    folder, _ = made
    finalize(folder, metrics=METRICS)
    once = {path.name: path.read_bytes() for path in folder.iterdir()}
    finalize(folder, metrics=METRICS)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == once


def test_the_model_card_loads_the_model_in_two_lines_and_shows_the_cost(made: tuple[Path, Report]) -> None:
    folder, _ = made
    finalize(folder, metrics=METRICS)
    card = (folder / "README.md").read_text()
    assert 'import nupes_core\nmodel = nupes_core.load("' in card
    totals = read_manifest(folder)["totals"]
    assert f"| Weight files, bytes | {totals['bytes_before']:,} | {totals['bytes_after']:,} |" in card
    assert f"| Bits per quantized weight, side information counted |  | {totals['bits_per_weight']:.3f} |" in card
    assert "| Perplexity | 10 | 10.5 |" in card
    assert "| `weights.group_size` | 16 |" in card
    fields = yaml.safe_load(card.split("---\n")[1])
    assert (fields["base_model"], fields["license"]) == ("someone/tiny", "apache-2.0")
    assert (fields["library_name"], fields["pipeline_tag"]) == ("nupes", "text-generation")
    assert fields["quantization"]["bits"] == 3


@pytest.mark.parametrize("name", FORMATS)
def test_the_card_of_a_repository_has_python_that_loads_each_format(made: tuple[Path, Report], name: str) -> None:
    manifest = read_manifest(made[0])
    card = hub_card({"nupes": manifest, name: {**manifest, "format": name}}, (), "team/tiny", "main")
    blocks = [block.partition("```")[0] for block in card.split("```python\n")[1:]]
    assert len(blocks) == len({"nupes", name})
    for block in blocks:
        ast.parse(block)
        assert "{path}" not in block
        assert block.count("folder") >= 2


def test_the_card_of_what_was_not_measured_says_so(made: tuple[Path, Report]) -> None:
    card = (made[0] / "README.md").read_text()
    assert "Its quality was not measured." in card
    assert "Perplexity" not in card


def test_a_source_cannot_smuggle_markup_into_the_card(made: tuple[Path, Report]) -> None:
    folder, _ = made
    finalize(folder, source={"repo_id": "x\n---\n<script>", "license": "a: b"})
    card = (folder / "README.md").read_text()
    assert "script" not in card
    assert "a: b" not in card


def test_a_dense_card_needs_only_transformers(source: Path, tmp_path: Path) -> None:
    quantize(source, tmp_path / "dense", CONFIG, formats=("dense",))
    card = (tmp_path / "dense/README.md").read_text()
    assert "from transformers import" in card
    assert "nupes_core.load" not in card


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (CONFIG, "by a power exponent found without data"),
        (replace(CONFIG, optimize="data_driven"), "codes, scales and exponents were learnt on calibration data"),
        (
            replace(CONFIG, optimize="data_driven", training=TrainingConfig(learn_exponent=False, learn_scales=False)),
            "; codes were learnt on calibration data",
        ),
    ],
)
def test_the_card_says_what_was_learnt_on_data(
    made: tuple[Path, Report], config: QuantizationConfig, said: str
) -> None:
    folder, report = made
    write_manifest(folder, format_name="nupes", config=config, report=report, inputs={}, source=None)
    card = (folder / "README.md").read_text()
    assert said in card
    assert ("without data" in card) == (config.optimize == "data_free")


def test_a_damaged_artifact_is_not_finalized(made: tuple[Path, Report]) -> None:
    folder, _ = made
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(LoadCheckError, match=r"model\.safetensors"):
        finalize(folder, metrics=METRICS)


def test_a_folder_without_a_manifest_is_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(LoadCheckError, match=r"manifest\.json"):
        finalize(tmp_path, metrics=METRICS)
