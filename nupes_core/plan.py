"""What a job would do, from safetensors headers and `config.json` alone: layers, coverage, exact bytes, memory, time.

Needs neither torch nor numpy: the HTTP service imports this.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from nupes_core.config import QuantizationConfig
from nupes_core.data.cost import DataCost, data_cost
from nupes_core.errors import InvalidConfigError
from nupes_core.evaluationcost import evaluation_bytes
from nupes_core.formats import Format, format_groups
from nupes_core.header import Header, TensorSpec, build_header, parse_header
from nupes_core.modelfolder import open_folder, tensor_owners
from nupes_core.planned import PlannedTensor, plan_tensor
from nupes_core.report import FormatFigures
from nupes_core.selection import ModelFacts

FILE_METADATA = {"format": "pt"}
"""What transformers wants to find in a safetensors file."""

BASE_MEMORY_BYTES = 560_000_000
"""Resident size of a process that imported torch and compiled the kernels, and its working set, measured."""

PARAMS_PER_SECOND = 10_000_000
"""Data-free search on one core with the default settings."""

COPY_BYTES_PER_SECOND = 300_000_000
"""Reading, hashing and writing together."""

START_SECONDS = 5.0
"""Imports and compilation."""

SMALL_FILE_BYTES = 20_000_000
"""Room for tokenizer, configuration and manifest, not counting a line per tensor."""

BYTES_PER_TENSOR_LINE = 1_000


@dataclass(frozen=True)
class ShardPlan:
    """One file of a checkpoint: its name, its parameters, and the peak memory of the work on it."""

    name: str
    params: int
    peak_memory_bytes: int


@dataclass(frozen=True)
class Plan:
    """What a job would do. Formats that need codes of their own are runs of their own: `parts`.

    What is said of tensors, coverage and bits is true of the formats of the first part; sizes and time are sums over
    all formats, memory is that of the part that takes most.

    Attributes:
        tensors: every tensor of the checkpoint, by file and position.
        config: what the weights are quantized with: as asked for, adapted to the formats.
        formats: what will be written; exact bytes of safetensors files, headers included; other files have more
            than tensors (`Format.adds`), which is not counted.
        parts: a plan for each run, themselves without parts.
        bytes_before: weight files as they are.
        artifact_bytes: of all formats; the small files (configuration, tokenizer, manifest) come on top.
        bits_per_weight: stored bytes of the quantized tensors x 8 / their parameters; 0 when nothing is quantized.
        coverage_pct, coverage_bytes_pct: share of the model that is quantized.
        peak_memory_bytes: estimate for the quantization, and for the evaluation after it where one is asked for; of
            runs on data, for data that is given.
        disk_bytes, seconds: estimates for the quantization itself on one core, without evaluation.
    """

    tensors: tuple[PlannedTensor, ...]
    config: QuantizationConfig
    formats: tuple[FormatFigures, ...]
    params: int
    quantized_params: int
    bytes_before: int
    artifact_bytes: int
    bits_per_weight: float
    coverage_pct: float
    coverage_bytes_pct: float
    peak_memory_bytes: int
    disk_bytes: int
    seconds: float
    parts: tuple[Plan, ...] = ()

    @property
    def quantized(self) -> tuple[PlannedTensor, ...]:
        """Tensors that are quantized."""
        return tuple(tensor for tensor in self.tensors if tensor.coding is not None)

    @property
    def skipped(self) -> tuple[PlannedTensor, ...]:
        """Tensors that are left alone."""
        return tuple(tensor for tensor in self.tensors if tensor.coding is None)

    def shards(self) -> tuple[ShardPlan, ...]:
        """Return what each file of the checkpoint takes when it is quantized by itself."""
        files: dict[str, list[PlannedTensor]] = {}
        for part in self.parts or (self,):
            for tensor in part.tensors:
                files.setdefault(tensor.shard, []).append(tensor)
        runs = len(self.parts) or 1
        return tuple(
            ShardPlan(name, sum(t.params for t in tensors) // runs, _peak(tensors)) for name, tensors in files.items()
        )

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dict: the totals, `layers` that are quantized, and `skipped` tensors with reasons."""
        totals = {key: value for key, value in vars(self).items() if key not in {"tensors", "config", "parts"}}
        totals["formats"] = [asdict(figures) for figures in self.formats]
        layers = [tensor.to_dict() for tensor in self.quantized]
        return {**totals, "layers": layers, "skipped": [tensor.to_dict() for tensor in self.skipped]}


