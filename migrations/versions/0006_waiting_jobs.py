"""Queue limits, result cache and fair sharing of jobs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)
WEEK_S = 7 * 86400
JOBS = sa.table(
    "jobs",
    sa.column("status", sa.String),
    sa.column("queue_timeout_s", sa.BigInteger),
    sa.column("queue_until", TIME),
    sa.column("cache", sa.Boolean),
)


def upgrade() -> None:
    with op.batch_alter_table("tenants") as batch_op:
        batch_op.add_column(sa.Column("last_claim_at", TIME, nullable=True))
    with op.batch_alter_table("jobs") as batch_op:
        batch_op.add_column(sa.Column("queue_timeout_s", sa.BigInteger(), nullable=True))
        batch_op.add_column(sa.Column("queue_until", TIME, nullable=True))
        batch_op.add_column(sa.Column("cache", sa.Boolean(), nullable=True))
        batch_op.add_column(sa.Column("cache_key", sa.String(length=64), nullable=True))
        batch_op.add_column(sa.Column("code_version", sa.String(length=64), nullable=True))
        batch_op.add_column(sa.Column("retry_of", sa.String(length=40), nullable=True))
    op.execute(JOBS.update().values(queue_timeout_s=WEEK_S, cache=True))
    limit = datetime.now(UTC) + timedelta(seconds=WEEK_S)
    op.execute(JOBS.update().where(JOBS.c.status == "queued").values(queue_until=limit))
    with op.batch_alter_table("jobs") as batch_op:
        batch_op.alter_column("queue_timeout_s", existing_type=sa.BigInteger(), nullable=False)
        batch_op.alter_column("cache", existing_type=sa.Boolean(), nullable=False)
        batch_op.drop_index("ix_jobs_claim")
        batch_op.create_index("ix_jobs_turn", ["status", "device_class", "tenant_id", "priority", "id"], unique=False)
        batch_op.create_index("ix_jobs_queue_until", ["status", "queue_until"], unique=False)
        batch_op.create_index("ix_jobs_cache", ["tenant_id", "cache_key"], unique=False)


def downgrade() -> None:
    with op.batch_alter_table("jobs") as batch_op:
        batch_op.drop_index("ix_jobs_cache")
        batch_op.drop_index("ix_jobs_queue_until")
        batch_op.drop_index("ix_jobs_turn")
        batch_op.create_index("ix_jobs_claim", ["status", "device_class", "priority", "id"], unique=False)
        for name in ("retry_of", "code_version", "cache_key", "cache", "queue_until", "queue_timeout_s"):
            batch_op.drop_column(name)
    with op.batch_alter_table("tenants") as batch_op:
        batch_op.drop_column("last_claim_at")
