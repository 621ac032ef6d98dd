"""A model folder in, a quantized model folder out: tensor by tensor, in bounded memory, for any architecture."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from nupes_core.config import QuantizationConfig
from nupes_core.data.calibration import CalibrationSource, read_samples
from nupes_core.errors import InvalidConfigError, NoQuantizableLayersError
from nupes_core.formats import get_format
from nupes_core.inputhashes import ByteCounter, hash_inputs
from nupes_core.modelfolder import open_folder
from nupes_core.plan import Plan, plan_headers
from nupes_core.report import FormatFigures, MetricCallback, ProgressCallback, Report
from nupes_core.run import runs_of
from nupes_core.sharded import FinishedShard, read_finished, write_report
from nupes_core.staging import scratch, staged
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
        UnsupportedArchitectureError: data-driven, and transformers cannot build the model; or a format that cannot hold
            this kind of model or tokenizer.
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
    for name in names:
        get_format(name).check_folder(folder.path)
    work = WorkFolder(workdir) if workdir is not None else None
    taken = read_finished(finished, config, names) if config.splits else {}
    if config.needs_calibration:
        samples = read_samples(folder, calibration, config.calibration, seed=config.seed)
    with ExitStack() as stack:
        staging = stack.enter_context(staged(Path(dst), plan.artifact_bytes))
        place = staging.joinpath if len(names) > 1 else lambda _: staging
        runs = runs_of(folder, plan, place, progress, work, taken)
        if config.needs_calibration:
            blocks = work or WorkFolder(stack.enter_context(scratch(Path(dst))))
            for run in runs:
                run.calibrate(samples, blocks, on_metric)
        inputs = hash_inputs(folder, taken, progress)
        on_bytes = ByteCounter("packaging", plan.artifact_bytes, progress)
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
    with staged(Path(dst), plan.artifact_bytes) as staging:
        runs = runs_of(folder, plan, staging.joinpath, progress, work, {})
        source = hash_inputs(folder, {}, progress)[name]
        layers = {fmt: done for run in runs for fmt, done in dict.fromkeys(run.names, run.weights()).items()}
        done = FinishedShard(Path(dst), name, source, layers)
        write_report(staging, done, config)
    return done


def _measured(planned: Sequence[FormatFigures], sizes: Mapping[str, int]) -> tuple[FormatFigures, ...]:
    """Return the figures with sizes as they are; a container holds metadata that the plan does not know."""
    return tuple(replace(figures, bytes_after=sizes[figures.format]) for figures in planned)


def _refuse_unused(calibration: CalibrationSource, config: QuantizationConfig) -> None:
    if calibration is not None and not config.needs_calibration:
        raise InvalidConfigError(
            f"calibration data was given, but optimize is {config.optimize!r} and no activation scale is static",
            hint="Leave the calibration data out, or use optimize 'data_driven'.",
        )


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
