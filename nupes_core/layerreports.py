"""What a report says of a tensor that was quantized, and of one that was not."""

from __future__ import annotations

from nupes_core.planned import Coding, PlannedTensor
from nupes_core.report import LayerReport
from nupes_core.tensorwork import QuantizedMatrix


def skipped_layer(tensor: PlannedTensor) -> LayerReport:
    """Return the figures of a tensor that was copied."""
    return LayerReport(
        tensor.module,
        tensor.shape,
        tensor.params,
        tensor.bytes_before,
        tensor.bytes_after,
        skipped_reason=tensor.skipped_reason,
    )


def quantized_layer(tensor: PlannedTensor, coding: Coding, index: int, matrix: QuantizedMatrix) -> LayerReport:
    """Return the figures of a matrix; `index` counts those of a tensor that fuses several (experts)."""
    fused = coding.view.slices is not None
    count = coding.view.count
    return LayerReport(
        name=f"{tensor.module}[{index}]" if fused else tensor.module,
        shape=tensor.shape[1:] if fused else tensor.shape,
        params=tensor.params // count,
        bytes_before=tensor.bytes_before // count,
        bytes_after=tensor.bytes_after // count,
        bits=coding.format.bits,
        group_size=coding.format.group_size,
        layout=coding.format.layout,
        exponent=_rounded(matrix.weight.exponent),
        mse=_rounded(matrix.error.mse),
        sqnr_db=_rounded(matrix.error.sqnr_db),
        cosine=_rounded(matrix.error.cosine),
        codes_moved=matrix.moved,
        activation_bits=coding.activation.bits if coding.activation else None,
        histogram=matrix.histogram,
    )


def _rounded(value: float) -> float:
    """Keep the digits that do not depend on how many threads summed."""
    return float(f"{value:.8g}")
