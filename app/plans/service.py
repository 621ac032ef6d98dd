"""What a job would do and cost, and whether it can be done: the checks of `POST /v1/plans` and `POST /v1/jobs`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy.orm import Session

from app.core.clock import now
from app.core.problems import DiskFullProblem, ValidationProblem
from app.db.tables import Model, Worker
from app.models import service as models
from app.plans import repository
from app.plans.architectures import EVALUABLE_MODEL_TYPES
from app.plans.texts import check_texts
from app.plans.translate import quantization_config
from app.settings import Settings
from app.storage import BlobStore
from nupes_client.schemas.jobs import JobCreate, JobSpec
from nupes_client.schemas.plans import Plan, PlannedLayer
from nupes_core.config import QuantizationConfig
from nupes_core.errors import NoQuantizableLayersError, UnsupportedArchitectureError
from nupes_core.plan import Plan as CorePlan
from nupes_core.plan import plan_headers

SEEN_S = 60
"""A worker that did not report in for this long is not counted on."""

DEFAULT_CLASS = "cpu"
NATIVE = "nupes"


@dataclass(frozen=True)
class Prepared:
    """A job that passed all checks.

    Attributes:
        plan: the prediction.
        disk_bytes: of all formats asked for.
        worker_classes: device classes of live workers that it fits on; empty when none reported in.
    """

    plan: CorePlan
    disk_bytes: int
    worker_classes: tuple[str, ...]

    @property
    def device_class(self) -> str:
        """The queue the job goes to; data-free jobs need no accelerator."""
        if not self.worker_classes or DEFAULT_CLASS in self.worker_classes:
            return DEFAULT_CLASS
        return self.worker_classes[0]


def prepare(session: Session, settings: Settings, store: BlobStore, tenant_id: str, spec: JobSpec) -> Prepared:
    """Check a job as far as that is possible without reading a tensor.

    Raises:
        NotFoundError: the model or a text is not there, or is another tenant's.
        ValidationProblem: a text is not complete or is no text, or no worker has the memory.
        DiskFullProblem: the result would leave too little disk.
        NupesError: invalid settings, an unknown architecture, nothing to quantize.
    """
    model = models.get(session, tenant_id, spec.model.id)
    _check_architecture(spec, model)
    check_texts(session, store, tenant_id, spec)
    headers = models.headers(model)
    config = quantization_config(spec)
    _check_calibration(spec, config)
    plan = plan_headers(headers, model.config, config)
    _check_layers(plan)
    others = tuple(name for name in spec.formats if name != NATIVE)
    disk_bytes = plan.disk_bytes
    if others:
        disk_bytes += plan_headers(headers, model.config, config, formats=others).disk_bytes
    _check_disk(settings, store, disk_bytes)
    workers = repository.workers_seen_since(session, now() - timedelta(seconds=SEEN_S))
    return Prepared(plan, disk_bytes, _fitting_classes(plan, workers))


def predict(prepared: Prepared, body: JobCreate) -> Plan:
    """The answer of `POST /v1/plans`."""
    plan = prepared.plan
    return Plan(
        config=JobSpec.model_validate(body.model_dump(include=set(JobSpec.model_fields))),
        layers=[PlannedLayer.model_validate(tensor.to_dict()) for tensor in plan.tensors],
        params=plan.params,
        eligible_params=plan.quantized_params,
        coverage_pct=plan.coverage_pct,
        coverage_bytes_pct=plan.coverage_bytes_pct,
        bytes_before=plan.bytes_before,
        artifact_bytes=plan.artifact_bytes,
        bits_per_weight=plan.bits_per_weight,
        peak_memory_bytes=plan.peak_memory_bytes,
        disk_bytes=prepared.disk_bytes,
        seconds=plan.seconds,
        worker_classes=list(prepared.worker_classes),
    )


def _check_architecture(spec: JobSpec, model: Model) -> None:
    """Refuse what needs a language model, where there is none. Other models can be built, and run on data of theirs."""
    if model.model_type in EVALUABLE_MODEL_TYPES:
        return
    if spec.evaluation is not None:
        raise UnsupportedArchitectureError(
            f"a model of type {model.model_type!r} can not be built, so it can not be evaluated",
            hint='It can still be quantized on the level of tensors: send "evaluation": null.',
        )
    if spec.calibration is not None and spec.calibration.is_sampled:
        raise UnsupportedArchitectureError(
            f"a model of type {model.model_type!r} can not write a text to calibrate on",
            hint='Give data in "calibration", or quantize from the weights alone: "optimize": {"mode": "data_free"}.',
        )


def _check_calibration(spec: JobSpec, config: QuantizationConfig) -> None:
    """Refuse data that the method would leave unused, as the worker would."""
    if spec.calibration is not None and not config.needs_calibration:
        raise ValidationProblem(
            f"nothing in this job is found on data: optimize.mode is {spec.optimize.mode!r} and no activation scale is "
            "static",
            code="calibration_unused",
            pointer="/calibration",
            hint="Use optimize mode data_driven or activations with static scales, or leave calibration out.",
        )


def _check_layers(plan: CorePlan) -> None:
    if plan.quantized:
        return
    reasons = sorted({tensor.skipped_reason for tensor in plan.skipped if tensor.skipped_reason})
    raise NoQuantizableLayersError(
        f"none of the {len(plan.tensors)} tensors of the model would be quantized",
        hint=f"Reasons: {'; '.join(reasons[:5])}. Look at layers.exclude, layers.overrides and group_size.",
    )


def _check_disk(settings: Settings, store: BlobStore, needed: int) -> None:
    free = store.free_bytes()
    if free - needed < settings.min_free_disk_bytes:
        raise DiskFullProblem(
            f"the result takes {needed} bytes; {free} are free and {settings.min_free_disk_bytes} must stay so"
        )


def _fitting_classes(plan: CorePlan, workers: Sequence[Worker]) -> tuple[str, ...]:
    """Device classes with a worker that has the memory; cpu first."""
    fitting = [
        worker for worker in workers if (worker.memory_bytes or plan.peak_memory_bytes) >= plan.peak_memory_bytes
    ]
    if workers and not fitting:
        largest = max(worker.memory_bytes or 0 for worker in workers)
        raise ValidationProblem(
            f"the job needs {plan.peak_memory_bytes} bytes of memory; the largest worker has {largest}",
            code="does_not_fit",
            hint="Start a worker with more memory, or leave out the largest layers with layers.exclude.",
        )
    return tuple(sorted({worker.device_class for worker in fitting}))
