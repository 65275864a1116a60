"""Paths: speeds of links, tunnels and what is reserved of them, routes, measured traffic,
decisions."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_NAME = sa.String().with_variant(sa.String(collation="C"), "postgresql")
_BIG_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make the tables, referred-to ones first."""
    for name in ("link_speed", "tunnel"):
        op.create_table(name, *_record(), sa.PrimaryKeyConstraint("key", name=f"pk_{name}"))
    op.create_table(
        "reservation",
        *_record("tunnel"),
        sa.ForeignKeyConstraint(["tunnel"], ["tunnel.key"], name="fk_reservation_tunnel"),
        sa.PrimaryKeyConstraint("key", name="pk_reservation"),
    )
    op.create_index("ix_reservation_tunnel", "reservation", ["tunnel"])
    op.create_table("route", *_record("egress"), sa.PrimaryKeyConstraint("key", name="pk_route"))
    op.create_index("ix_route_egress", "route", ["egress"])
    op.create_table(
        "traffic",
        sa.Column("datapath", _NAME, nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("datapath", "at", name="pk_traffic"),
    )
    op.create_index("ix_traffic_at", "traffic", ["at"])
    op.create_table(
        "path_decision",
        sa.Column("id", _BIG_KEY, autoincrement=False, nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("routes", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_path_decision"),
    )


def _record(*columns: str) -> list[sa.Column[str]]:
    named = [sa.Column(name, _NAME, nullable=False) for name in ("key", *columns)]
    return [*named, sa.Column("body", sa.Text(), nullable=False)]
