"""What VMs may send and receive, and how their packets are marked."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_NAME = sa.String().with_variant(sa.String(collation="C"), "postgresql")


def upgrade() -> None:
    """Make a table each, of what belongs to a VM."""
    for table in ("rate_limit", "bandwidth", "marking"):
        op.create_table(
            table,
            sa.Column("key", _NAME, nullable=False),
            sa.Column("body", sa.Text(), nullable=False),
            sa.PrimaryKeyConstraint("key", name=f"pk_{table}"),
            sa.ForeignKeyConstraint(["key"], ["vm.key"], name=f"fk_{table}_key"),
        )
