"""Labels of jobs as rows, and indexes for every filter of their lists."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

NAMED, JUDGED = sa.text("name IS NOT NULL"), sa.text("verdict IS NOT NULL")

FILL = {
    "sqlite": "INSERT INTO job_labels (job_id, tenant_id, key, value) "
    "SELECT jobs.id, jobs.tenant_id, label.key, label.value FROM jobs, json_each(jobs.labels) AS label",
    "postgresql": "INSERT INTO job_labels (job_id, tenant_id, key, value) "
    "SELECT jobs.id, jobs.tenant_id, label.key, label.value FROM jobs, jsonb_each_text(jobs.labels) AS label",
}
OLD = {
    "ix_jobs_tenant_id_status": ["tenant_id", "status"],
    "ix_jobs_cache": ["tenant_id", "cache_key"],
    "ix_jobs_model_id": ["model_id"],
}
NEW = {
    "ix_jobs_tenant_id_status": ["tenant_id", "status", "id"],
    "ix_jobs_cache": ["tenant_id", "cache_key", "status", "id"],
    "ix_jobs_model_id": ["model_id", "id"],
}


def upgrade() -> None:
    op.create_table(
        "job_labels",
        sa.Column("job_id", sa.String(length=40), nullable=False),
        sa.Column("key", sa.String(length=63), nullable=False),
        sa.Column("tenant_id", sa.String(length=40), nullable=False),
        sa.Column("value", sa.String(length=255), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_job_labels_job_id_jobs"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "key", name=op.f("pk_job_labels")),
    )
    op.execute(FILL[op.get_bind().dialect.name])
    op.create_index("ix_job_labels_list", "job_labels", ["tenant_id", "key", "value", "job_id"])
    _replace(NEW)
    op.create_index("ix_jobs_name", "jobs", ["tenant_id", "name", "id"], sqlite_where=NAMED, postgresql_where=NAMED)
    op.create_index(
        "ix_jobs_verdict", "jobs", ["tenant_id", "verdict", "id"], sqlite_where=JUDGED, postgresql_where=JUDGED
    )
    op.create_index("ix_jobs_tenant_id_created_at", "jobs", ["tenant_id", "created_at"])


def downgrade() -> None:
    for name in ("ix_jobs_tenant_id_created_at", "ix_jobs_verdict", "ix_jobs_name"):
        op.drop_index(name, "jobs")
    _replace(OLD)
    op.drop_table("job_labels")


def _replace(indexes: dict[str, list[str]]) -> None:
    for name, columns in indexes.items():
        op.drop_index(name, "jobs")
        op.create_index(name, "jobs", columns)
