"""What a job is called on a page: by its name, else by its model and what is made of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sqlalchemy.orm import Session

from app.core.security import Principal
from app.models import service as models
from nupes_client.schemas.jobs import Job
from nupes_client.schemas.specs import JobSpec

_SHORT_ID = 12
"""Letters of an id that stands where a name is not known: the model is gone, or not for this key to read."""


def names_of_models(session: Session, who: Principal, jobs: Iterable[Job]) -> dict[str, str]:
    """Names of the models of these jobs by id, those that the key may read."""
    if not who.may("models:read"):
        return {}
    return models.names(session, who.tenant_id, {job.config.model.id for job in jobs})


def wish(config: JobSpec, names: Mapping[str, str]) -> str:
    """Model, bits and formats in a line: `booklm · 3 bit, learnt · gguf`."""
    return " · ".join((model_name(config.model.id, names), bits(config), ", ".join(config.formats)))


def title(job: Job, names: Mapping[str, str]) -> str:
    """The job's name, or what it makes of which model."""
    return job.name or wish(job.config, names)


def model_name(model_id: str, names: Mapping[str, str]) -> str:
    """The model's name; the beginning of its id where that is not known."""
    return names.get(model_id) or f"{model_id[:_SHORT_ID]}…"


def bits(config: JobSpec) -> str:
    """Of weights and of coded activations, and whether the codes are learnt: `4 bit, A8, learnt`."""
    words = [f"{config.weights.bits} bit"]
    if config.activations:
        words.append(f"A{config.activations.bits}")
    if config.optimize.mode == "data_driven":
        words.append("learnt")
    return ", ".join(words)
