"""Child that does the work: `python -m worker.runner JOB_FOLDER`. The only one that loads torch, through nupes_core.

It has no network, no database and no secrets; it reads `model/`, `text.txt`, `calibration` and the orders, writes
`pieces/` and `out/`, and says what happens by events.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import nupes_core
from nupes_core.config import QuantizationConfig
from nupes_core.errors import CalibrationError, DiskFullError, EvaluationError, LoadCheckError, NupesError
from nupes_core.formats import alike_groups
from nupes_core.modelfolder import ModelFolder, open_folder
from nupes_core.plan import Plan, plan_headers
from nupes_core.report import Progress, ProgressCallback, Report, Share
from worker.childmain import run_child
from worker.curves import Curves
from worker.emitter import Emitter
from worker.limits import limit_files
from worker.workfolder import JobFolder

FIDELITY_TOKENS = 8192
"""Tokens sampled from the float model where the user gave no text."""

_NOT_OF_THE_MODEL = (OSError, MemoryError, NameError, ImportError, AssertionError)
"""Trouble of the machine, and defects of ours; what else comes out of a model or a tokenizer, its files made."""

_EVALUATION_HINT = (
    'Check that config.json and tokenizer fit the weights, or send "evaluation": null to measure nothing.'
)

_CALIBRATION_HINT = (
    "Check that config.json and tokenizer fit the weights, or quantize from the weights alone: "
    '"optimize": {"mode": "data_free"}.'
)

_RUNS_THE_MODEL = frozenset({"calibrating", "evaluating"})

QUANTIZE_PHASES: Mapping[str, str] = {"validating": "planning", "quantizing": "quantizing"}
"""Phases of `nupes_core.quantize` as the job shows them: it hashes its input and, last and not shown, its output."""

_CALIBRATE_PHASES: Mapping[str, str] = {"calibrating": "calibrating", "quantizing": "quantizing"}
"""With data: samples and loading belong to the first; the input is hashed after it, and the job never goes back."""


def run(folder: JobFolder, emitter: Emitter) -> None:
    """Quantize, evaluate, package."""
    orders = folder.read_orders()
    config = QuantizationConfig.from_dict(orders["config"])
    emitter.phase("validating")
    model = open_folder(folder.model)
    for finding in model.findings:
        emitter.log(finding)
    plan = plan_headers(model.headers, model.config, config, formats=orders["formats"])
    check_disk(folder, plan, orders["min_free_disk_bytes"])
    limit_files(plan)
    if orders["evaluation"] or orders["calibration"]:
        _check_buildable(model)
    report = _quantize(folder, orders, config, emitter)
    metrics = _measured(folder, orders, config, emitter) if orders["evaluation"] else {}
    _expect(folder, report.extra["outputs"])
    _package(folder, orders, metrics, emitter)
    for layer in report.layers:
        emitter.send("layer", **asdict(layer))
    emitter.send("result", **_result(report, orders["formats"][0], metrics))


def check_disk(folder: JobFolder, plan: Plan, keep_free: int) -> None:
    """The committed tensors and the artifact are on the disk at once."""
    needed, free = 2 * plan.artifact_bytes + keep_free, shutil.disk_usage(folder.path).free
    if needed > free:
        raise DiskFullError(
            f"the job needs {needed} bytes of disk on the worker, {free} are free", hint="Free some space and retry."
        )


def _quantize(folder: JobFolder, orders: Mapping[str, Any], config: QuantizationConfig, emitter: Emitter) -> Report:
    shutil.rmtree(folder.out, ignore_errors=True)  # what an earlier attempt left half-done
    folder.outputs.unlink(missing_ok=True)
    formats = orders["formats"]
    with _calibrating(orders, emitter) as (progress, curves):
        return nupes_core.quantize(
            folder.model,
            folder.out if len(formats) > 1 else folder.out / formats[0],
            config,
            progress=progress,
            workdir=folder.pieces,
            formats=formats,
            source=orders["origin"],
            finished=sorted(folder.finished.glob("*")),
            **_data(folder, orders, curves),
        )


@contextmanager
def _calibrating(orders: Mapping[str, Any], emitter: Emitter) -> Iterator[tuple[ProgressCallback, Curves]]:
    """Where data goes through the model: curves are passed on, and what its files made fail is said to be so."""
    if not orders["calibration"]:
        yield Reporter(emitter, QUANTIZE_PHASES), Curves(emitter)
        return
    emitter.phase("calibrating")
    report = Reporter(emitter, _CALIBRATE_PHASES, shown="calibrating")
    with (
        Curves(emitter) as curves,
        _model_blamed(CalibrationError, "was run on calibration data", _CALIBRATION_HINT, report),
    ):

        def progress(step: Progress) -> None:
            curves.send_due()
            report(step)

        yield progress, curves


def _data(folder: JobFolder, orders: Mapping[str, Any], curves: Curves) -> dict[str, Any]:
    """Return what a job with calibration hands to the core besides; without a file the model writes its own text."""
    wish = orders["calibration"]
    if wish is None:
        return {}
    from nupes_core.data.calibration import CalibrationFile

    file = None if wish["kind"] == "sampled" else CalibrationFile(folder.calibration, wish["column"])
    return {"calibration": file, "on_metric": curves.add}


def _check_buildable(model: ModelFolder) -> None:
    """Find out before the work whether what runs the model can be done."""
    from nupes_core.loading import check_buildable

    check_buildable(model)


def _measured(
    folder: JobFolder, orders: Mapping[str, Any], config: QuantizationConfig, emitter: Emitter
) -> dict[str, dict[str, Any]]:
    """Evaluate, and keep outputs for the load check; return the figures of each format.

    Of formats that compute the same one is measured.

    Raises:
        EvaluationError: the code of architecture or tokenizer stumbles over what the model's files say.
    """
    emitter.phase("evaluating")
    groups = [[fmt.name for fmt in group] for group in alike_groups(orders["formats"], config)]
    metrics: dict[str, dict[str, Any]] = {}
    outputs: dict[str, Any] = {}
    for index, group in enumerate(groups):
        report = Reporter(emitter, {"evaluating": "evaluating"}, shown="evaluating")
        progress = Share(index, len(groups), report)
        with _model_blamed(EvaluationError, "was measured", _EVALUATION_HINT, report):
            metrics |= dict.fromkeys(group, _evaluate(folder, folder.out / group[0], orders, progress))
            outputs |= dict.fromkeys(group, _outputs(folder.out / group[0]))
    folder.outputs.write_text(json.dumps(outputs), encoding="utf-8")
    return metrics


def _expect(folder: JobFolder, outputs: Mapping[str, Any]) -> None:
    """Keep outputs that came up while an artifact was written, before those that it gave itself."""
    if outputs:
        known = json.loads(folder.outputs.read_bytes()) if folder.outputs.is_file() else {}
        folder.outputs.write_text(json.dumps({**known, **outputs}), encoding="utf-8")


@contextmanager
def _model_blamed(
    kind: type[CalibrationError | EvaluationError], when: str, hint: str, report: Reporter
) -> Iterator[None]:
    """While the model runs, take what comes out of its code for a fault of its files."""
    try:
        yield
    except LoadCheckError as error:
        raise kind(error.message, hint=hint) from error
    except (NupesError, *_NOT_OF_THE_MODEL):
        raise
    except Exception as error:
        if report.shown not in _RUNS_THE_MODEL:
            raise
        raise kind(f"the model or its tokenizer failed while it {when} ({type(error).__name__})", hint=hint) from error


def _evaluate(
    folder: JobFolder, quantized: Path, orders: Mapping[str, Any], progress: ProgressCallback
) -> dict[str, Any]:
    """Compare with the float model on the user's text, or on text that the float model writes itself."""
    from nupes_core.evaluation import evaluate, fidelity

    wish = orders["evaluation"]
    if folder.text.is_file():
        measured = evaluate(
            quantized,
            folder.text,
            context=wish["context"],
            baseline=folder.model,
            max_tokens=wish["max_tokens"],
            progress=progress,
        )
    else:
        tokens = min(wish["max_tokens"], FIDELITY_TOKENS)
        measured = fidelity(
            quantized, folder.model, tokens=tokens, context=wish["context"], seed=orders["seed"], progress=progress
        )
    return _metrics(measured)


