"""Memory of workers and jobs, shards of a job."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
TIME = sa.DateTime(timezone=True)

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("device", sa.String(length=20), server_default="auto", nullable=False))
    op.add_column("jobs", sa.Column("memory_bytes", sa.BigInteger(), nullable=True))
    op.add_column("jobs", sa.Column("waiting_reason", sa.String(length=20), nullable=True))
    op.add_column("jobs", sa.Column("waiting_largest_bytes", sa.BigInteger(), nullable=True))
    op.add_column("workers", sa.Column("isolation", sa.String(length=20), nullable=True))
    op.add_column("workers", sa.Column("draining", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.create_table(
        "job_shards",
        sa.Column("job_id", sa.String(length=40), nullable=False),
        sa.Column("position", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("params", sa.BigInteger(), nullable=False),
        sa.Column("memory_bytes", sa.BigInteger(), nullable=False),
        sa.Column("status", sa.String(length=20), nullable=False),
        sa.Column("attempt", sa.BigInteger(), nullable=False),
        sa.Column("lease_owner", sa.String(length=100), nullable=True),
        sa.Column("lease_until", TIME, nullable=True),
        sa.Column("worker_id", sa.String(length=100), nullable=True),
        sa.Column("params_done", sa.BigInteger(), nullable=False),
        sa.Column("error", JSON, nullable=True),
        sa.Column("started_at", TIME, nullable=True),
        sa.Column("finished_at", TIME, nullable=True),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_job_shards_job_id_jobs"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "position", name=op.f("pk_job_shards")),
    )
    op.create_index("ix_job_shards_claim", "job_shards", ["status", "job_id", "position"])
    op.create_index("ix_job_shards_lease", "job_shards", ["status", "lease_until"])
    op.create_table(
        "job_shard_files",
        sa.Column("job_id", sa.String(length=40), nullable=False),
        sa.Column("position", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("path", sa.String(length=300), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(
            ["job_id", "position"],
            ["job_shards.job_id", "job_shards.position"],
            name=op.f("fk_job_shard_files_job_id_position_job_shards"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("job_id", "position", "path", name=op.f("pk_job_shard_files")),
    )
    op.create_index(op.f("ix_job_shard_files_sha256"), "job_shard_files", ["sha256"])


def downgrade() -> None:
    op.drop_table("job_shard_files")
    op.drop_table("job_shards")
    op.drop_column("workers", "draining")
    op.drop_column("workers", "isolation")
    op.drop_column("jobs", "waiting_largest_bytes")
    op.drop_column("jobs", "waiting_reason")
    op.drop_column("jobs", "memory_bytes")
    op.drop_column("jobs", "device")
