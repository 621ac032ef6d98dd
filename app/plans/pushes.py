"""What can be said of a push to a hub before the work: the rest is between the token and the hub."""

from __future__ import annotations

from sqlalchemy.orm import Session

from app.core.problems import ProblemError, ValidationProblem
from app.secrets import repository
from app.settings import Settings
from nupes_client.schemas.specs import JobSpec


def check_push(session: Session, settings: Settings, tenant_id: str, spec: JobSpec) -> None:
    """Refuse a push that can not be carried out.

    Raises:
        ProblemError: the service has no hub.
        ValidationProblem: the tenant has no hub token of that name.
    """
    if spec.push_to_hub is None:
        return
    if not settings.hub:
        raise ProblemError(
            403,
            "hub_disabled",
            "Forbidden",
            "this service sends nothing to a hub",
            hint="Leave push_to_hub out and download the files.",
        )
    name = spec.push_to_hub.secret
    secret = repository.named(session, tenant_id, name)
    if secret is None or secret.kind != "hub_token":
        raise ValidationProblem(
            f"there is no hub token {name!r} among the secrets",
            code="secret_not_found",
            pointer="/push_to_hub/secret",
            hint=f"Store it first: nupes secrets set {name}",
        )
