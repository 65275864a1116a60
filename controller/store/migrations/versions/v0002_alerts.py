"""Alerts with what is to be told of them, investigations, behaviour and roles."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_NAME = sa.String().with_variant(sa.String(collation="C"), "postgresql")
_BIG_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make the tables, and the counters of numbers that are given once."""
    _alerts()
    _told()
    _behaviour()
    counter = sa.table("counter", sa.column("name", _NAME), sa.column("value", sa.BigInteger()))
    names = ("alert", "alert.version", "role")
    op.bulk_insert(counter, [{"name": f"number.{name}", "value": 0} for name in names])


def _text(name: str) -> sa.Column[str]:
    return sa.Column(name, _NAME, nullable=False)


def _time(name: str, nullable: bool = False) -> sa.Column[float]:
    return sa.Column(name, sa.Float(), nullable=nullable)


def _big(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), nullable=False)


def _alert(table: str) -> sa.Constraint:
    return sa.ForeignKeyConstraint(["alert"], ["alert.id"], name=f"fk_{table}_alert")


def _alerts() -> None:
    op.create_table(
        "alert",
        sa.Column("id", _BIG_KEY, nullable=False, autoincrement=False),
        _big("version"),
        sa.Column("standing", _NAME),
        _text("kind"),
        _text("vm"),
        _text("metric"),
        _text("state"),
        _text("severity"),
        _time("first_at"),
        _time("last_at"),
        _time("changed_at"),
        _big("count"),
        sa.Column("score", sa.Float(), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        _text("by"),
        sa.PrimaryKeyConstraint("id", name="pk_alert"),
        sa.UniqueConstraint("version", name="uq_alert_version"),
        sa.UniqueConstraint("standing", name="uq_alert_standing"),
    )
    for column in ("vm", "state", "last_at"):
        op.create_index(f"ix_alert_{column}", "alert", [column])


def _told() -> None:
    op.create_table(
        "alert_delivery",
        _text("target"),
        sa.Column("version", sa.BigInteger(), nullable=False, autoincrement=False),
        _big("alert"),
        sa.Column("body", sa.Text(), nullable=False),
        _time("made_at"),
        sa.Column("attempts", sa.Integer(), nullable=False),
        _time("due_at"),
        _time("gave_up_at", nullable=True),
        sa.Column("error", sa.Text()),
        sa.PrimaryKeyConstraint("target", "version", name="pk_alert_delivery"),
        _alert("alert_delivery"),
    )
    op.create_index("ix_alert_delivery_alert", "alert_delivery", ["alert"])
    op.create_table(
        "investigation",
        sa.Column("alert", sa.BigInteger(), nullable=False, autoincrement=False),
        _time("due_at", nullable=True),
        sa.Column("body", sa.Text()),
        sa.PrimaryKeyConstraint("alert", name="pk_investigation"),
        _alert("investigation"),
    )
    op.create_index("ix_investigation_due_at", "investigation", ["due_at"])
    op.create_table(
        "mark", _text("name"), _time("at"), sa.PrimaryKeyConstraint("name", name="pk_mark")
    )


def _behaviour() -> None:
    op.create_table(
        "behaviour",
        _text("vm"),
        sa.Column("week", sa.Integer(), nullable=False, autoincrement=False),
        _time("at"),
        sa.Column("body", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("vm", "week", name="pk_behaviour"),
    )
    op.create_table(
        "role",
        _text("key"),
        sa.Column("body", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_role"),
    )
