"""Expiry of keys, quotas, audit log."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
TIME = sa.DateTime(timezone=True)

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_KEY_COLUMNS = ("previous_until", "rotated_at", "expires_at")


def upgrade() -> None:
    op.add_column("tenants", sa.Column("quotas", JSON, nullable=True))
    with op.batch_alter_table("api_keys") as table:
        table.add_column(sa.Column("previous_hash", sa.String(length=64), nullable=True))
        for name in _KEY_COLUMNS:
            table.add_column(sa.Column(name, TIME, nullable=True))
    with op.batch_alter_table("jobs") as table:
        table.add_column(sa.Column("traceparent", sa.String(length=55), nullable=True))
        table.add_column(sa.Column("attempt_started_at", TIME, nullable=True))
        table.create_index("ix_jobs_tenant_id_status", ["tenant_id", "status"])
    _create_audit_entries()
    _create_usage_entries()


def _create_audit_entries() -> None:
    op.create_table(
        "audit_entries",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("tenant_id", sa.String(length=40), nullable=False),
        sa.Column("key_id", sa.String(length=40), nullable=True),
        sa.Column("action", sa.String(length=40), nullable=False),
        sa.Column("resource_id", sa.String(length=100), nullable=False),
        sa.Column("address", sa.String(length=64), nullable=True),
        sa.Column("request_id", sa.String(length=64), nullable=True),
        sa.Column("created_at", TIME, nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_audit_entries_tenant_id_tenants")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_entries")),
    )
    op.create_index("ix_audit_entries_tenant_id_id", "audit_entries", ["tenant_id", "id"])
    op.create_index("ix_audit_entries_tenant_id_resource_id", "audit_entries", ["tenant_id", "resource_id"])
    op.create_index("ix_audit_entries_created_at", "audit_entries", ["created_at"])


def _create_usage_entries() -> None:
    op.create_table(
        "usage_entries",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("tenant_id", sa.String(length=40), nullable=False),
        sa.Column("kind", sa.String(length=20), nullable=False),
        sa.Column("job_id", sa.String(length=40), nullable=False),
        sa.Column("amount", sa.Double(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_usage_entries_tenant_id_tenants")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_usage_entries")),
    )
    columns = ["tenant_id", "kind", "created_at"]
    op.create_index("ix_usage_entries_tenant_id_kind_created_at", "usage_entries", columns)
    op.create_index("ix_usage_entries_created_at", "usage_entries", ["created_at"])


def downgrade() -> None:
    op.drop_table("usage_entries")
    op.drop_table("audit_entries")
    with op.batch_alter_table("jobs") as table:
        table.drop_index("ix_jobs_tenant_id_status")
        table.drop_column("attempt_started_at")
        table.drop_column("traceparent")
    with op.batch_alter_table("api_keys") as table:
        for name in (*_KEY_COLUMNS, "previous_hash"):
            table.drop_column(name)
    with op.batch_alter_table("tenants") as table:
        table.drop_column("quotas")
