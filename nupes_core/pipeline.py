"""A model folder in, a quantized model folder out: tensor by tensor, in bounded memory, for any architecture."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from nupes_core.calibration import CalibrationSource, read_samples
from nupes_core.checkpoint import ShardWriter, tensor_bytes
from nupes_core.config import QuantizationConfig
from nupes_core.datadriven.driver import Reporting
from nupes_core.datadriven.folder import Calibrated, calibrate
from nupes_core.diskfile import place_file, write_file
from nupes_core.errors import DiskFullError, InvalidConfigError, NoQuantizableLayersError
from nupes_core.formats import Format, get_format
from nupes_core.globalexponent import Matrix, global_exponent
from nupes_core.header import Header
from nupes_core.manifest import hash_file, write_manifest
from nupes_core.modelfolder import CONFIG_NAME, INDEX_NAME, SINGLE_NAME, ModelFolder, carried_bytes, open_folder
from nupes_core.plan import Plan, plan_headers, shard_layout
from nupes_core.planned import Coding, PlannedTensor
from nupes_core.report import FormatFigures, LayerReport, MetricCallback, Progress, ProgressCallback, Report, Share
from nupes_core.samples import Samples
from nupes_core.sharded import FinishedShard, read_finished, write_report
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
    finished: Sequence[str | Path] = (),
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
        formats: names of `nupes_core.formats.FORMATS`. Those that cannot hold the codes of the first are quantized
            for themselves, one after the other.
        source: origin of the model, for the manifest.
        finished: results of `quantize_shard`, which are taken instead of doing that work here. Those of another release
            or of other settings are passed over.

    Returns:
        Figures per layer and totals, of the format named first; `formats` has the sizes of each.

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
    plan = plan_headers(folder.headers, folder.config, config, formats=formats)
    _refuse_empty(plan)
    names = [figures.format for figures in plan.formats]
    work = WorkFolder(workdir) if workdir is not None else None
    taken = read_finished(finished, config, names) if config.splits else {}
    if config.needs_calibration:
        samples = read_samples(folder, calibration, config.calibration, seed=config.seed)
    with ExitStack() as stack:
        staging = stack.enter_context(_staged(Path(dst), plan.artifact_bytes))
        place = staging.joinpath if len(names) > 1 else lambda _: staging
        runs = _runs(folder, plan, place, progress, work, taken)
        if config.needs_calibration:
            blocks = work or WorkFolder(stack.enter_context(_scratch(Path(dst))))
            for run in runs:
                run.calibrate(samples, blocks, on_metric)
        inputs = _hash_inputs(folder, taken, progress)
        on_bytes = _ByteCounter("packaging", plan.artifact_bytes, progress)
        layers = [run.weights() for run in runs]
        plan = replace(plan, formats=_measured(plan.formats, {name: size for run in runs for name, size in run.pack()}))
        seconds = time.monotonic() - started
        finishing = zip(runs, layers, strict=True)
        reports = [run.finish(done, plan, inputs, source, seconds, on_bytes) for run, done in finishing]
        outputs = {name: found for report in reports for name, found in report.extra["outputs"].items()}
        return replace(reports[0], extra={**reports[0].extra, "outputs": outputs})


def quantize_shard(
    src: str | Path,
    dst: str | Path,
    config: QuantizationConfig,
    *,
    progress: ProgressCallback | None = None,
    workdir: str | Path | None = None,
    formats: Sequence[str] = ("nupes",),
) -> FinishedShard:
    """Quantize one file of a checkpoint, for `quantize(finished=…)`; needs memory for its largest tensor.

    Args:
        src: folder with that file and `config.json` alone; no index.
        dst: new or empty folder for `<format>/model.safetensors` and `shard.json`. It appears whole or not at all.
        config: what to do; the same for all files.
        progress: called at each matrix and hashed chunk.
        workdir: folder where finished matrices are committed; None keeps nothing.
        formats: names of `nupes_core.formats.FORMATS`.

    Raises:
        InvalidConfigError: with these settings the result depends on other files too, or `dst` is in use.
        UnsafeFileError, NumericsError, DiskFullError: as in `quantize`.
    """
    if not config.splits:
        raise InvalidConfigError("data, or one exponent for the whole model, need all files of a checkpoint at once")
    folder = open_folder(src)
    plan = plan_headers(folder.headers, folder.config, config, formats=formats)
    work = WorkFolder(workdir) if workdir is not None else None
    (name,) = folder.headers
    with _staged(Path(dst), plan.artifact_bytes) as staging:
        runs = _runs(folder, plan, staging.joinpath, progress, work, {})
        source = _hash_inputs(folder, {}, progress)[name]
        layers = {fmt: done for run in runs for fmt, done in dict.fromkeys(run.names, run.weights()).items()}
        done = FinishedShard(Path(dst), name, source, layers)
        write_report(staging, done, config)
    return done


_WEIGHT_SUFFIXES = (".safetensors", ".gguf", ".onnx")


@dataclass(frozen=True)
class _Output:
    """One artifact being written."""

    path: Path
    format: Format


class _Run:
    """One quantization, for formats of one recipe: what it reads, what it decided, how far it is."""

    def __init__(
        self,
        folder: ModelFolder,
        plan: Plan,
        outputs: Sequence[_Output],
        share: Share,
        work: WorkFolder | None,
        finished: Mapping[str, FinishedShard],
    ) -> None:
        self.folder, self.plan, self.config = folder, plan, plan.config
        self.names = [output.format.name for output in outputs]
        self._outputs, self._share = outputs, share
        self._finished = finished
        self._work = work
        self._calibrated = Calibrated()
        self._outputs_of_probes: dict[str, Any] = {}
        self._done = 0
        self._shards: dict[str, list[PlannedTensor]] = {shard: [] for shard in folder.headers}
        for tensor in plan.tensors:
            self._shards[tensor.shard].append(tensor)

    def calibrate(self, samples: Samples, work: WorkFolder, on_metric: MetricCallback | None) -> None:
        """Run the model on the samples and quantize its blocks by what they do."""
        with Checkpoint(self.folder) as checkpoint:
            self._calibrated = calibrate(
                self.folder,
                checkpoint,
                self.plan.quantized,
                self.config,
                samples,
                work,
                Reporting(self._share, self._named(on_metric)),
                self._shared_exponent,
            )

    def weights(self) -> tuple[LayerReport, ...]:
        """Write the weights; return the figures of the tensors."""
        for output in self._outputs:
            output.path.mkdir(exist_ok=True)
        with Checkpoint(self.folder) as checkpoint:
            return self._quantize(checkpoint, self._outputs)

    def pack(self) -> Iterator[tuple[str, int]]:
        """Write everything but weights, manifest and card; yield the formats and the bytes of their weight files."""
        for output in self._outputs:
            self._write_small_files(output)
            files = [path for path in output.path.iterdir() if path.suffix in _WEIGHT_SUFFIXES]
            yield output.format.name, sum(path.stat().st_size for path in files)

    def finish(
        self,
        layers: tuple[LayerReport, ...],
        whole: Plan,
        inputs: Mapping[str, Mapping[str, Any]],
        source: Mapping[str, Any] | None,
        seconds: float,
        on_bytes: _ByteCounter,
    ) -> Report:
        """Write manifests and cards and return the report of the first format; `whole` is the plan of all runs."""
        figures = {each.format: each for each in whole.formats}
        reports = [self._report(layers, figures[name], whole, seconds) for name in self.names]
        for output, report in zip(self._outputs, reports, strict=True):
            write_manifest(
                output.path,
                format_name=output.format.name,
                config=self.config,
                report=report,
                inputs=inputs,
                source=source,
                findings=self.folder.findings,
                on_bytes=on_bytes,
            )
        return reports[0]

    def _named(self, on_metric: MetricCallback | None) -> MetricCallback | None:
        """Tell the curves of a second run from those of the first."""
        if on_metric is None or self._share.index == 0:
            return on_metric
        name = self.names[0]
        return lambda metric: on_metric(replace(metric, series=f"{metric.series} ({name})"))

    def _quantize(self, checkpoint: Checkpoint, outputs: Sequence[_Output]) -> tuple[LayerReport, ...]:
        recipe = outputs[0].format.recipe
        work = TensorWork(checkpoint, recipe, self._work, self._shared_exponent, self._calibrated.layers)
        layers: list[LayerReport] = []
        for shard, tensors in self._shards.items():
            if shard in self._finished:
                layers += self._take(self._finished[shard], tensors, outputs)
                continue
            with ExitStack() as stack:
                writers = [stack.enter_context(self._writer(output, shard, tensors)) for output in outputs]
                for tensor in tensors:
                    layers += self._tensor(tensor, checkpoint, work, outputs, writers)
        return tuple(layers)

    def _take(
        self, done: FinishedShard, tensors: Sequence[PlannedTensor], outputs: Sequence[_Output]
    ) -> tuple[LayerReport, ...]:
        for output in outputs:
            header = shard_layout(tensors, output.format)[1]
            place_file(done.file(output.format.name, header), output.path / self._output_name(done.name))
        self._advance(sum(tensor.params for tensor in tensors), done.name)
        return done.layers[self.names[0]]

    @cached_property
    def _shared_exponent(self) -> float | None:
        with Checkpoint(self.folder) as checkpoint:
            matrices = [_matrix(checkpoint, tensor) for tensor in self.plan.quantized]
            return global_exponent(matrices, self.config.weights)

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
        self._share(Progress("quantizing", self._done, self.plan.params, "params", message))

    def _writer(self, output: _Output, shard: str, tensors: Sequence[PlannedTensor]) -> ShardWriter:
        head, header = shard_layout(tensors, output.format)
        return ShardWriter(output.path / self._output_name(shard), head, header)

    def _output_name(self, shard: str) -> str:
        return shard if self.folder.indexed else SINGLE_NAME

    def _write_small_files(self, output: _Output) -> None:
        """Write everything but weights, manifest and card."""
        reached = self._calibrated.layers
        written = tuple(each if each.name in reached else each.without_data() for each in self.plan.tensors)
        config = output.format.config(self.folder.config, written, self.config.to_dict())
        write_file(output.path / CONFIG_NAME, _json(config))
        if self.folder.indexed:
            layouts = {shard: shard_layout(tensors, output.format)[1] for shard, tensors in self._shards.items()}
            write_file(output.path / INDEX_NAME, _json(_index(layouts)))
        for name in self.folder.carried:
            write_file(output.path / name, carried_bytes(self.folder.path / name))
        if pack := _CONTAINERS.get(output.format.name):
            outputs = pack(output.path, written)
            if outputs is not None:
                self._outputs_of_probes[output.format.name] = outputs

    def _report(self, layers: tuple[LayerReport, ...], figures: FormatFigures, whole: Plan, seconds: float) -> Report:
        return Report(
            layers=layers,
            params=self.plan.params,
            quantized_params=self.plan.quantized_params,
            bytes_before=self.plan.bytes_before,
            bytes_after=figures.bytes_after,
            bits_per_weight=self.plan.bits_per_weight,
            coverage_pct=self.plan.coverage_pct,
            coverage_bytes_pct=self.plan.coverage_bytes_pct,
            seconds=seconds,
            formats=whole.formats,
            extra={"findings": list(self.folder.findings), "outputs": self._outputs_of_probes},
        )


def _pack_gguf(folder: Path, tensors: tuple[PlannedTensor, ...]) -> None:
    from nupes_core.ggufcontainer import pack

    pack(folder, tensors)


def _pack_onnx(folder: Path, tensors: tuple[PlannedTensor, ...]) -> dict[str, Any] | None:
    from nupes_core.onnxcontainer import pack

    outputs = pack(folder, tensors)
    return None if outputs is None else outputs.to_dict()


_Pack = Callable[[Path, tuple[PlannedTensor, ...]], dict[str, Any] | None]

_CONTAINERS: Mapping[str, _Pack] = {"gguf": _pack_gguf, "onnx": _pack_onnx}
"""What makes one file of the tensors and the small files of an artifact, for formats that want one.

