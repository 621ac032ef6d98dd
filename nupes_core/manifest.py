"""What an artifact says about itself: `manifest.json`, `SHA256SUMS` model card. Torch-free, no timestamps."""

from __future__ import annotations

import hashlib
import json
import platform
import re
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from nupes_core.config import QuantizationConfig
from nupes_core.diskfile import write_file
from nupes_core.errors import LoadCheckError
from nupes_core.formats import get_format
from nupes_core.report import Report

MANIFEST_NAME = "manifest.json"
SUMS_NAME = "SHA256SUMS"
CARD_NAME = "README.md"
SCHEMA = "nupes-manifest-1"
EVALUATION_PROTOCOL = "nupes-eval-1"

_CHUNK_BYTES = 4 << 20
_SAFE_YAML = re.compile(r"[A-Za-z0-9][\w./-]*")
_NOT_TOTALS = frozenset({"layers", "seconds", "formats", "extra"})
_PACKAGES = ("nupes", "torch", "numpy", "numba", "transformers")

OnBytes = Callable[[str, int], None]
"""Called with (file name, bytes hashed since the last call)."""


def hash_file(path: Path, on_bytes: OnBytes | None = None) -> dict[str, Any]:
    """Return `{"sha256", "bytes"}` of a file."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
            if on_bytes:
                on_bytes(path.name, len(chunk))
    return {"sha256": digest.hexdigest(), "bytes": size}


def write_manifest(
    folder: Path,
    *,
    format_name: str,
    config: QuantizationConfig,
    report: Report,
    inputs: Mapping[str, Mapping[str, Any]],
    source: Mapping[str, Any] | None,
    findings: tuple[str, ...] = (),
    on_bytes: OnBytes | None = None,
) -> None:
    """Write manifest, model card and checksums into a folder that is complete but for them.

    Args:
        folder: the artifact.
        format_name: which format it is in.
        config: resolved settings.
        report: numbers; `seconds` is left out, because it differs from run to run.
        inputs: file name -> `hash_file` of every file that was read.
        source: where the model came from, as the caller knows it (repository, commit, licence, model id).
        findings: what was dropped from the source's JSON files.
        on_bytes: progress of hashing.
    """
    outputs = {path.name: hash_file(path, on_bytes) for path in _files(folder, {MANIFEST_NAME, SUMS_NAME, CARD_NAME})}
    totals = {key: value for key, value in report.to_dict().items() if key not in _NOT_TOTALS}
    manifest = {
        "schema": SCHEMA,
        "format": format_name,
        "source": dict(source or {}),
        "inputs": dict(inputs),
        "outputs": outputs,
        "config": config.to_dict(),
        "seed": config.seed,
        "versions": _versions(),
        "totals": totals,
        "metrics": None,
        "findings": list(findings),
        "layers": [_without_histogram(layer) for layer in report.to_dict()["layers"]],
    }
    _write(folder, manifest)


def finalize(
    dst: str | Path, *, metrics: Mapping[str, Any] | None = None, source: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Add what became known after the quantization, and bring model card and checksums in line.

    Args:
        dst: an artifact written by `nupes_core.quantize`.
        metrics: figures of the evaluation; `protocol` is filled in when absent.
        source: replaces what the manifest says about the origin of the model.

    Returns:
        The manifest.

    Raises:
        LoadCheckError: the folder has no readable manifest, or a file that it lists is gone or has another size.
    """
    folder = Path(dst)
    manifest = read_manifest(folder)
    for name, entry in manifest["outputs"].items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != entry["bytes"]:
            raise LoadCheckError(f"{name} is missing or not {entry['bytes']} bytes long", hint="Quantize again.")
    if metrics is not None:
        manifest["metrics"] = {"protocol": EVALUATION_PROTOCOL, **metrics}
    if source is not None:
        manifest["source"] = dict(source)
    _write(folder, manifest)
    return manifest


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of an artifact.

    Raises:
        LoadCheckError: there is none, or it is not one of this schema.
    """
    try:
        manifest = json.loads((folder / MANIFEST_NAME).read_bytes())
    except (OSError, ValueError) as error:
        raise LoadCheckError(f"{folder.name} has no readable {MANIFEST_NAME}: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        raise LoadCheckError(f"{MANIFEST_NAME} is not of schema {SCHEMA!r}")
    return manifest


def _write(folder: Path, manifest: dict[str, Any]) -> None:
    text = json.dumps(manifest, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_file(folder / MANIFEST_NAME, text.encode())
    write_file(folder / CARD_NAME, _card(manifest).encode())
    own = {path.name: hash_file(path)["sha256"] for path in (folder / MANIFEST_NAME, folder / CARD_NAME)}
    sums = {name: entry["sha256"] for name, entry in manifest["outputs"].items()} | own
    write_file(folder / SUMS_NAME, "".join(f"{sums[name]}  {name}\n" for name in sorted(sums)).encode())


def _without_histogram(layer: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what would make the manifest of a model with thousands of experts several times as large."""
    return {key: value for key, value in layer.items() if key != "histogram"}


