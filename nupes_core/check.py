"""Does a written artifact load, and compute what was measured? Run in a fresh process: `python -m nupes_core check`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from nupes_core import packedlayers
from nupes_core.artifact import QUANT_METHOD, StoredWeight, quant_method, stored_weights
from nupes_core.card import SUMS_NAME
from nupes_core.errors import LoadCheckError, UnsafeFileError, UnsupportedArchitectureError
from nupes_core.formats.onnx import holds_onnx
from nupes_core.gguf.model import decoded_gguf, holds_gguf
from nupes_core.layers import QuantizedLayer, decode_stored, decode_weights
from nupes_core.loading import load
from nupes_core.manifest import hash_file, read_manifest
from nupes_core.modelfolder import ModelFolder, open_folder, tensor_owners
from nupes_core.probe import Probe, probe
from nupes_core.quantizer.quality import weight_error
from nupes_core.selection import module_name

_Decoded = Iterator[tuple[str, str, torch.Tensor]]

MSE_TOLERANCE = 1e-3
"""Relative; decoding is exact, only the order of sums may differ."""

_OF_A_HUB = {".gitattributes", ".git", ".cache"}
"""What lies beside an artifact that came from a hub; nothing that loads a model reads it."""


@dataclass(frozen=True)
class Check:
    """What was checked; a check that fails raises instead.

    Attributes:
        files: files whose sha256 was compared with `SHA256SUMS`.
        matrices: quantized matrices that decode to finite values.
        compared: how many of them were compared with the source, and their error with the manifest.
        forward: whether a forward pass was run; `reason` says why not.
        difference: largest deviation from the expected outputs over their standard deviation; None without expectation.
    """

    files: int
    matrices: int
    compared: int
    forward: bool
    reason: str | None
    difference: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dict."""
        return asdict(self)


def verify_artifact(path: str | Path, *, source: str | Path | None = None, expected: Probe | None = None) -> Check:
    """Check an artifact: its files, every quantized matrix, and one forward pass.

    A model that transformers cannot build (it was quantized tensor by tensor) is checked without the forward pass.

    Args:
        path: the artifact.
        source: folder it was made from; the error of each matrix is then measured again and compared with the manifest.
        expected: outputs that the model gave when it was evaluated (`nupes_core.probe`).

    Raises:
        LoadCheckError: a file differs from its checksum, a matrix or an output is not what was measured.
        UnsafeFileError: the folder is broken.
    """
    path = Path(path)
    files = verify_checksums(path)
    matrices, compared = _verify_matrices(path, None if source is None else open_folder(source))
    check = Check(files, matrices, compared, forward=False, reason=None, difference=None)
    try:
        return _verify_forward(path, check, expected)
    except UnsupportedArchitectureError as error:
        if expected is not None:
            raise
        return replace(check, reason=error.message)


def verify_checksums(path: Path) -> int:
    """Compare every file of an artifact with `SHA256SUMS`; return their number.

    Raises:
        LoadCheckError: a file is missing, was changed, or is not listed.
    """
    sums = _read_sums(path / SUMS_NAME)
    present = {each.name for each in path.iterdir()} - {SUMS_NAME} - _OF_A_HUB
    for name in sorted(present ^ set(sums)):
        raise LoadCheckError(
            f"{name} is {'not listed in' if name in present else 'missing, but listed in'} {SUMS_NAME}"
        )
    for name, expected in sums.items():
        found = hash_file(path / name)["sha256"]
        if found != expected:
            raise LoadCheckError(f"{name} has sha256 {found}, {SUMS_NAME} says {expected}", hint="Download it again.")
    return len(sums)


def _read_sums(path: Path) -> dict[str, str]:
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise LoadCheckError(f"{SUMS_NAME} cannot be read: {error}") from error
    pairs = [line.partition("  ") for line in lines if line]
    broken = [digest for digest, _, name in pairs if len(digest) != 64 or not name or "/" in name]
    if broken or not pairs:
        raise LoadCheckError(f"{SUMS_NAME} is empty or has a broken line: {broken[:1]}")
    return {name: digest for digest, _, name in pairs}


def _verify_matrices(path: Path, source: ModelFolder | None) -> tuple[int, int]:
    """Return how many matrices decoded, and how many were compared with their source."""
    layers = {layer["name"]: layer for layer in read_manifest(path)["layers"] if layer["skipped_reason"] is None}
    originals = None if source is None else _Tensors(source)
    seen: set[str] = set()
    container = next((decode for holds, decode in _CONTAINERS if holds(path)), None)
    found = _decoded(open_folder(path), layers) if container is None else container(path, layers)
    for name, tensor, matrix in found:
        if not bool(matrix.isfinite().all()):
            raise LoadCheckError(f"{name} decodes to NaN or an infinity")
        if originals is not None:
            _verify_error(name, originals.read(tensor, name), matrix, layers[name])
        seen.add(name)
    missing = sorted(set(layers) - seen - _without_use(path))
    if missing:
        raise LoadCheckError(f"the manifest lists {missing[0]}, which the artifact does not hold")
    return len(seen), len(seen) if originals is not None else 0


def _without_use(path: Path) -> set[str]:
    """Return what was quantized and is no part of a graph, such as heads that the model of the folder has not."""
    if not holds_onnx(path):
        return set()
    from nupes_core.onnx.model import unused_onnx

    return set(map(module_name, unused_onnx(path)))


def _verify_error(name: str, original: torch.Tensor, matrix: torch.Tensor, layer: Mapping[str, Any]) -> None:
    if original.shape != matrix.shape:
        raise LoadCheckError(f"{name} decodes to shape {tuple(matrix.shape)}; the source has {tuple(original.shape)}")
    mse = weight_error(original.flatten(0, -2), matrix.flatten(0, -2)).mse
    if not math.isclose(mse, layer["mse"], rel_tol=MSE_TOLERANCE, abs_tol=1e-30):
        raise LoadCheckError(
            f"{name} decodes with a mean squared error of {mse:.6g}; the manifest says {layer['mse']:.6g}"
        )


