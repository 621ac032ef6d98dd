"""Uploads that resume, and what keeps files alive."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "leases",
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("owner", sa.String(length=100), nullable=False),
        sa.Column("until", _MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_leases")),
    )
    op.add_column("uploads", sa.Column("tus_metadata", sa.Text(), nullable=True))
    op.add_column("artifacts", sa.Column("expired_at", _MOMENT, nullable=True))
    op.add_column("jobs", sa.Column("artifacts_expired_at", _MOMENT, nullable=True))
    op.create_index(op.f("ix_uploads_declared_sha256"), "uploads", ["declared_sha256"])
    op.create_index(op.f("ix_model_files_sha256"), "model_files", ["sha256"])
    op.create_index(op.f("ix_artifacts_created_at"), "artifacts", ["created_at"])


def downgrade() -> None:
    op.drop_index(op.f("ix_artifacts_created_at"), "artifacts")
    op.drop_index(op.f("ix_model_files_sha256"), "model_files")
    op.drop_index(op.f("ix_uploads_declared_sha256"), "uploads")
    with op.batch_alter_table("jobs") as table:
        table.drop_column("artifacts_expired_at")
    with op.batch_alter_table("artifacts") as table:
        table.drop_column("expired_at")
    with op.batch_alter_table("uploads") as table:
        table.drop_column("tus_metadata")
    op.drop_table("leases")
