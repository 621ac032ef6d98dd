"""The tables. The database is the truth; everything else (queue, work folder) can be lost."""

from app.db.tables.accounts import AuditEntry, UsageEntry
from app.db.tables.artifacts import Artifact
from app.db.tables.base import Base
from app.db.tables.jobs import IdempotencyKey, Job, JobEvent, JobLabel, JobLayer, JobMetric
from app.db.tables.leases import Lease
from app.db.tables.models import Model, ModelFile
from app.db.tables.queue import OutboxMessage
from app.db.tables.secrets import Secret
from app.db.tables.shards import JobShard, JobShardFile
from app.db.tables.tenants import ApiKey, LoginLink, Tenant
from app.db.tables.uploads import Upload
from app.db.tables.webhooks import Webhook, WebhookAttempt, WebhookDelivery
from app.db.tables.workers import Worker

__all__ = [
    "ApiKey",
    "Artifact",
    "AuditEntry",
    "Base",
    "IdempotencyKey",
    "Job",
    "JobEvent",
    "JobLabel",
    "JobLayer",
    "JobMetric",
    "JobShard",
    "JobShardFile",
    "Lease",
    "LoginLink",
    "Model",
    "ModelFile",
    "OutboxMessage",
    "Secret",
    "Tenant",
    "Upload",
    "UsageEntry",
    "Webhook",
    "WebhookAttempt",
    "WebhookDelivery",
    "Worker",
]