def plan_folder(
    path: str | Path,
    config: QuantizationConfig,
    *,
    formats: Sequence[str] = ("nupes",),
    evaluation_context: int | None = None,
) -> Plan:
    """Plan the quantization of a model folder; arguments as for `plan_headers`.

    Raises:
        UnsafeFileError: the folder or a file in it is broken or unsafe.
        InvalidConfigError: unknown format, or the model is quantized already.
    """
    folder = open_folder(path)
    return plan_headers(folder.headers, folder.config, config, formats=formats, evaluation_context=evaluation_context)


def plan_headers(
    headers: Mapping[str, Header | bytes],
    model_config: Mapping[str, Any],
    config: QuantizationConfig,
    *,
    formats: Sequence[str] = ("nupes",),
    evaluation_context: int | None = None,
) -> Plan:
    """Plan from headers alone; no tensor is read.

    Args:
        headers: shard file name -> checked header, or the first bytes of the file (length prefix and JSON).
        model_config: content of `config.json`; may be empty.
        config: what is asked for.
        formats: what will be written; sizes are summed over them.
        evaluation_context: tokens of a window of the evaluation after it; None for none.

    Raises:
        UnsafeFileError: a header is broken, or two files hold the same tensor.
        InvalidConfigError: unknown format, one that cannot hold what is asked for, or the model is quantized already.
        UnsupportedArchitectureError: a format that is not written for this kind of model.
    """
    refuse_quantized(model_config)
    groups = format_groups(formats)
    for group in groups:
        for fmt in group:
            fmt.check(model_config, config)
    checked = {name: _parsed(name, header) for name, header in sorted(headers.items())}
    tensor_owners(checked)
    facts = ModelFacts.from_config(model_config)
    parts = tuple(_plan_group(group, checked, facts, config, evaluation_context) for group in groups)
    figures = {each.format: each for part in parts for each in part.formats}
    return replace(
        parts[0],
        formats=tuple(figures[name] for name in dict.fromkeys(formats)),
        artifact_bytes=sum(part.artifact_bytes for part in parts),
        peak_memory_bytes=max(part.peak_memory_bytes for part in parts),
        disk_bytes=sum(part.disk_bytes for part in parts),
        seconds=round(sum(part.seconds for part in parts) - START_SECONDS * (len(parts) - 1), 1),
        parts=parts,
    )


def _plan_group(
    group: Sequence[Format],
    headers: Mapping[str, Header],
    facts: ModelFacts,
    asked: QuantizationConfig,
    evaluation_context: int | None,
) -> Plan:
    """Plan the run for formats of one recipe."""
    recipe = group[0].recipe
    config = recipe.adapt(asked)
    shards = [[plan_tensor(name, info, facts, config, recipe) for info in headers[name].tensors] for name in headers]
    everything = tuple(tensor for shard in shards for tensor in shard)
    before = sum(header.file_bytes for header in headers.values())
    data = data_cost(everything, facts, config) or DataCost(0, 0.0, 0)
    figures = tuple(_figures(fmt, shards, everything, facts) for fmt in group)
    plan = _total(everything, config, figures, before, data)
    assembling = BASE_MEMORY_BYTES + max(fmt.memory_bytes(everything) for fmt in group)
    plan = replace(plan, peak_memory_bytes=max(plan.peak_memory_bytes, assembling))
    if evaluation_context is None:
        return plan
    evaluating = BASE_MEMORY_BYTES + evaluation_bytes(everything, facts, evaluation_context)
    return replace(plan, peak_memory_bytes=max(plan.peak_memory_bytes, evaluating))


