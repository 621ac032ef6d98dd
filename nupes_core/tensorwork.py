"""The work on one checkpoint tensor: read its matrices, quantize each or take it as committed, measure the loss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch

from nupes_core.activations import dynamic_quantizer
from nupes_core.checkpoint import as_tensor
from nupes_core.datadriven.blockresult import CommittedLayer
from nupes_core.errors import NumericsError, naming
from nupes_core.planned import Coding, PlannedTensor
from nupes_core.quantizer.histogram import weight_histogram
from nupes_core.quantizer.quality import WeightError, weight_error
from nupes_core.quantizer.weight import QuantizedWeight, quantize_weight, to_superblocks
from nupes_core.recipe import Recipe
from nupes_core.selection import FLOAT_DTYPES
from nupes_core.sources import Checkpoint
from nupes_core.storage import resolve_format
from nupes_core.workfolder import WorkFolder, commit_key

_LEARNT = ("weight", "bias")
_HINT = "The checkpoint is damaged or was saved after a diverged training; there is nothing to quantize."


@dataclass(frozen=True)
class QuantizedMatrix:
    """One matrix done: stored form, decoded [rows, cols] in the original dtype, and the loss between them.

    `histogram` is what `nupes_core.quantizer.histogram` counts of the original, smoothed where that was done.
    `inputs` is what is stored of the quantizer of the layer's input, empty where that stays float; `moved` the share of
    codes that training changed, None without training.
    """

    weight: QuantizedWeight
    decoded: torch.Tensor
    error: WeightError
    histogram: tuple[int, ...]
    inputs: Mapping[str, torch.Tensor]
    moved: float | None = None


class TensorWork:
    """Quantizes tensors of a checkpoint, one matrix at a time."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        recipe: Recipe,
        work: WorkFolder | None,
        shared_exponent: float | None = None,
        calibrated: Mapping[str, CommittedLayer] | None = None,
    ) -> None:
        """Prepare; `calibrated` holds what is quantized already, by the name of its tensor."""
        self._checkpoint = checkpoint
        self._recipe = recipe
        self._work = work
        self._shared_exponent = shared_exponent
        self._calibrated = calibrated or {}

    def matrices(self, tensor: PlannedTensor, coding: Coding) -> Iterator[QuantizedMatrix]:
        """Yield the matrices of a tensor in order.

        Raises:
            NumericsError: a weight is NaN or infinite; names the tensor.
        """
        if tensor.name in self._calibrated:
            yield self._committed(tensor, coding, self._calibrated[tensor.name])
            return
        for index in range(coding.view.count):
            w = read_matrix(self._checkpoint, tensor.name, coding, index)
            weight = self._quantize(tensor, w, coding)
            yield self._measured(tensor, w, weight, input_tensors(coding))

    def _committed(self, tensor: PlannedTensor, coding: Coding, layer: CommittedLayer) -> QuantizedMatrix:
        """Take a matrix that the run on calibration data quantized; smoothing may have scaled its columns before."""
        w, columns = read_matrix(self._checkpoint, tensor.name, coding, 0), layer.columns()
        reference = w if columns is None else w * columns.to(w.dtype)
        learnt = layer.weight(resolve_format(coding.view.rows, coding.view.cols, coding.weight.learnt))
        weight = learnt if learnt.format == coding.format else to_superblocks(learnt, coding.format)
        found = self._measured(tensor, reference, weight, layer.inputs())
        return replace(found, moved=layer.moved())

    def _quantize(self, tensor: PlannedTensor, w: torch.Tensor, coding: Coding) -> QuantizedWeight:
        if self._work is None:
            return self._search(tensor, w, coding)
        key = commit_key(w, coding.weight, self._shared_exponent)
        weight = self._work.load(key, coding.format)
        if weight is None:
            weight = self._search(tensor, w, coding)
            self._work.store(key, weight)
        return weight

    def _search(self, tensor: PlannedTensor, w: torch.Tensor, coding: Coding) -> QuantizedWeight:
        with naming(tensor.name):
            return quantize_weight(w, coding.weight, shared_exponent=self._shared_exponent)

    def _measured(
        self, tensor: PlannedTensor, w: torch.Tensor, weight: QuantizedWeight, inputs: Mapping[str, torch.Tensor]
    ) -> QuantizedMatrix:
        decoded = self._recipe.decode(weight, w.dtype)
        error = weight_error(w, decoded)
        if not error.finite:
            raise NumericsError(f"{tensor.name} decodes to values beyond the range of {tensor.dtype}", hint=_HINT)
        return QuantizedMatrix(weight, decoded, error, weight_histogram(w, weight), inputs)


def input_tensors(coding: Coding) -> Mapping[str, torch.Tensor]:
    """Return what is stored of an input quantizer that needs no data; empty where the input stays float."""
    return {} if coding.activation is None else dynamic_quantizer(coding.activation).to_tensors()


def read_matrix(checkpoint: Checkpoint, name: str, coding: Coding, index: int) -> torch.Tensor:
    """Return matrix `index` of a tensor as [rows = outputs, cols = inputs], contiguous."""
    fused = coding.view.slices is not None
    w = checkpoint.read_rows(name, index, index + 1)[0] if fused else checkpoint.read(name)
    if coding.view.kernel:
        return w.flatten(1)
    return w.t().contiguous() if coding.view.transposed else w


def check_finite(tensor: PlannedTensor, content: bytearray) -> None:
    """Check a part of a learnt tensor that is left alone; buffers may hold infinities on purpose (attention masks).

    Raises:
        NumericsError: it holds NaN or an infinity.
    """
    learnt = tensor.dtype in FLOAT_DTYPES and tensor.name.rpartition(".")[2] in _LEARNT
    if learnt and not bool(as_tensor(content, tensor.dtype).isfinite().all()):
        raise NumericsError(f"{tensor.name} holds NaN or an infinity", hint=_HINT)
