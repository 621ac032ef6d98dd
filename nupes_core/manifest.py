"""What an artifact says about itself: `manifest.json`, `SHA256SUMS`, model card. Torch-free, no timestamps."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from nupes_core.card import CARD_NAME, MANIFEST_NAME, SUMS_NAME, architectures_of, artifact_card
from nupes_core.config import QuantizationConfig
from nupes_core.diskfile import write_file
from nupes_core.errors import LoadCheckError
from nupes_core.report import Report

SCHEMA = "nupes-manifest-1"
EVALUATION_PROTOCOL = "nupes-eval-1"

_CHUNK_BYTES = 4 << 20
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
    write_file(folder / CARD_NAME, artifact_card(manifest, architectures_of(folder)).encode())
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
