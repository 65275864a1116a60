"""The first schema: nouns, feed, progress, events, tokens, audit."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_NAME = sa.String().with_variant(sa.String(collation="C"), "postgresql")
_BIG_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make all tables, referred-to ones first."""
    _fabric()
    _tenants()
    _vms()
    _moves()
    _feed()
    _events()
    _people()


def _text(name: str, nullable: bool = False) -> sa.Column[str]:
    return sa.Column(name, _NAME, nullable=nullable)


def _body() -> sa.Column[str]:
    return sa.Column("body", sa.Text(), nullable=False)


def _number() -> sa.Column[int]:
    return sa.Column("number", sa.Integer(), nullable=False)


def _big(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), nullable=False)


def _time(name: str, nullable: bool = False) -> sa.Column[float]:
    return sa.Column(name, sa.Float(), nullable=nullable)


def _refers(table: str, column: str, to: str, ondelete: str | None = None) -> sa.Constraint:
    name = f"fk_{table}_{column}"
    return sa.ForeignKeyConstraint([column], [f"{to}.key"], name=name, ondelete=ondelete)


def _unique(table: str, *columns: str) -> sa.Constraint:
    return sa.UniqueConstraint(*columns, name=f"uq_{table}_{'_'.join(columns)}")


def _primary(table: str, *columns: str) -> sa.Constraint:
    return sa.PrimaryKeyConstraint(*columns, name=f"pk_{table}")


def _index(table: str, *columns: str) -> None:
    op.create_index(f"ix_{table}_{'_'.join(columns)}", table, list(columns))


def _fabric() -> None:
    op.create_table(
        "datapath",
        _text("key"),
        _number(),
        _body(),
        _primary("datapath", "key"),
        _unique("datapath", "number"),
    )
    op.create_table(
        "port",
        _text("key"),
        _text("datapath"),
        _big("number"),
        _text("name"),
        _body(),
        _primary("port", "key"),
        _refers("port", "datapath", "datapath"),
        _unique("port", "datapath", "number"),
    )
    _index("port", "datapath", "name")
    op.create_table(
        "link",
        _text("key"),
        _text("datapath"),
        _big("port"),
        _text("to_datapath"),
        _big("to_port"),
        _body(),
        _primary("link", "key"),
        _refers("link", "datapath", "datapath"),
        _refers("link", "to_datapath", "datapath"),
        _unique("link", "datapath", "port"),
    )
    _index("link", "to_datapath")
    op.create_table("host", _text("key"), _text("datapath"), _body(), _primary("host", "key"))
    _index("host", "datapath")


def _tenants() -> None:
    op.create_table(
        "tenant",
        _text("key"),
        _number(),
        _body(),
        _primary("tenant", "key"),
        _unique("tenant", "number"),
    )
    for table in ("subnet", "access_rule"):
        op.create_table(
            table,
            _text("key"),
            _text("tenant"),
            _number(),
            _body(),
            _primary(table, "key"),
            _refers(table, "tenant", "tenant"),
            _unique(table, "number"),
        )
        _index(table, "tenant")


def _vms() -> None:
    op.create_table(
        "vm",
        _text("key"),
        _text("tenant"),
        _body(),
        _primary("vm", "key"),
        _refers("vm", "tenant", "tenant"),
    )
    _index("vm", "tenant")
    op.create_table(
        "nic",
        _text("mac"),
        _text("vm"),
        _text("subnet"),
        _text("ipv4", nullable=True),
        _text("ipv6", nullable=True),
        _text("link_local"),
        _primary("nic", "mac"),
        _refers("nic", "vm", "vm", ondelete="CASCADE"),
        _refers("nic", "subnet", "subnet"),
        _unique("nic", "subnet", "ipv4"),
        _unique("nic", "subnet", "ipv6"),
        _unique("nic", "subnet", "link_local"),
    )
    _index("nic", "vm")
    op.create_table(
        "placement",
        _text("key"),
        _text("host"),
        _body(),
        _primary("placement", "key"),
        _refers("placement", "key", "vm"),
        _refers("placement", "host", "host"),
    )
    _index("placement", "host")


def _moves() -> None:
    op.create_table(
        "migration",
        _text("key"),
        _text("vm"),
        _text("source"),
        _text("target"),
        _text("open_vm", nullable=True),
        _text("open_source", nullable=True),
        _text("open_target", nullable=True),
        _text("moving", nullable=True),
        _body(),
        _primary("migration", "key"),
        _refers("migration", "open_vm", "vm"),
        _refers("migration", "open_source", "host"),
        _refers("migration", "open_target", "host"),
        _unique("migration", "moving"),
    )
    for column in ("vm", "source", "target", "open_vm", "open_source", "open_target"):
        _index("migration", column)
    op.create_table(
        "plug",
        _text("host"),
        _text("port"),
        _text("vm"),
        sa.Column("nic", sa.Integer(), nullable=False),
        _primary("plug", "host", "port"),
        _refers("plug", "host", "host"),
        _refers("plug", "vm", "vm"),
    )
    _index("plug", "vm")


def _feed() -> None:
    op.create_table(
        "feed",
        sa.Column("revision", _BIG_KEY, autoincrement=False, nullable=False),
        _big("until"),
        _text("kind"),
        _text("key"),
        sa.Column("body", sa.Text(), nullable=True),
        _primary("feed", "revision"),
    )
    counter = op.create_table("counter", _text("name"), _big("value"), _primary("counter", "name"))
    numbered = ("tenant", "subnet", "datapath", "access_rule")
    names = ("revision", "compacted", *(f"number.{kind}" for kind in numbered))
    op.bulk_insert(counter, [{"name": name, "value": 0} for name in names])
    op.create_table(
        "progress",
        _text("datapath"),
        _big("revision"),
        _time("confirmed_at"),
        sa.Column("connected", sa.Boolean(), nullable=False),
        sa.Column("pending", sa.Integer(), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        _primary("progress", "datapath"),
    )


def _events() -> None:
    op.create_table(
        "event",
        _text("source"),
        _text("event_id"),
        _text("fingerprint"),
        _text("outcome"),
        _big("revision"),
        _time("received_at"),
        _primary("event", "source", "event_id"),
    )
    _index("event", "received_at")
    op.create_table("event_time", _text("subject"), _time("at"), _primary("event_time", "subject"))
    _index("event_time", "at")


def _people() -> None:
    op.create_table(
        "token",
        _text("name"),
        _text("role"),
        _text("host", nullable=True),
        _text("digest"),
        _time("created_at"),
        _time("expires_at", nullable=True),
        _primary("token", "name"),
        _unique("token", "digest"),
    )
    op.create_table(
        "audit",
        sa.Column("id", _BIG_KEY, autoincrement=True, nullable=False),
        _time("at"),
        _text("actor"),
        _text("action"),
        _text("subject"),
        sa.Column("detail", sa.Text(), nullable=False),
        _primary("audit", "id"),
        sqlite_autoincrement=True,
    )
