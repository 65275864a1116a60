"""What answers at the ports of VMs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_NAME = sa.String().with_variant(sa.String(collation="C"), "postgresql")


def upgrade() -> None:
    """Make the table of services."""
    op.create_table(
        "service",
        sa.Column("key", _NAME, nullable=False),
        sa.Column("vm", _NAME, nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_service"),
        sa.ForeignKeyConstraint(["vm"], ["vm.key"], name="fk_service_vm"),
    )
    op.create_index("ix_service_vm", "service", ["vm"])
