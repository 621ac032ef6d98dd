"""From the rows of a job to the orders that its children carry out."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.db.tables import Job, JobShard, JobShardFile, Model, ModelFile, Upload
from app.jobs import shards
from app.plans.translate import quantization_config
from app.settings import Settings
from app.workers.capacity import count_taking
from nupes_client.schemas.jobs import ShardStatus
from nupes_client.schemas.problems import JobErrorCode
from nupes_client.schemas.specs import CalibrationSpec, JobSpec, TextRef
from nupes_core.modelfolder import CONFIG_NAME
from worker.failures import JobFailedError
from worker.phases import Timeline
from worker.workfolder import SHARD, job_home


@dataclass(frozen=True)
class Orders:
    """What to do, JSON-ready for the children, how its phases lie in time, how long and how often it may be tried.

    Attributes:
        sharded: its files are to be done one by one, as other workers could do some of them.
        pushes: the result goes to a hub.
        published: the result is there already, of an earlier attempt or of an equal job.
    """

    content: dict[str, Any]
    timeline: Timeline
    timeout_s: int
    max_attempts: int
    sharded: bool = False
    pushes: bool = False
    published: bool = False


def read_orders(session: Session, settings: Settings, job_id: str) -> Orders:
    """Read job, model and texts.

    Raises:
        JobFailedError: the model or a text is gone.
    """
    job = session.get_one(Job, job_id)
    spec = JobSpec.model_validate(job.config)
    model = session.get(Model, job.model_id)
    if model is None:
        raise JobFailedError(JobErrorCode.MODEL_NOT_FOUND, f"model {job.model_id} was deleted")
    content = {
        "source": model.source,
        "files": _files(session, model.id),
        "text_sha256": _evaluation_text(session, job.tenant_id, spec),
        "calibration": _calibration(session, job.tenant_id, spec.calibration),
        "config": quantization_config(spec).to_dict(),
        "formats": list(spec.formats),
        "evaluation": spec.evaluation.model_dump(mode="json") if spec.evaluation else None,
        "origin": {**model.source, "model_id": model.id, "name": model.name, "license": model.license},
        "seed": spec.seed,
        "min_free_disk_bytes": settings.min_free_disk_bytes,
        "finished": [_finished(file) for file in shards.files_of(session, job_id)],
    }
    timeline = Timeline.of(
        data_driven=spec.optimize.mode == "data_driven",
        calibrated=spec.calibration is not None,
        pushed=spec.push_to_hub is not None,
    )
    return Orders(
        content,
        timeline,
        job.timeout_s,
        job.max_attempts,
        sharded=_is_shared(session, job),
        pushes=spec.push_to_hub is not None,
        published=job.result is not None,
    )


def read_shard_orders(session: Session, settings: Settings, job_id: str, position: int) -> Orders:
    """Read what one file of a job takes: that file and `config.json` of the model, and no text.

    Raises:
        JobFailedError: the model is gone.
    """
    orders = read_orders(session, settings, job_id)
    name = session.get_one(JobShard, (job_id, position)).name
    content = {
        **orders.content,
        "files": [file for file in orders.content["files"] if file["path"] in {name, CONFIG_NAME}],
        "text_sha256": None,
        "evaluation": None,
        "finished": [],
        "publish": [SHARD],
        "pieces": str(job_home(settings.work_dir, job_id) / "pieces"),
    }
    return replace(orders, content=content)


def _is_shared(session: Session, job: Job) -> bool:
    """Alone, one process for all files is faster than one for each; what was finished before is used all the same."""
    rows = shards.of_job(session, job.id)
    open_ = any(row.status != ShardStatus.DONE for row in rows)
    begun = any(row.status != ShardStatus.QUEUED for row in rows)
    return open_ and (begun or count_taking(session, job.device_class) > 1)


def threads(settings: Settings) -> int:
    """CPU threads of a runner."""
    return settings.threads or len(os.sched_getaffinity(0))


def _finished(file: JobShardFile) -> dict[str, Any]:
    return {"position": file.position, "path": file.path, "size": file.size, "sha256": file.sha256}


def _files(session: Session, model_id: str) -> list[dict[str, Any]]:
    rows = session.scalars(select(ModelFile).where(ModelFile.model_id == model_id).order_by(ModelFile.path))
    return [{"path": row.path, "size": row.size, "sha256": row.sha256} for row in rows]


def _evaluation_text(session: Session, tenant_id: str, spec: JobSpec) -> str | None:
    if spec.evaluation is None or spec.evaluation.text is None:
        return None
    return _text(session, tenant_id, spec.evaluation.text, JobErrorCode.EVAL_FAILED)


def _calibration(session: Session, tenant_id: str, spec: CalibrationSpec | None) -> dict[str, Any] | None:
    """Return where calibration data comes from; None for a job without any."""
    if spec is None:
        return None
    if spec.dataset is not None:
        return {"kind": "dataset", **spec.dataset.model_dump(mode="json")}
    if spec.text is not None:
        sha256 = _text(session, tenant_id, spec.text, JobErrorCode.CALIBRATION_FAILED)
        return {"kind": "upload", "sha256": sha256, "column": spec.column}
    return {"kind": "sampled"}


def _text(session: Session, tenant_id: str, text: TextRef, code: JobErrorCode) -> str:
    upload = session.get(Upload, text.upload_id)
    if upload is None or upload.tenant_id != tenant_id or upload.sha256 is None:
        raise JobFailedError(code, f"the text {text.upload_id} is not there", hint="Upload it again.")
    return upload.sha256
