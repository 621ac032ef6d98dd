"""Data sets of a hub that a job calibrates on: pinned to a commit before the job is made."""

from __future__ import annotations

import re
from typing import TypeVar

from app.core.problems import ProblemError, ValidationProblem
from app.settings import Settings
from nupes_client.schemas.specs import DatasetRef, JobSpec

S = TypeVar("S", bound=JobSpec)

_COMMIT = re.compile(r"[0-9a-f]{40}")


def pin_dataset(settings: Settings, spec: S) -> S:
    """Return the wish with the commit of its data set in place of the revision, so that it means the same for ever.

    The hub is asked, unless a commit is named already: call it where no transaction is open.

    Raises:
        ProblemError: the service takes nothing from a hub; what `Hub.resolve_dataset` raises; no such file.
    """
    calibration = spec.calibration
    if calibration is None or calibration.dataset is None:
        return spec
    if not settings.hub:
        raise ProblemError(
            403,
            "hub_disabled",
            "Forbidden",
            "this service takes no data sets from a hub",
            hint="Upload a file and name it in calibration.text.",
        )
    if _COMMIT.fullmatch(calibration.dataset.revision):
        return spec
    dataset = calibration.dataset.model_copy(update={"revision": _commit(settings, calibration.dataset)})
    return spec.model_copy(update={"calibration": calibration.model_copy(update={"dataset": dataset})})


def _commit(settings: Settings, dataset: DatasetRef) -> str:
    from app.models.hub import Hub  # the library costs 180 ms and 8 MB: only who uses it pays

    found = Hub(settings).resolve_dataset(dataset.repo_id, dataset.revision)
    if dataset.file is not None and dataset.file not in found.sizes:
        raise ValidationProblem(
            f"the data set {dataset.repo_id!r} has no file {dataset.file!r} at {dataset.revision!r}",
            code="file_not_found",
            pointer="/calibration/dataset/file",
            hint=f"It has, for example, {', '.join(sorted(found.sizes)[:5])}.",
        )
    return found.commit
