"""The library's own command line: `python -m nupes_core`."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from nupes_core import ActivationConfig, QuantizationConfig
from nupes_core.__main__ import main
from nupes_core.commandline import add_quantize_options, quantization_config
from tests.core.tiny import VOCABULARY, save

FAST = ("--group-size", "32", "--exponent", "0.8", "--quiet")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save("llama", tmp_path / "source")


def _json(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, dict[str, Any]]:
    code = main([*map(str, arguments), "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_quantize_writes_an_artifact_and_prints_the_report(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, report = _json(capsys, "quantize", source, tmp_path / "out", "--bits", "3", *FAST)
    assert code == 0
    assert 3 < report["bits_per_weight"] < 4
    assert {layer["bits"] for layer in report["layers"] if layer["skipped_reason"] is None} == {3}
    assert (tmp_path / "out" / "manifest.json").is_file()


def test_options_reach_the_configuration(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--layout", "paper", "--exclude", "mlp", "--exclude", "lm_head", "--seed", "3", "--scale-bits", "7")
    main(["quantize", str(source), str(tmp_path / "out"), *FAST, *options])
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    config = manifest["config"]
    assert config["seed"] == 3
    assert config["layers"]["exclude"] == ["mlp", "lm_head"]
    assert (config["weights"]["layout"], config["weights"]["scale_bits"]) == ("paper", 7)
    assert config["weights"]["exponent"] == {"mode": "fixed", "scope": "layer", "value": 0.8}
    printed = capsys.readouterr().out
    assert "bits_per_weight" in printed
    assert str(tmp_path / "out") in printed
    assert "{" not in printed


def test_learning_options_reach_the_configuration_and_the_layers_learn(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens = tmp_path / "tokens.safetensors"
    save_file({"input_ids": torch.arange(16 * 12).view(16, 12) % VOCABULARY}, tokens)
    learning = ("--optimize", "data-driven", "--steps", "2", "--learning-rate", "0.01", "--batch-size", "4")
    off = ("--no-error-feedback", "--no-learn-exponent", "--no-learn-scales", "--tweak-norms")
    data = ("--calibration", tokens, "--calibration-samples", "12", "--calibration-length", "8")
    activations = ("--activation-bits", "6", "--activation-scaling", "static", "--no-smooth")
    code, report = _json(capsys, "quantize", source, tmp_path / "out", *FAST, *learning, *off, *data, *activations)
    assert (code, report["bits_per_weight"] > 4) == (0, True)
    config = json.loads((tmp_path / "out" / "manifest.json").read_text())["config"]
    assert config["optimize"] == "data_driven"
    assert config["training"] == {
        "error_feedback": False,
        "learn_codes": True,
        "learn_exponent": False,
        "learn_scales": False,
        "tweak_norms": True,
        "steps": 2,
        "learning_rate": 0.01,
        "batch_size": 4,
    }
    assert config["calibration"] == {"samples": 12, "length": 8}
    expected = {"bits": 6, "grid": "uniform", "scaling": "static", "range": "mse", "smooth": False}
    assert config["activations"] == expected


def test_options_that_are_not_given_are_the_defaults_of_the_library() -> None:
    parser = argparse.ArgumentParser()
    add_quantize_options(parser)
    parser.set_defaults(seed=0)
    assert quantization_config(parser.parse_args([])) == QuantizationConfig()
    coded = quantization_config(parser.parse_args(["--activation-bits", "8", "--optimize", "data-driven"]))
    assert coded == QuantizationConfig(optimize="data_driven", activations=ActivationConfig())


def test_several_formats_get_a_folder_each(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["quantize", str(source), str(tmp_path / "out"), *FAST, "--format", "nupes", "--format", "dense"])
    capsys.readouterr()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["dense", "nupes"]


def test_evaluate_prints_the_documented_keys(booklm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Call me Ishmael. Some years ago, never mind how long precisely. " * 20)
    arguments = ("--text", text, "--context", "32", "--max-tokens", "65", "--baseline", booklm, "--quiet")
    code, found = _json(capsys, "evaluate", booklm, *arguments)
    assert code == 0
    assert {"perplexity", "tokens", "kl", "top1_agreement", "bits_per_weight"} <= set(found)
    assert (found["tokens"], found["kl"], found["top1_agreement"]) == (64, 0.0, 1.0)


def test_evaluate_without_a_text_measures_fidelity(booklm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--context", "16", "--max-tokens", "32", "--baseline", booklm, "--quiet")
    code, found = _json(capsys, "evaluate", booklm, *arguments)
    assert (code, found["source"], found["tokens"]) == (0, "sampled", 32)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--bits", "1"), "invalid_config"),
        (("--bits", "9"), "invalid_config"),
        (("--group-size", "0"), "invalid_config"),
        (("--exponent", "7"), "invalid_config"),
        (("--exclude", "("), "invalid_config"),
        (("--steps", "5"), "invalid_config"),
        (("--no-learn-codes",), "invalid_config"),
        (("--activation-grid", "power"), "invalid_config"),
        (("--calibration-column", "text"), "invalid_config"),
        (("--calibration", "some.txt"), "invalid_config"),
        (("--optimize", "data-driven", "--calibration", "missing.txt"), "calibration_failed"),
        (("--exclude", "."), "no_quantizable_layers"),
    ],
)
def test_bad_settings_exit_with_2_and_one_clear_line(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], code: str
) -> None:
    assert main(["quantize", str(source), str(tmp_path / "out"), "--json", *arguments]) == 2
    captured = capsys.readouterr()
    assert json.loads(captured.out)["error"]["code"] == code
    lines = captured.err.strip().splitlines()
    assert lines[-1].startswith(f"error [{code}]: ")
    assert not (tmp_path / "out").exists()


def test_a_missing_folder_exits_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(tmp_path / "none"), "--text", str(tmp_path / "none.txt")]) == 2
    assert "is not a folder" in capsys.readouterr().err
    assert main(["evaluate", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "--text" in error
    assert "internal" not in error


def test_a_python_without_torch_is_told_apart_in_one_line(source: Path, tmp_path: Path) -> None:
    program = "import sys; sys.modules['torch'] = None; from nupes_core.__main__ import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "quantize", str(source), str(tmp_path / "out")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: this Python has no torch.")
    assert len(ended.stderr.splitlines()) == 1


def test_quantize_evaluate_probe_and_check_work_as_processes(source: Path, tmp_path: Path) -> None:
    out, probe = tmp_path / "out", tmp_path / "probe.json"

    def run(*arguments: str | Path) -> str:
        command = [sys.executable, "-m", "nupes_core", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    run("quantize", source, out, *FAST, "--optimize", "data-free")
    probe.write_text(run("probe", out, "--json"))
    checked = json.loads(run("check", out, "--source", source, "--expect", probe, "--json"))
    assert checked["forward"] is True
    assert checked["matrices"] == checked["compared"] == 14
    assert checked["difference"] < 1e-3