def _outputs(quantized: Path) -> dict[str, Any]:
    """Return some outputs of this process, for the fresh one that loads the artifact to compare with."""
    from nupes_core.probe import probe_folder

    return probe_folder(quantized).to_dict()


def _metrics(measured: nupes_core.Evaluation) -> dict[str, Any]:
    """Return the figures in the shape of `nupes_client.schemas.jobs.MetricsPair`."""
    return {
        "protocol": measured.protocol,
        "context": measured.context,
        "text_sha256": measured.text_sha256,
        "text_origin": "sampled" if measured.source == "sampled" else "user",
        "baseline": {
            "perplexity": measured.baseline_perplexity,
            "kl": 0.0,
            "top1_agreement": 1.0,
            "tokens": measured.tokens,
        },
        "quantized": {
            "perplexity": measured.perplexity,
            "kl": measured.kl,
            "top1_agreement": measured.top1_agreement,
            "tokens": measured.tokens,
        },
    }


def _package(
    folder: JobFolder, orders: Mapping[str, Any], metrics: Mapping[str, Mapping[str, Any]], emitter: Emitter
) -> None:
    from nupes_core.manifest import finalize

    emitter.phase("packaging")
    for name in orders["formats"]:
        finalize(folder.out / name, metrics=metrics.get(name))


class Reporter:
    """Passes on the progress of the core; `shown` is the phase of the job that the user sees."""

    def __init__(self, emitter: Emitter, phases: Mapping[str, str], shown: str = "") -> None:
        self._emitter = emitter
        self._phases = phases
        self.shown = shown

    def __call__(self, progress: Progress) -> None:
        """Say how far the core is."""
        if phase := self._phases.get(progress.phase):
            if phase != self.shown:
                self._emitter.phase(phase)
            self.shown = phase
            self._emitter.progress(phase, progress.current, progress.total, progress.unit)


def _result(report: Report, first: str, metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the totals in the shape of `nupes_client.schemas.jobs.JobResult`."""
    return {
        "bytes_before": report.bytes_before,
        "bytes_after": report.bytes_after,
        "bits_per_weight": report.bits_per_weight,
        "coverage_pct": report.coverage_pct,
        "quantized_params": report.quantized_params,
        "params": report.params,
        "quantize_seconds": report.seconds,
        "metrics": metrics.get(first),
        "formats": [{**asdict(each), "metrics": metrics.get(each.format)} for each in report.formats],
    }


if __name__ == "__main__":
    run_child(run)
