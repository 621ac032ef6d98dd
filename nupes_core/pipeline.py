"""A model folder in, a quantized model folder out: tensor by tensor, in bounded memory, for any architecture."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nupes_core.calibration import CalibrationSource, read_samples
from nupes_core.checkpoint import ShardWriter, tensor_bytes
from nupes_core.config import QuantizationConfig
from nupes_core.datadriven.driver import Reporting
from nupes_core.datadriven.folder import Calibrated, calibrate
from nupes_core.diskfile import write_file
from nupes_core.errors import DiskFullError, InvalidConfigError, NoQuantizableLayersError
from nupes_core.formats import Format, get_format
from nupes_core.globalexponent import Matrix, global_exponent
from nupes_core.header import Header
from nupes_core.manifest import hash_file, write_manifest
from nupes_core.modelfolder import CONFIG_NAME, INDEX_NAME, SINGLE_NAME, ModelFolder, carried_bytes, open_folder
from nupes_core.plan import Plan, plan_headers, shard_layout
from nupes_core.planned import Coding, PlannedTensor
from nupes_core.report import LayerReport, MetricCallback, Progress, ProgressCallback, Report
from nupes_core.samples import Samples
from nupes_core.sources import Checkpoint
from nupes_core.tensorwork import QuantizedMatrix, TensorWork, check_finite, read_matrix
from nupes_core.workfolder import WorkFolder


def quantize(
    src: str | Path,
    dst: str | Path,
    config: QuantizationConfig,
    *,
    calibration: CalibrationSource = None,
    progress: ProgressCallback | None = None,
    on_metric: MetricCallback | None = None,
    workdir: str | Path | None = None,
    formats: Sequence[str] = ("nupes",),
    source: Mapping[str, Any] | None = None,
) -> Report:
    """Quantize a model folder.

    Args:
        src: folder with `config.json` and safetensors files; only read.
        dst: new or empty folder. It appears whole or not at all. Of several formats each gets a subfolder.
        config: what to do.
        calibration: data that the model is run on; data-driven methods without any let it write its own.
        progress: called at each matrix and hashed chunk; an exception raised in it stops the run, which leaves nothing.
        on_metric: called with the points of loss curves, block by block.
        workdir: folder where finished matrices and blocks are committed, so that a second attempt resumes; None keeps
            nothing.
        formats: names of `nupes_core.formats.FORMATS`.
        source: origin of the model, for the manifest.

    Returns:
        Figures per layer and totals; `extra["formats"]` has the bytes of the weight files by format.

    Raises:
        UnsafeFileError: the source is broken or unsafe.
        InvalidConfigError: impossible settings, `dst` in use, or a model that is quantized already.
        CalibrationError: data that is missing, broken, too little, or does not fit the model; before any work.
        UnsupportedArchitectureError: data-driven, and transformers cannot build the model.
        NoQuantizableLayersError: nothing is left to quantize.
        NumericsError: a weight holds NaN or an infinity.
        DiskFullError: no room for the result.
    """
    started = time.monotonic()
    _refuse_unused(calibration, config)
    folder = open_folder(src)
    written = [get_format(name) for name in dict.fromkeys(formats)]
    plan = plan_headers(folder.headers, folder.config, config, formats=[fmt.name for fmt in written])
    _refuse_empty(plan)
    work = WorkFolder(workdir) if workdir is not None else None
    run = _Run(folder, plan, config, progress, work, source)
    if config.needs_calibration:
        samples = read_samples(folder, calibration, config.calibration, seed=config.seed)
    with ExitStack() as stack:
        staging = stack.enter_context(_staged(Path(dst), plan.artifact_bytes))
        if config.needs_calibration:
            blocks = work or WorkFolder(stack.enter_context(_scratch(Path(dst))))
            run.calibrate(samples, blocks, Reporting(progress, on_metric))
        outputs = [_Output(staging / fmt.name if len(written) > 1 else staging, fmt) for fmt in written]
        return run.execute(outputs, started)


@dataclass(frozen=True)
class _Output:
    """One artifact being written."""

    path: Path
    format: Format


class _Run:
    """One quantization: what it reads, what it decided, how far it is."""

    def __init__(
        self,
        folder: ModelFolder,
        plan: Plan,
        config: QuantizationConfig,
        progress: ProgressCallback | None,
        work: WorkFolder | None,
        source: Mapping[str, Any] | None,
    ) -> None:
        self.folder, self.plan, self.config, self.source = folder, plan, config, source
        self._progress, self._work = progress, work
        self._calibrated = Calibrated()
        self._done = 0
        self._shards: dict[str, list[PlannedTensor]] = {shard: [] for shard in folder.headers}
        for tensor in plan.tensors:
            self._shards[tensor.shard].append(tensor)

    def calibrate(self, samples: Samples, work: WorkFolder, reporting: Reporting) -> None:
        """Run the model on the samples and quantize its blocks by what they do."""
        with Checkpoint(self.folder) as checkpoint:
            shared = self._shared_exponent(checkpoint)
            self._calibrated = calibrate(
                self.folder, checkpoint, self.plan.quantized, self.config, samples, work, reporting, shared
            )

    def execute(self, outputs: Sequence[_Output], started: float) -> Report:
        """Do all of it and return the report."""
        for output in outputs:
            output.path.mkdir(exist_ok=True)
        inputs = self._hash_inputs()
        with Checkpoint(self.folder) as checkpoint:
            layers = self._quantize(checkpoint, outputs)
        sizes = {output.format.name: self._write_small_files(output) for output in outputs}
        reports = {name: self._report(layers, size, sizes, time.monotonic() - started) for name, size in sizes.items()}
        for output in outputs:
            self._write_manifest(output, reports[output.format.name], inputs)
        return reports[outputs[0].format.name]

    def _quantize(self, checkpoint: Checkpoint, outputs: Sequence[_Output]) -> tuple[LayerReport, ...]:
        work = TensorWork(checkpoint, self._work, self._shared_exponent(checkpoint), self._calibrated.layers)
        layers: list[LayerReport] = []
        for shard, tensors in self._shards.items():
            with ExitStack() as stack:
                writers = [stack.enter_context(self._writer(output, shard, tensors)) for output in outputs]
                for tensor in tensors:
                    layers += self._tensor(tensor, checkpoint, work, outputs, writers)
        return tuple(layers)

    def _shared_exponent(self, checkpoint: Checkpoint) -> float | None:
        return global_exponent([_matrix(checkpoint, tensor) for tensor in self.plan.quantized], self.config.weights)

    def _tensor(
        self,
        tensor: PlannedTensor,
        checkpoint: Checkpoint,
        work: TensorWork,
        outputs: Sequence[_Output],
        writers: Sequence[ShardWriter],
    ) -> Iterator[LayerReport]:
        if tensor.coding is None:
            self._copy(tensor, checkpoint, writers)
            yield _skipped(tensor)
            return
        for index, matrix in enumerate(work.matrices(tensor, tensor.coding)):
            for output, writer in zip(outputs, writers, strict=True):
                for name, content in output.format.pieces(tensor, matrix.weight, matrix.decoded, matrix.inputs):
                    writer.write(name, content, offset=index * content.nbytes)
            yield _quantized(tensor, tensor.coding, index, matrix)
            self._advance(tensor.params // tensor.coding.view.count, tensor.module)

    def _copy(self, tensor: PlannedTensor, checkpoint: Checkpoint, writers: Sequence[ShardWriter]) -> None:
        replaced = self._calibrated.replaced.get(tensor.name)
        parts = checkpoint.chunks(tensor.name) if replaced is None else [(0, bytearray(tensor_bytes(replaced)))]
        for offset, content in parts:
            check_finite(tensor, content)
            for writer in writers:
                writer.write(tensor.name, content, offset)
        self._advance(tensor.params, tensor.module)

    def _advance(self, params: int, message: str) -> None:
        self._done += params
        if self._progress:
            self._progress(Progress("quantizing", self._done, self.plan.params, "params", message))

    def _writer(self, output: _Output, shard: str, tensors: Sequence[PlannedTensor]) -> ShardWriter:
        head, header = shard_layout(tensors, output.format)
        return ShardWriter(output.path / self._output_name(shard), head, header)

    def _output_name(self, shard: str) -> str:
        return shard if self.folder.indexed else SINGLE_NAME

    def _hash_inputs(self) -> dict[str, dict[str, Any]]:
        own = [name for name in (CONFIG_NAME, INDEX_NAME) if (self.folder.path / name).is_file()]
        names = sorted({*own, *self.folder.headers, *self.folder.carried})
        on_bytes = self._byte_counter("validating", sum((self.folder.path / name).stat().st_size for name in names))
        return {name: hash_file(self.folder.path / name, on_bytes) for name in names}

    def _byte_counter(self, phase: str, total: int) -> _ByteCounter:
        return _ByteCounter(phase, total, self._progress)

    def _write_small_files(self, output: _Output) -> int:
        """Write everything but weights, manifest and card; return the bytes of the weight files."""
        reached = self._calibrated.layers
        written = tuple(each if each.name in reached else each.without_data() for each in self.plan.tensors)
        config = output.format.config(self.folder.config, written, self.config.to_dict())
        write_file(output.path / CONFIG_NAME, _json(config))
        layouts = {shard: shard_layout(tensors, output.format)[1] for shard, tensors in self._shards.items()}
        if self.folder.indexed:
            write_file(output.path / INDEX_NAME, _json(_index(layouts)))
        for name in self.folder.carried:
            write_file(output.path / name, carried_bytes(self.folder.path / name))
        return sum((output.path / self._output_name(shard)).stat().st_size for shard in layouts)

    def _write_manifest(self, output: _Output, report: Report, inputs: Mapping[str, Mapping[str, Any]]) -> None:
        write_manifest(
            output.path,
            format_name=output.format.name,
            config=self.config,
            report=report,
            inputs=inputs,
            source=self.source,
            findings=self.folder.findings,
            on_bytes=self._byte_counter("packaging", report.bytes_after),
        )

    def _report(self, layers: tuple[LayerReport, ...], size: int, sizes: Mapping[str, int], seconds: float) -> Report:
        return Report(
            layers=layers,
            params=self.plan.params,
            quantized_params=self.plan.quantized_params,
            bytes_before=self.plan.bytes_before,
            bytes_after=size,
            bits_per_weight=self.plan.bits_per_weight,
            coverage_pct=self.plan.coverage_pct,
            coverage_bytes_pct=self.plan.coverage_bytes_pct,
            seconds=seconds,
            extra={"formats": dict(sizes), "findings": list(self.folder.findings)},
        )


class _ByteCounter:
    """Reports hashed bytes as progress of a phase."""

    def __init__(self, phase: str, total: int, progress: ProgressCallback | None) -> None:
        self._phase, self._total, self._progress = phase, total, progress
        self._done = 0

    def __call__(self, name: str, count: int) -> None:
        self._done += count
        if self._progress:
            total = max(self._total, self._done)
            self._progress(Progress(self._phase, self._done, total, "bytes", name))


def _matrix(checkpoint: Checkpoint, tensor: PlannedTensor) -> Matrix:
    """Return the (first) matrix of a tensor, for sampling."""
    coding = tensor.coding
    assert coding is not None, f"{tensor.name} is not quantized"
    view = coding.view
    return Matrix(tensor.name, view.rows, view.cols, lambda: read_matrix(checkpoint, tensor.name, coding, 0))


def _refuse_unused(calibration: CalibrationSource, config: QuantizationConfig) -> None:
    if calibration is not None and not config.needs_calibration:
        raise InvalidConfigError(
            f"calibration data was given, but optimize is {config.optimize!r} and no activation scale is static",
            hint="Leave the calibration data out, or use optimize 'data_driven'.",
        )


@contextmanager
def _scratch(dst: Path) -> Iterator[Path]:
    """Yield a folder beside `dst` for finished blocks, which nobody wants to keep."""
    with tempfile.TemporaryDirectory(prefix=f".{dst.name}.", suffix=".blocks", dir=dst.parent) as path:
        yield Path(path)


def _refuse_empty(plan: Plan) -> None:
    if plan.quantized_params:
        return
    reasons = sorted({tensor.skipped_reason or "" for tensor in plan.skipped})[:5] or ["the model is empty"]
    raise NoQuantizableLayersError(
        f"none of the {len(plan.tensors)} tensors is left to quantize: {'; '.join(reasons)}",
        hint="Exclude less, or see the plan for the reason of each tensor.",
    )


@contextmanager
def _staged(dst: Path, size: int) -> Iterator[Path]:
    """Yield a folder beside `dst` that takes its place when all went well, and is removed when not."""
    if dst.exists() and (not dst.is_dir() or any(dst.iterdir())):
        raise InvalidConfigError(f"{dst} exists and is not empty", hint="Give a new folder for the result.")
    dst.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(dst.parent).free
    if free < size:
        raise DiskFullError(f"the result takes {size} bytes; {free} are free at {dst.parent}", hint="Free some space.")
    staging = Path(tempfile.mkdtemp(prefix=f".{dst.name}.", suffix=".partial", dir=dst.parent))
    try:
        yield staging
        staging.chmod(0o755)
        staging.replace(dst)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def _skipped(tensor: PlannedTensor) -> LayerReport:
    return LayerReport(
        tensor.module,
        tensor.shape,
        tensor.params,
        tensor.bytes_before,
        tensor.bytes_after,
        skipped_reason=tensor.skipped_reason,
    )


def _quantized(tensor: PlannedTensor, coding: Coding, index: int, matrix: QuantizedMatrix) -> LayerReport:
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
    )


def _rounded(value: float) -> float:
    """Keep the digits that do not depend on how many threads summed."""
    return float(f"{value:.8g}")


def _index(layouts: Mapping[str, Header]) -> dict[str, Any]:
    weight_map = {info.name: shard for shard, header in layouts.items() for info in header.tensors}
    total = sum(header.data_bytes for header in layouts.values())
    return {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
