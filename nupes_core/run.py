"""One quantization of a model folder, for all formats that can hold the same codes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from nupes_core.checkpoint import ShardWriter, tensor_bytes
from nupes_core.data.samples import Samples
from nupes_core.datadriven.driver import Reporting
from nupes_core.datadriven.folder import Calibrated, calibrate
from nupes_core.diskfile import place_file, write_file
from nupes_core.formats import Format, get_format
from nupes_core.header import Header
from nupes_core.inputhashes import ByteCounter
from nupes_core.layerreports import quantized_layer, skipped_layer
from nupes_core.manifest import write_manifest
from nupes_core.modelfolder import CONFIG_NAME, INDEX_NAME, SINGLE_NAME, ModelFolder, carried_bytes
from nupes_core.plan import Plan, shard_layout
from nupes_core.planned import PlannedTensor
from nupes_core.quantizer.globalexponent import Matrix, global_exponent
from nupes_core.report import FormatFigures, LayerReport, MetricCallback, Progress, ProgressCallback, Report, Share
from nupes_core.sharded import FinishedShard
from nupes_core.sources import Checkpoint
from nupes_core.tensorwork import TensorWork, check_finite, read_matrix
from nupes_core.workfolder import WorkFolder

_WEIGHT_SUFFIXES = (".safetensors", ".gguf", ".onnx")


@dataclass(frozen=True)
class _Output:
    """One artifact being written."""

    path: Path
    format: Format


class Run:
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
        on_bytes: ByteCounter,
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
            yield skipped_layer(tensor)
            return
        for index, matrix in enumerate(work.matrices(tensor, tensor.coding)):
            for output, writer in zip(outputs, writers, strict=True):
                for name, content in output.format.pieces(tensor, matrix.weight, matrix.decoded, matrix.inputs):
                    writer.write(name, content, offset=index * content.nbytes)
            yield quantized_layer(tensor, tensor.coding, index, matrix)
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


def runs_of(
    folder: ModelFolder,
    plan: Plan,
    place: Callable[[str], Path],
    progress: ProgressCallback | None,
    work: WorkFolder | None,
    finished: Mapping[str, FinishedShard],
) -> list[Run]:
    """Return a run for each part of the plan; `place` says where the artifact of a format goes."""
    found = []
    for index, part in enumerate(plan.parts):
        formats = [get_format(figures.format) for figures in part.formats]
        outputs = [_Output(place(fmt.name), fmt) for fmt in formats]
        found.append(Run(folder, part, outputs, Share(index, len(plan.parts), progress), work, finished))
    return found


def _matrix(checkpoint: Checkpoint, tensor: PlannedTensor) -> Matrix:
    """Return the (first) matrix of a tensor, for sampling."""
    coding = tensor.coding
    assert coding is not None, f"{tensor.name} is not quantized"
    view = coding.view
    return Matrix(tensor.name, view.rows, view.cols, lambda: read_matrix(checkpoint, tensor.name, coding, 0))


def _index(layouts: Mapping[str, Header]) -> dict[str, Any]:
    weight_map = {info.name: shard for shard, header in layouts.items() for info in header.tensors}
    total = sum(header.data_bytes for header in layouts.values())
    return {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def _pack_gguf(folder: Path, tensors: tuple[PlannedTensor, ...]) -> None:
    from nupes_core.gguf.container import pack

    pack(folder, tensors)


def _pack_onnx(folder: Path, tensors: tuple[PlannedTensor, ...]) -> dict[str, Any] | None:
    from nupes_core.onnx.container import pack

    outputs = pack(folder, tensors)
    return None if outputs is None else outputs.to_dict()


_Pack = Callable[[Path, tuple[PlannedTensor, ...]], dict[str, Any] | None]

_CONTAINERS: Mapping[str, _Pack] = {"gguf": _pack_gguf, "onnx": _pack_onnx}
"""What makes one file of the tensors and the small files of an artifact, for formats that want one.

It returns the outputs of a probe of the model, where one was at hand.
"""
