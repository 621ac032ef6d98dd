"""What a quantization run did: numbers per layer and totals. Torch-free."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class LayerReport:
    """One weight of the checkpoint.

    Attributes:
        name: module name, e.g. `model.layers.0.self_attn.q_proj` (a slice of fused experts: `….gate_up_proj[3]`).
        shape: of the weight as stored in the checkpoint.
        params: number of weights.
        bits, group_size, layout, exponent: what was used; exponent is the mean where the scope is finer than the layer.
        mse: mean squared error of the weights.
        sqnr_db: signal to quantization noise ratio, dB.
        cosine: cosine similarity of original and dequantized weights.
        bytes_before, bytes_after: serialized bytes, side information included.
        codes_moved: share of the codes that data-driven training moved away from where they started, 0 to 1.
        activation_bits: of the layer's inputs; None where they stay float.
        histogram: counts of weights over their group's scale in even bins over [-1, 1];
            see `nupes_core.quantizer.histogram`.
        skipped_reason: why the tensor was left alone, else None; the figures above are then None.
    """

    name: str
    shape: tuple[int, ...]
    params: int
    bytes_before: int
    bytes_after: int
    bits: int | None = None
    group_size: int | None = None
    layout: str | None = None
    exponent: float | None = None
    mse: float | None = None
    sqnr_db: float | None = None
    cosine: float | None = None
    skipped_reason: str | None = None
    codes_moved: float | None = None
    activation_bits: int | None = None
    histogram: tuple[int, ...] | None = None


@dataclass(frozen=True)
class FormatFigures:
    """What one format of a run holds.

    Attributes:
        format: its name.
        bytes_after: of its weight files, headers included; in a plan without what `Format.adds` tells of.
        bits_per_weight: bytes that it stores of the quantized weights x 8 / their number.
        coverage_pct: share of the model's parameters that are quantized in it.
    """

    format: str
    bytes_after: int
    bits_per_weight: float
    coverage_pct: float


@dataclass(frozen=True)
class Report:
    """Totals over a model, in the format that was asked for first.

    Attributes:
        bits_per_weight: all bytes of quantized tensors x 8 / their parameters (method §8).
        coverage_pct, coverage_bytes_pct: share of the model's parameters, and bytes, that were quantized.
        bytes_before, bytes_after: weight files of the model, headers included.
        seconds: wall time of the quantization itself, all formats.
        formats: figures of each format, in the order asked for.
    """

    layers: tuple[LayerReport, ...]
    params: int
    quantized_params: int
    bytes_before: int
    bytes_after: int
    bits_per_weight: float
    coverage_pct: float
    coverage_bytes_pct: float
    seconds: float
    formats: tuple[FormatFigures, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dict."""
        return asdict(self)


@dataclass(frozen=True)
class Progress:
    """One step of a long run, handed to the caller's `progress` callback. An exception raised there stops the run."""

    phase: str
    current: int
    total: int
    unit: str
    message: str = ""


ProgressCallback = Callable[[Progress], None]


@dataclass(frozen=True)
class Share:
    """Part `index` of `count` alike, which have one progress together."""

    index: int
    count: int
    progress: ProgressCallback | None

    def __call__(self, step: Progress) -> None:
        """Report a step of this part as one of all parts."""
        if self.progress:
            self.progress(replace(step, current=(self.index * step.total + step.current) // self.count))


@dataclass(frozen=True)
class Metric:
    """One point of a curve, such as the loss of a block while it is trained.

    Attributes:
        series: name of the curve, e.g. `loss/model.layers.0`, `held_out/model.layers.0`.
        step: grows within a series.
    """

    series: str
    step: int
    value: float


MetricCallback = Callable[[Metric], None]
