"""`verify_artifact` finds what is wrong with an artifact, and passes what is right."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import nupes_core
from nupes_core.check import verify_artifact, verify_checksums
from nupes_core.errors import LoadCheckError, NupesError
from nupes_core.manifest import hash_file
from nupes_core.probe import Probe, probe, probe_folder, read_probe
from tests.core.tiny import BUILDERS, QUICK, build, save


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save("llama", tmp_path / "source")


@pytest.fixture
def artifact(source: Path, tmp_path: Path) -> Path:
    nupes_core.quantize(source, tmp_path / "artifact", QUICK)
    return tmp_path / "artifact"


def _reseal(folder: Path) -> None:
    """Write checksums that fit the files, as one who changes an artifact on purpose would."""
    names = sorted(path.name for path in folder.iterdir() if path.name != "SHA256SUMS")
    lines = [f"{hash_file(folder / name)['sha256']}  {name}\n" for name in names]
    (folder / "SHA256SUMS").write_text("".join(lines))


def _change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    _reseal(folder)


@pytest.mark.parametrize("family", ["llama_tied", "gpt2", "mixtral", "gpt_oss", "t5", "vit", "bert"])
def test_artifacts_of_all_families_pass_with_source_and_expectation(family: str, tmp_path: Path) -> None:
    source = save(family, tmp_path / "source")
    nupes_core.quantize(source, tmp_path / "out", QUICK, formats=("nupes", "dense"))
    expected = probe_folder(tmp_path / "out" / "nupes")
    for name in ("nupes", "dense"):
        check = verify_artifact(tmp_path / "out" / name, source=source, expected=expected)
        assert check.forward
        assert check.matrices == check.compared > 0
        assert check.difference is not None
        assert check.difference < Probe.TOLERANCE


def test_a_model_that_cannot_be_built_is_checked_tensor_by_tensor(source: Path, tmp_path: Path) -> None:
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "model_type": "brandnew", "architectures": ["New"]}))
    nupes_core.quantize(source, tmp_path / "out", QUICK)
    check = verify_artifact(tmp_path / "out", source=source)
    assert not check.forward
    assert "brandnew" in (check.reason or "")
    assert check.compared == 14


def test_every_file_counts(artifact: Path) -> None:
    files = verify_checksums(artifact)
    assert files == len(list(artifact.iterdir())) - 1
    assert verify_artifact(artifact).files == files


def test_what_a_hub_puts_beside_an_artifact_does_not_count(artifact: Path) -> None:
    files = verify_checksums(artifact)
    (artifact / ".gitattributes").write_text("*.safetensors filter=lfs\n")
    (artifact / ".cache" / "huggingface").mkdir(parents=True)
    assert verify_checksums(artifact) == files


def test_a_flipped_bit_is_found(artifact: Path) -> None:
    path = artifact / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(LoadCheckError, match=r"model\.safetensors has sha256"):
        verify_artifact(artifact)


def test_missing_and_foreign_files_are_found(artifact: Path) -> None:
    (artifact / "extra.json").write_text("{}")
    with pytest.raises(LoadCheckError, match=r"extra\.json is not listed"):
        verify_artifact(artifact)
    (artifact / "extra.json").unlink()
    (artifact / "README.md").unlink()
    with pytest.raises(LoadCheckError, match=r"README\.md is missing"):
        verify_artifact(artifact)


@pytest.mark.parametrize("content", ["", "zz  model.safetensors\n", f"{'0' * 64}  ../escape\n"])
def test_broken_checksums_are_refused(artifact: Path, content: str) -> None:
    (artifact / "SHA256SUMS").write_text(content)
    with pytest.raises(LoadCheckError, match="SHA256SUMS"):
        verify_artifact(artifact)


def test_other_codes_under_fitting_checksums_are_found_by_the_source(artifact: Path, source: Path) -> None:
    def scramble(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.0.mlp.up_proj.weight_codes"].flip(0)
        tensors["model.layers.0.mlp.up_proj.weight_codes"] ^= 0x11

    expected = probe_folder(artifact)
    _change_tensors(artifact, scramble)
    assert verify_artifact(artifact).forward
    with pytest.raises(LoadCheckError, match=r"layers\.0\.mlp\.up_proj decodes with a mean squared error"):
        verify_artifact(artifact, source=source)
    with pytest.raises(LoadCheckError, match="computes something else"):
        verify_artifact(artifact, expected=expected)


def test_scales_that_decode_to_infinities_are_found(artifact: Path) -> None:
    _change_tensors(artifact, lambda tensors: tensors["model.layers.0.mlp.up_proj.weight_bases"].fill_(32767))
    with pytest.raises(LoadCheckError, match=r"up_proj decodes to NaN or an infinity"):
        verify_artifact(artifact)


def test_a_missing_part_is_found(artifact: Path) -> None:
    _change_tensors(artifact, lambda tensors: tensors.pop("model.layers.0.mlp.up_proj.weight_codes"))
    with pytest.raises(NupesError, match="weight_codes"):
        verify_artifact(artifact)


def test_a_layer_that_the_manifest_does_not_list_is_found(artifact: Path) -> None:
    manifest = json.loads((artifact / "manifest.json").read_text())
    manifest["layers"] = [layer for layer in manifest["layers"] if not layer["name"].endswith("0.mlp.up_proj")]
    (artifact / "manifest.json").write_text(json.dumps(manifest))
    _reseal(artifact)
    with pytest.raises(LoadCheckError, match="does not list"):
        verify_artifact(artifact)


def test_a_probe_survives_json_and_tells_models_apart(tmp_path: Path) -> None:
    one = probe(build("llama"))
    other = probe(build("llama_tied"))
    assert one is not None
    assert other is not None
    (tmp_path / "probe.json").write_text(json.dumps(one.to_dict()))
    assert read_probe(tmp_path / "probe.json") == one
    assert one.difference(other) > Probe.TOLERANCE
    (tmp_path / "probe.json").write_text("{}")
    with pytest.raises(LoadCheckError, match="broken"):
        read_probe(tmp_path / "probe.json")


@pytest.mark.parametrize("family", BUILDERS)
def test_inputs_can_be_made_up_for_every_family(family: str) -> None:
    found = probe(build(family))
    assert found is not None
    assert len(found.values) >= 3
    assert found.std > 0
