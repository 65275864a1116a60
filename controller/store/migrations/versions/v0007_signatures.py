"""Who talks to whom, hour by hour; what was denied; and how far switches had counted."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_NAME = sa.String().with_variant(sa.String(collation="C"), "postgresql")


def upgrade() -> None:
    """Make the tables."""
    _hours("signature_hour", "connections", "packets_out", "bytes_out", "packets_in", "bytes_in")
    _hours("denial_hour", "packets", "bytes")
    op.create_table(
        "signature_counter",
        _text("datapath"),
        _text("mac"),
        _text("peer"),
        _integer("protocol"),
        _integer("port"),
        _text("vm"),
        sa.Column("kept", sa.Boolean(), nullable=False),
        *(_big(name) for name in ("begun", "begun_bytes", "rest", "rest_bytes")),
        *(_big(name) for name in ("back", "back_bytes")),
        _time("used_at"),
        sa.PrimaryKeyConstraint(
            "datapath", "mac", "peer", "protocol", "port", name="pk_signature_counter"
        ),
    )


def _hours(table: str, *counts: str) -> None:
    op.create_table(
        table,
        _text("vm"),
        _text("peer"),
        _text("protocol"),
        _integer("port"),
        _integer("hour"),
        _text("tenant"),
        sa.Column("external", sa.Boolean(), nullable=False),
        *(_big(name) for name in counts),
        _time("first_at"),
        _time("last_at"),
        sa.PrimaryKeyConstraint("vm", "peer", "protocol", "port", "hour", name=f"pk_{table}"),
    )
    op.create_index(f"ix_{table}_hour", table, ["hour"])
    op.create_index(f"ix_{table}_peer", table, ["peer"])


def _text(name: str) -> sa.Column[str]:
    return sa.Column(name, _NAME, nullable=False)


def _integer(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.Integer(), nullable=False, autoincrement=False)


def _big(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), nullable=False)


def _time(name: str) -> sa.Column[float]:
    return sa.Column(name, sa.Float(), nullable=False)
