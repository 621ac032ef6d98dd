"""How the weights of a layer spread over its grid."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def upgrade() -> None:
    op.add_column("job_layers", sa.Column("histogram", JSON, nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("job_layers") as batch_op:
        batch_op.drop_column("histogram")