It returns the outputs of a probe of the model, where one was at hand.
"""


def _runs(
    folder: ModelFolder,
    plan: Plan,
    place: Callable[[str], Path],
    progress: ProgressCallback | None,
    work: WorkFolder | None,
    finished: Mapping[str, FinishedShard],
) -> list[_Run]:
    """Return a run for each part of the plan; `place` says where the artifact of a format goes."""
    runs = []
    for index, part in enumerate(plan.parts):
        formats = [get_format(figures.format) for figures in part.formats]
        outputs = [_Output(place(fmt.name), fmt) for fmt in formats]
        runs.append(_Run(folder, part, outputs, Share(index, len(plan.parts), progress), work, finished))
    return runs


def _hash_inputs(
    folder: ModelFolder, finished: Mapping[str, FinishedShard], progress: ProgressCallback | None
) -> dict[str, dict[str, Any]]:
    own = [name for name in (CONFIG_NAME, INDEX_NAME) if (folder.path / name).is_file()]
    names = sorted({*own, *folder.headers, *folder.carried})
    hashed = [name for name in names if name not in finished]
    on_bytes = _ByteCounter("validating", sum((folder.path / name).stat().st_size for name in hashed), progress)
    known = {name: done.source for name, done in finished.items()}
    return {name: dict(known.get(name) or hash_file(folder.path / name, on_bytes)) for name in names}


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


def _measured(planned: Sequence[FormatFigures], sizes: Mapping[str, int]) -> tuple[FormatFigures, ...]:
    """Return the figures with sizes as they are; a container holds metadata that the plan does not know."""
    return tuple(replace(figures, bytes_after=sizes[figures.format]) for figures in planned)


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
    for part in plan.parts:
        if part.quantized_params:
            continue
        names = " and ".join(figures.format for figures in part.formats)
        reasons = sorted({tensor.skipped_reason or "" for tensor in part.skipped})[:5] or ["the model is empty"]
        raise NoQuantizableLayersError(
            f"none of the {len(part.tensors)} tensors is left to quantize for {names}: {'; '.join(reasons)}",
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
        histogram=matrix.histogram,
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