def _figures(
    fmt: Format, shards: Sequence[Sequence[PlannedTensor]], tensors: Sequence[PlannedTensor], facts: ModelFacts
) -> FormatFigures:
    quantized = [tensor for tensor in tensors if tensor.coding is not None]
    params = sum(tensor.params for tensor in quantized)
    if fmt.own_bytes is not None:
        bytes_after = fmt.own_bytes(tensors, facts)
    else:
        bytes_after = sum(shard_layout(shard, fmt)[1].file_bytes for shard in shards)
    if fmt.most_bytes is not None and bytes_after > fmt.most_bytes:
        raise InvalidConfigError(
            f"the weights take {bytes_after} bytes; a file of format {fmt.name} holds {fmt.most_bytes}",
            hint="Use fewer bits, quantize the embeddings too, or ask for the format nupes.",
        )
    return FormatFigures(
        format=fmt.name,
        bytes_after=bytes_after,
        bits_per_weight=_ratio(8 * sum(fmt.weight_bytes(tensor) for tensor in quantized), params),
        coverage_pct=100 * _ratio(params, sum(tensor.params for tensor in tensors)),
    )


def shard_layout(tensors: Sequence[PlannedTensor], fmt: Format) -> tuple[bytes, Header]:
    """Return the header of the file that `tensors` of one input shard become, as bytes and parsed."""
    specs: list[TensorSpec] = []
    for tensor in tensors:
        kept = (TensorSpec(tensor.name, tensor.dtype, tensor.shape),)
        specs += kept if tensor.coding is None else fmt.specs(tensor)
    return build_header(specs, FILE_METADATA)


def refuse_quantized(model_config: Mapping[str, Any]) -> None:
    """Refuse a checkpoint that is quantized already.

    Raises:
        InvalidConfigError: `config.json` has a `quantization_config`.
    """
    present = model_config.get("quantization_config")
    if present:
        method = present.get("quant_method") if isinstance(present, Mapping) else present
        raise InvalidConfigError(
            f"the model is quantized already (quantization_config.quant_method is {method!r})",
            hint="Start from the original weights.",
        )


def _parsed(name: str, header: Header | bytes) -> Header:
    return header if isinstance(header, Header) else parse_header(header, source=name)


def _total(
    tensors: tuple[PlannedTensor, ...],
    config: QuantizationConfig,
    formats: tuple[FormatFigures, ...],
    bytes_before: int,
    data: DataCost,
) -> Plan:
    written = sum(figures.bytes_after for figures in formats)
    quantized = [tensor for tensor in tensors if tensor.coding is not None]
    params = sum(tensor.params for tensor in tensors)
    quantized_params = sum(tensor.params for tensor in quantized)
    work = quantized_params / PARAMS_PER_SECOND + (bytes_before + written) / COPY_BYTES_PER_SECOND
    return Plan(
        tensors=tensors,
        config=config,
        formats=formats,
        params=params,
        quantized_params=quantized_params,
        bytes_before=bytes_before,
        artifact_bytes=written,
        bits_per_weight=_ratio(8 * sum(tensor.bytes_after for tensor in quantized), quantized_params),
        coverage_pct=100 * _ratio(quantized_params, params),
        coverage_bytes_pct=_bytes_coverage(tensors, quantized),
        peak_memory_bytes=_peak(quantized, data.memory_bytes),
        disk_bytes=written + data.disk_bytes + SMALL_FILE_BYTES + BYTES_PER_TENSOR_LINE * len(tensors),
        seconds=round(START_SECONDS + work + data.seconds, 1),
    )


def _bytes_coverage(tensors: Sequence[PlannedTensor], quantized: Sequence[PlannedTensor]) -> float:
    return 100 * _ratio(sum(t.bytes_before for t in quantized), sum(t.bytes_before for t in tensors))


def _peak(tensors: Sequence[PlannedTensor], data_bytes: int = 0) -> int:
    """Return the most that is resident while these tensors are worked on one by one; others are copied in pieces."""
    working = [_working_bytes(each) for each in tensors if each.coding is not None]
    return BASE_MEMORY_BYTES + max([data_bytes, *working])


def _working_bytes(tensor: PlannedTensor) -> int:
    """Return what is held at once for a tensor: one matrix as read, as decoded, and as stored."""
    matrices = 1 if tensor.coding is None else tensor.coding.view.count
    return (2 * tensor.bytes_before + tensor.bytes_after) // matrices


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