def _files(folder: Path, but: set[str]) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file() and path.name not in but)


def _versions() -> dict[str, str]:
    versions = {"python": ".".join(platform.python_version_tuple()[:2])}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def _card(manifest: dict[str, Any]) -> str:
    totals, weights = manifest["totals"], manifest["config"]["weights"]
    snippet = get_format(manifest["format"]).snippet.format(path="path/to/this/folder")
    group = "one group per row" if weights["group_size"] == -1 else f"groups of {weights['group_size']}"
    rows = [
        ("Bits per weight, side information counted", f"{totals['bits_per_weight']:.3f}"),
        ("Parameters", f"{totals['params']:,}"),
        ("Quantized", f"{totals['coverage_pct']:.1f} % of the parameters"),
        ("Weight files", f"{totals['bytes_before']:,} → {totals['bytes_after']:,} bytes"),
        *_metric_rows(manifest["metrics"] or {}),
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return (
        f"---\n{_front_matter(manifest['source'])}---\n\n# {weights['bits']}-bit NUPES\n\n"
        f"Weights in {weights['bits']} bits, {group}, {_method_words(manifest['config'])} (arXiv 2308.05600).\n"
        f"{_activation_words(manifest)}\n"
        f"```python\n{snippet}\n```\n\n| | |\n|---|---|\n{table}\n\n"
        f"`{MANIFEST_NAME}` has the settings, versions and figures of each layer; check the files with "
        f"`sha256sum -c {SUMS_NAME}`.\n"
    )


def _method_words(config: Mapping[str, Any]) -> str:
    """Say what was found with data, and what without."""
    training, exponent = config["training"], config["weights"]["exponent"]
    uniform = exponent["mode"] == "fixed" and exponent["value"] == 1
    if config["optimize"] == "data_free":
        return "on the uniform grid, scales found without data" if uniform else "by a power exponent found without data"
    stages = {
        "codes": training["learn_codes"] or training["error_feedback"],
        "scales": training["learn_scales"],
        "exponents": training["learn_exponent"] and exponent["mode"] == "search" and exponent["scope"] != "global",
    }
    *others, last = [name for name, on in stages.items() if on] or ["grids"]
    learnt = f"{', '.join(others)} and {last}" if others else last
    grids = "on the uniform grid" if uniform else "by power exponents"
    return f"{grids}; {learnt} were learnt on calibration data"


def _activation_words(manifest: Mapping[str, Any]) -> str:
    """Say how inputs are coded, and where an artifact cannot say so itself."""
    activations = manifest["config"].get("activations")
    if activations is None:
        return ""
    if manifest["format"] == "dense":
        return "This format holds weights alone: inputs of layers stay float here.\n"
    return (
        f"Inputs of linear layers in {activations['bits']} bits, {activations['grid']} grid, "
        f"{activations['scaling']} scales, applied by this library while the model runs.\n"
    )


def _front_matter(source: Mapping[str, Any]) -> str:
    lines = ["tags:", "- nupes", "- quantized"]
    for key, line in (("license", "license"), ("repo_id", "base_model")):
        value = source.get(key)
        if isinstance(value, str) and _SAFE_YAML.fullmatch(value):
            lines.append(f"{line}: {value}")
    return "".join(f"{line}\n" for line in lines)


def _metric_rows(metrics: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            yield from _metric_rows(value, f"{prefix}{name} ")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{name}".replace("|", " ").replace("_", " "), f"{value:.6g}"