def _decoded(folder: ModelFolder, layers: Mapping[str, Any]) -> _Decoded:
    """Yield (name in the manifest, checkpoint tensor, decoded matrix as it lies in the checkpoint)."""
    tensors = _Tensors(folder)
    yield from _DECODERS[quant_method(folder.config)](folder, tensors, layers)


def _decoded_gguf(path: Path, layers: Mapping[str, Any]) -> _Decoded:
    for name, matrix in decoded_gguf(path, layers):
        yield name, f"{name}.weight", matrix


def _decoded_onnx(path: Path, layers: Mapping[str, Any]) -> _Decoded:
    from nupes_core.onnx.model import decoded_onnx

    for tensor, weight in decoded_onnx(path):
        yield module_name(tensor), tensor, weight


def _decoded_native(folder: ModelFolder, tensors: _Tensors, layers: Mapping[str, Any]) -> _Decoded:
    for entry in stored_weights(folder.config["quantization_config"]).values():
        yield from _decoded_slices(entry, tensors, layers)


def _decoded_packed(folder: ModelFolder, tensors: _Tensors, layers: Mapping[str, Any]) -> _Decoded:
    for name in layers:
        read = partial(_read_part, tensors, f"{name}.weight")
        yield name, f"{name}.weight", packedlayers.decode(folder.config["quantization_config"], name, read)


def _read_part(tensors: _Tensors, tensor: str, part: str) -> torch.Tensor:
    return tensors.slice(f"{tensor}_{part}", None)


def _decoded_dense(folder: ModelFolder, tensors: _Tensors, layers: Mapping[str, Any]) -> _Decoded:
    for name in layers:
        bare, _, _ = name.partition("[")
        tensor = bare if bare in tensors.owners else f"{bare}.weight"
        yield name, tensor, tensors.read(tensor, name)


def _decoded_slices(entry: StoredWeight, tensors: _Tensors, layers: Mapping[str, Any]) -> _Decoded:
    module = entry.name.removesuffix(".weight")
    names = [module] if entry.slices is None else [f"{module}[{index}]" for index in range(entry.slices)]
    if not set(names) <= set(layers):
        raise LoadCheckError(f"the artifact holds {entry.name}, which the manifest does not list as quantized")
    matrix = replace(entry, slices=None)
    for name in names:
        yield name, entry.name, decode_stored(matrix, partial(tensors.slice, index=_slice_index(name)))


_CONTAINERS: Sequence[tuple[Callable[[Path], bool], Callable[[Path, Mapping[str, Any]], _Decoded]]] = (
    (holds_gguf, _decoded_gguf),
    (holds_onnx, _decoded_onnx),
)
"""What decodes artifacts that are one file, by what tells them."""

_DECODERS: Mapping[object, Callable[[ModelFolder, _Tensors, Mapping[str, Any]], _Decoded]] = {
    None: _decoded_dense,
    QUANT_METHOD: _decoded_native,
    packedlayers.QUANT_METHOD: _decoded_packed,
}
"""By the method that weights are quantized by."""


def _slice_index(name: str) -> int | None:
    """Return 3 for `….gate_up_proj[3]`, None for a plain matrix."""
    _, bracket, index = name.removesuffix("]").partition("[")
    return int(index) if bracket else None


class _Tensors:
    """Tensors of a folder by name, read one by one."""

    def __init__(self, folder: ModelFolder) -> None:
        self.owners = tensor_owners(folder.headers)
        self._folder = folder
        self._open: dict[str, Any] = {}

    def read(self, tensor: str, layer: str) -> torch.Tensor:
        """Return a checkpoint tensor, or the slice of it that a layer of the manifest names."""
        return self.slice(tensor, _slice_index(layer))

    def slice(self, tensor: str, index: int | None) -> torch.Tensor:
        """Return a tensor, or one entry of its first dimension."""
        if tensor not in self.owners:
            raise UnsafeFileError(f"{self._folder.path.name} lacks the tensor {tensor!r}")
        file = self.owners[tensor][0]
        if file not in self._open:
            self._open[file] = safe_open(self._folder.path / file, framework="pt", device="cpu")
        found: torch.Tensor = self._open[file].get_slice(tensor)[... if index is None else index]
        return found


def _verify_forward(path: Path, check: Check, expected: Probe | None) -> Check:
    model = load(path, dtype=torch.float32)
    outputs = probe(model)
    if outputs is None:
        return replace(check, reason="the model takes inputs that cannot be made up")
    if not all(map(math.isfinite, outputs.values)):
        raise LoadCheckError("a forward pass gives NaN or an infinity")
    if expected is not None and _codes_inputs(model):
        outputs = probe(decode_weights(model, torch.float32)) or outputs
    difference = None if expected is None else expected.difference(outputs)
    if difference is not None and not difference <= Probe.TOLERANCE:
        raise LoadCheckError(
            "the loaded artifact computes something else than when it was evaluated: "
            f"outputs deviate by {difference:.3g} of their standard deviation",
            hint="Evaluate and check with the same release of torch, transformers and nupes_core.",
        )
    return replace(check, forward=True, difference=difference)


def _codes_inputs(model: nn.Module) -> bool:
    """Whether inputs of layers are coded: the last bit of a sum then decides between two codes now and then.

    Only a model that computes in the same order gives the same outputs, so it is compared as it was evaluated, with
    decoded weights.
    """
    return any(isinstance(each, QuantizedLayer) and each.input_quantizer is not None for each in model.modules())
