"""What a job would do and cost, and whether it can be done: the checks of `POST /v1/plans` and `POST /v1/jobs`."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from sqlalchemy.orm import Session

from app.core.problems import DiskFullProblem, ValidationProblem
from app.core.recent import Recent
from app.db.tables import Model
from app.models import service as models
from app.plans.architectures import EVALUABLE_MODEL_TYPES
from app.plans.pushes import check_push
from app.plans.texts import check_texts
from app.plans.translate import quantization_config
from app.settings import Settings
from app.storage import BlobStore
from app.workers.capacity import Capacity, choose_class
from nupes_client.schemas.plans import Plan, PlannedFormat, PlannedLayer
from nupes_client.schemas.specs import Device, JobCreate, JobSpec
from nupes_core.config import QuantizationConfig
from nupes_core.errors import NoQuantizableLayersError, UnsupportedArchitectureError
from nupes_core.formats import get_format
from nupes_core.plan import Plan as CorePlan
from nupes_core.plan import ShardPlan, plan_headers

_RECENT: Recent[CorePlan] = Recent(20_000)
"""Plans, weighed by their tensors (about 1 kB each). The id of a model is never given to another, and what was
registered under it never changes."""


@dataclass(frozen=True)
class Prepared:
    """A job that passed all checks.

    Attributes:
        model: what is quantized.
        plan: the prediction.
        worker_classes: device classes of live workers that it fits on; empty when none reported in.
        device_class: the queue the job goes to.
        shards: files that several workers can do at once; empty for a job that one worker does.
    """

    model: Model
    plan: CorePlan
    worker_classes: tuple[str, ...]
    device_class: str
    shards: tuple[ShardPlan, ...] = ()


def prepare(session: Session, settings: Settings, store: BlobStore, tenant_id: str, spec: JobCreate) -> Prepared:
    """Check a job as far as that is possible without reading a tensor.

    Raises:
        NotFoundError: the model or a text is not there, or is another tenant's.
        ValidationProblem: a text is not complete or is no text, no worker has the memory, or there is no such secret.
        DiskFullProblem: the result would leave too little disk.
        NupesError: invalid settings, an unknown architecture, nothing to quantize.
    """
    model = models.get(session, tenant_id, spec.model.id)
    _check_architecture(spec, model)
    check_texts(session, store, tenant_id, spec)
    check_push(session, settings, tenant_id, spec)
    config = quantization_config(spec)
    _check_calibration(spec, config)
    plan = _predicted(session, spec, config)
    _check_layers(plan)
    _check_disk(settings, store, plan.disk_bytes)
    fitting = _fitting_classes(plan, Capacity.of(session), spec.device)
    learns = spec.optimize.mode == "data_driven"
    shards = _shards(settings, spec, config, plan)
    return Prepared(model, plan, fitting, choose_class(spec.device, fitting, learns=learns), shards)


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
        artifact_bytes=plan.formats[0].bytes_after,
        formats=[PlannedFormat(**asdict(each), adds=get_format(each.format).adds) for each in plan.formats],
        bits_per_weight=plan.bits_per_weight,
        peak_memory_bytes=plan.peak_memory_bytes,
        disk_bytes=plan.disk_bytes,
        seconds=plan.seconds,
        worker_classes=list(prepared.worker_classes),
        device_class=prepared.device_class,
    )


def _predicted(session: Session, spec: JobSpec, config: QuantizationConfig) -> CorePlan:
    """Return the plan for all formats: what was found for an equal wish of late, or found now."""
    context = spec.evaluation.context if spec.evaluation else None
    wish = (spec.model.id, config, context, tuple(spec.formats))
    known = _RECENT.get(wish)
    if known is not None:
        return known
    headers, model_config = models.blueprint(session, spec.model.id)
    plan = plan_headers(headers, model_config, config, formats=spec.formats, evaluation_context=context)
    _RECENT.put(wish, plan, weight=sum(len(part.tensors) for part in plan.parts))
    return plan


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
    for part in plan.parts:
        if part.quantized:
            continue
        reasons = sorted({tensor.skipped_reason for tensor in part.skipped if tensor.skipped_reason})
        names = " and ".join(figures.format for figures in part.formats)
        raise NoQuantizableLayersError(
            f"none of the {len(part.tensors)} tensors of the model would be quantized for {names}",
            hint=f"Reasons: {'; '.join(reasons[:5])}. Look at layers.exclude, layers.overrides and group_size.",
        )


def _check_disk(settings: Settings, store: BlobStore, needed: int) -> None:
    free = store.free_bytes()
    if free - needed < settings.min_free_disk_bytes:
        raise DiskFullProblem(
            f"the result takes {needed} bytes; {free} are free and {settings.min_free_disk_bytes} must stay so"
        )


def _shards(settings: Settings, spec: JobSpec, config: QuantizationConfig, plan: CorePlan) -> tuple[ShardPlan, ...]:
    """Return the files to do one by one, where they can be and it is worth starting a process for each."""
    if not config.splits or spec.calibration is not None or plan.bytes_before < settings.fan_out_bytes:
        return ()
    shards = plan.shards()
    return shards if len(shards) > 1 else ()


def _fitting_classes(plan: CorePlan, capacity: Capacity, device: Device) -> tuple[str, ...]:
    """Device classes, of those the user allows, with a live worker that has the memory."""
    fitting = capacity.fitting(plan.peak_memory_bytes, device)
    allowed = capacity.allowed(device)
    if allowed and not fitting:
        largest = max(capacity.largest[name] or 0 for name in allowed)
        raise ValidationProblem(
            f"the job needs {plan.peak_memory_bytes} bytes of memory; the largest worker has {largest}",
            code="does_not_fit",
            hint="Start a worker with more memory, leave out the largest layers with layers.exclude, or measure "
            'nothing: "evaluation": null.',
        )
    return fitting
