"""Who did what, and when."""

from __future__ import annotations

from enum import StrEnum

from nupes_client.schemas.base import Response, Timestamp


class AuditAction(StrEnum):
    """What can be done that changes something."""

    KEY_CREATED = "key.created"
    KEY_ROTATED = "key.rotated"
    KEY_REVOKED = "key.revoked"
    LOGIN_LINK_CREATED = "login_link.created"
    LOGIN_LINK_USED = "login_link.used"
    QUOTAS_CHANGED = "quotas.changed"
    UPLOAD_CREATED = "upload.created"
    UPLOAD_DELETED = "upload.deleted"
    MODEL_CREATED = "model.created"
    MODEL_DELETED = "model.deleted"
    JOB_CREATED = "job.created"
    JOB_CHANGED = "job.changed"
    JOB_CANCELLED = "job.cancelled"
    JOB_DELETED = "job.deleted"
    ARTIFACT_LINKED = "artifact.linked"
    SECRET_CREATED = "secret.created"  # noqa: S105  # nosec B105
    SECRET_REPLACED = "secret.replaced"  # noqa: S105  # nosec B105
    SECRET_DELETED = "secret.deleted"  # noqa: S105  # nosec B105
    WEBHOOK_CREATED = "webhook.created"
    WEBHOOK_CHANGED = "webhook.changed"
    WEBHOOK_ROTATED = "webhook.rotated"
    WEBHOOK_DELETED = "webhook.deleted"
    WEBHOOK_TESTED = "webhook.tested"
    WEBHOOK_REDELIVERED = "webhook.redelivered"


class AuditEntry(Response):
    """One change. `key_id` and `address` are null for what was done by a command on the server."""

    id: str
    action: AuditAction
    resource_id: str
    key_id: str | None
    address: str | None
    request_id: str | None
    created_at: Timestamp
