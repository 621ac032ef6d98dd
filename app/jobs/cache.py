"""The result cache: a job that computes what an earlier one of the same tenant computed is answered from its files.

Two jobs compute the same when the bytes of model and texts, the resolved wish and the code are the same. Gates, which
only judge, are left out, and so is where the result goes: a job that has to push it gets the files and waits for a
worker. The answer is the new job's own: artifact rows to the same blobs, layers, curves, events and a verdict by its
own gates, so each of the two can be deleted without harm to the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from app.core.canonical import content_hash
from app.core.problems import NotFoundError
from app.db.tables import Artifact, Job, Model
from app.jobs import repository
from app.jobs.outcomes import PublishedFile, publish, succeed
from app.jobs.transitions import Fence
from app.jobs.views import counted_layer_view
from app.models import repository as models
from app.storage import BlobStore
from app.uploads import repository as uploads
from nupes_client.schemas.jobs import JobResult
from nupes_client.schemas.specs import JobSpec
from nupes_core.codeversion import code_version

_NOT_OF_THE_RESULT = {"model", "gates", "push_to_hub"}
"""The model counts by its bytes; the others only judge the result, or say where it goes."""

_TEXTS = ("evaluation", "calibration")
"""Parts of a wish that can name an upload."""


@dataclass(frozen=True)
class Answer:
    """An earlier job and its files, held until the end of the transaction: nobody deletes them meanwhile."""

    source: Job
    files: Sequence[Artifact]


def cache_key(session: Session, tenant_id: str, model: Model, spec: JobSpec) -> str:
    """Return the hash of all that decides the result of a job of a model, the code excepted.

    Raises:
        NotFoundError: a text is gone since the job was checked.
    """
    hashes = models.hashes_of(session, model.id)
    wish = spec.model_dump(mode="json", include=set(JobSpec.model_fields) - _NOT_OF_THE_RESULT)
    named = {part: wish[part]["text"]["upload_id"] for part in _TEXTS if (wish[part] or {}).get("text")}
    texts = uploads.get_many(session, tenant_id, set(named.values())) if named else {}
    for part, upload_id in named.items():
        if upload_id not in texts:
            raise NotFoundError("upload", upload_id)
        wish[part]["text"] = {"sha256": texts[upload_id].sha256}
    return content_hash({"model": _content(model, hashes), "wish": wish})


def lasting(session: Session, store: BlobStore, job: Job) -> bool:
    """Whether there is an answer whose bytes are all stored: asked before the transaction, for a store can be slow."""
    answer = find(session, job)
    return answer is not None and all(store.exists(file.sha256) for file in answer.files)


def find(session: Session, job: Job, *, lock: bool = False) -> Answer | None:
    """Return the newest job of the same tenant that computed what `job` would compute; with `lock` it stays."""
    source = repository.equal_job(session, job, code_version(), lock=lock)
    files = repository.files_of(session, source.id, lock=lock) if source else ()
    return Answer(source, files) if source and files else None


def answer_from(session: Session, job: Job, answer: Answer, fence: Fence | None = None) -> None:
    """Give a queued job, or one that the worker with that fence has begun, the result of an earlier one.

    It is judged by its own gates. It ends with that, unless it has to push the result.
    """
    source = answer.source
    layers = [counted_layer_view(row) for row in repository.layers(session, source.id, -1, None, histograms=True)]
    files = [_published(file) for file in answer.files]
    repository.copy_metrics(session, source.id, job.id)
    write = publish if job.config.get("push_to_hub") else succeed
    write(session, job, fence, JobResult.model_validate(source.result), layers, files, cached_from=source.id)


def _content(model: Model, hashes: Mapping[str, str | None]) -> Mapping[str, Any]:
    """What a model's bytes are known by: the hash of each file, and the commit where the hub names no hash."""
    return {"files": hashes, "commit": model.source if None in hashes.values() else None}


def _published(file: Artifact) -> PublishedFile:
    return PublishedFile(file.format, file.path, file.size, file.sha256, file.media_type)
