"""Packets that are copied for alerts: what is asked of the switches, and what came of it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_NAME = sa.String().with_variant(sa.String(collation="C"), "postgresql")


def upgrade() -> None:
    """Make both tables."""
    op.create_table(
        "capture",
        sa.Column("key", _NAME, nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_capture"),
        sa.ForeignKeyConstraint(["key"], ["vm.key"], name="fk_capture_key"),
    )
    op.create_table(
        "packet_sample",
        sa.Column("alert", sa.BigInteger(), nullable=False, autoincrement=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.Column("pcap", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("alert", name="pk_packet_sample"),
        sa.ForeignKeyConstraint(["alert"], ["alert.id"], name="fk_packet_sample_alert"),
    )
