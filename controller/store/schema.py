"""The tables of the store, as SQLAlchemy knows them.

Each kind of record has a table: `key`, the columns that must be unique, referred to or
looked for, and `body`, the record itself as JSON. `controller.store.migrations` makes these
tables in a database; a test compares the two.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

#: The newest revision in `controller/store/migrations/versions`.
HEAD = "0009"

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)

#: Only an INTEGER primary key is SQLite's own row number, without an index beside it.
BigKey = BigInteger().with_variant(Integer, "sqlite")
#: Compared by code point on every engine, whatever language the database was made for.
Name = String().with_variant(String(collation="C"), "postgresql")

datapath = Table(
    "datapath",
    metadata,
    Column("key", Name, primary_key=True),
    Column("number", Integer, nullable=False, unique=True),
    Column("body", Text, nullable=False),
)
port = Table(
    "port",
    metadata,
    Column("key", Name, primary_key=True),
    Column("datapath", Name, ForeignKey("datapath.key"), nullable=False),
    Column("number", BigInteger, nullable=False),
    Column("name", Name, nullable=False),
    Column("body", Text, nullable=False),
    UniqueConstraint("datapath", "number"),
    Index("ix_port_datapath_name", "datapath", "name"),
)
link = Table(
    "link",
    metadata,
    Column("key", Name, primary_key=True),
    Column("datapath", Name, ForeignKey("datapath.key"), nullable=False),
    Column("port", BigInteger, nullable=False),
    Column("to_datapath", Name, ForeignKey("datapath.key"), nullable=False, index=True),
    Column("to_port", BigInteger, nullable=False),
    Column("body", Text, nullable=False),
    UniqueConstraint("datapath", "port"),
)
tenant = Table(
    "tenant",
    metadata,
    Column("key", Name, primary_key=True),
    Column("number", Integer, nullable=False, unique=True),
    Column("body", Text, nullable=False),
)
subnet = Table(
    "subnet",
    metadata,
    Column("key", Name, primary_key=True),
    Column("tenant", Name, ForeignKey("tenant.key"), nullable=False, index=True),
    Column("number", Integer, nullable=False, unique=True),
    Column("body", Text, nullable=False),
)
#: `datapath` is no foreign key: a host may be declared before its switch connects.
host = Table(
    "host",
    metadata,
    Column("key", Name, primary_key=True),
    Column("datapath", Name, nullable=False, index=True),
    Column("body", Text, nullable=False),
)
vm = Table(
    "vm",
    metadata,
    Column("key", Name, primary_key=True),
    Column("tenant", Name, ForeignKey("tenant.key"), nullable=False, index=True),
    Column("body", Text, nullable=False),
)
nic = Table(
    "nic",
    metadata,
    Column("mac", Name, primary_key=True),
    Column("vm", Name, ForeignKey("vm.key", ondelete="CASCADE"), nullable=False, index=True),
    Column("subnet", Name, ForeignKey("subnet.key"), nullable=False),
    Column("ipv4", Name),
    Column("ipv6", Name),
    Column("link_local", Name, nullable=False),
    UniqueConstraint("subnet", "ipv4"),
    UniqueConstraint("subnet", "ipv6"),
    UniqueConstraint("subnet", "link_local"),
)
placement = Table(
    "placement",
    metadata,
    Column("key", Name, ForeignKey("vm.key"), primary_key=True),
    Column("host", Name, ForeignKey("host.key"), nullable=False, index=True),
    Column("body", Text, nullable=False),
)
#: The `open_` columns are filled only while the migration is open, so that what is over
#: keeps nobody from removing a VM or a host; `moving` holds the VM until it has arrived.
migration = Table(
    "migration",
    metadata,
    Column("key", Name, primary_key=True),
    Column("vm", Name, nullable=False, index=True),
    Column("source", Name, nullable=False, index=True),
    Column("target", Name, nullable=False, index=True),
    Column("open_vm", Name, ForeignKey("vm.key"), index=True),
    Column("open_source", Name, ForeignKey("host.key"), index=True),
    Column("open_target", Name, ForeignKey("host.key"), index=True),
    Column("moving", Name, unique=True),
    Column("body", Text, nullable=False),
)
#: Which NIC of which VM has a port, by a placement or by an open migration's target.
plug = Table(
    "plug",
    metadata,
    Column("host", Name, ForeignKey("host.key"), primary_key=True),
    Column("port", Name, primary_key=True),
    Column("vm", Name, ForeignKey("vm.key"), nullable=False, index=True),
    Column("nic", Integer, nullable=False),
)
access_rule = Table(
    "access_rule",
    metadata,
    Column("key", Name, primary_key=True),
    Column("tenant", Name, ForeignKey("tenant.key"), nullable=False, index=True),
    Column("number", Integer, nullable=False, unique=True),
    Column("body", Text, nullable=False),
)
service = Table(
    "service",
    metadata,
    Column("key", Name, primary_key=True),
    Column("vm", Name, ForeignKey("vm.key"), nullable=False, index=True),
    Column("body", Text, nullable=False),
)
rate_limit, bandwidth, marking, capture = (
    Table(
        name,
        metadata,
        Column("key", Name, ForeignKey("vm.key"), primary_key=True),
        Column("body", Text, nullable=False),
    )
    for name in ("rate_limit", "bandwidth", "marking", "capture")
)

#: Of links that are not there too: what an operator says of one outlives it.
link_speed = Table(
    "link_speed",
    metadata,
    Column("key", Name, primary_key=True),
    Column("body", Text, nullable=False),
)
calendar_event = Table(
    "calendar_event",
    metadata,
    Column("key", Name, primary_key=True),
    Column("body", Text, nullable=False),
)
tunnel = Table(
    "tunnel",
    metadata,
    Column("key", Name, primary_key=True),
    Column("body", Text, nullable=False),
)
reservation = Table(
    "reservation",
    metadata,
    Column("key", Name, primary_key=True),
    Column("tunnel", Name, ForeignKey("tunnel.key"), nullable=False, index=True),
    Column("body", Text, nullable=False),
)
#: Its ends are no foreign keys: a switch may be forgotten before it is decided anew.
route = Table(
    "route",
    metadata,
    Column("key", Name, primary_key=True),
    Column("egress", Name, nullable=False, index=True),
    Column("body", Text, nullable=False),
)

#: The change feed. `until` is the last revision of the same transaction; a `body` of NULL
#: tells of a removal.
feed = Table(
    "feed",
    metadata,
    Column("revision", BigKey, primary_key=True, autoincrement=False),
    Column("until", BigInteger, nullable=False),
    Column("kind", Name, nullable=False),
    Column("key", Name, nullable=False),
    Column("body", Text),
)
#: "revision": the newest; "compacted": the newest that the feed lost; "number.KIND": the
#: highest number that a record of that kind ever had.
counter = Table(
    "counter",
    metadata,
    Column("name", Name, primary_key=True),
    Column("value", BigInteger, nullable=False),
)
progress = Table(
    "progress",
    metadata,
    Column("datapath", Name, primary_key=True),
    Column("revision", BigInteger, nullable=False),
    Column("confirmed_at", Float, nullable=False),
    Column("connected", Boolean, nullable=False),
    Column("pending", Integer, nullable=False),
    Column("error", Text),
)
event = Table(
    "event",
    metadata,
    Column("source", Name, primary_key=True),
    Column("event_id", Name, primary_key=True),
    Column("fingerprint", Name, nullable=False),
    Column("outcome", Name, nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("received_at", Float, nullable=False, index=True),
)
#: Time of the newest event about each subject; the subject "" stands for all forgotten ones.
event_time = Table(
    "event_time",
    metadata,
    Column("subject", Name, primary_key=True),
    Column("at", Float, nullable=False, index=True),
)
token = Table(
    "token",
    metadata,
    Column("name", Name, primary_key=True),
    Column("role", Name, nullable=False),
    Column("host", Name),
    Column("digest", Name, nullable=False, unique=True),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float),
)
#: What edges sent towards others in an interval that ended at `at` (Unix seconds), as JSON.
traffic = Table(
    "traffic",
    metadata,
    Column("datapath", Name, primary_key=True),
    Column("at", Float, primary_key=True),
    Column("body", Text, nullable=False),
    Index("ix_traffic_at", "at"),
)
#: What was decided on paths, when (Unix seconds) and why; `routes` of each pair, compressed.
path_decision = Table(
    "path_decision",
    metadata,
    Column("id", BigKey, primary_key=True, autoincrement=False),
    Column("at", Float, nullable=False),
    Column("body", Text, nullable=False),
    Column("routes", LargeBinary),
)
#: What the meters of a datapath passed in the interval that ended at `at` (Unix seconds), as JSON.
usage = Table(
    "usage",
    metadata,
    Column("datapath", Name, primary_key=True),
    Column("at", Float, nullable=False),
    Column("body", Text, nullable=False),
)
audit = Table(
    "audit",
    metadata,
    Column("id", BigKey, primary_key=True, autoincrement=True),
    Column("at", Float, nullable=False),
    Column("actor", Name, nullable=False),
    Column("action", Name, nullable=False),
    Column("subject", Name, nullable=False),
    Column("detail", Text, nullable=False),
    sqlite_autoincrement=True,
)

#: `standing` is the alert's key while it is not closed: one of a kind about one thing. Each
#: change of an alert takes the next `version` of all.
alert = Table(
    "alert",
    metadata,
    Column("id", BigKey, primary_key=True, autoincrement=False),
    Column("version", BigInteger, nullable=False, unique=True),
    Column("standing", Name, unique=True),
    Column("kind", Name, nullable=False),
    Column("vm", Name, nullable=False, index=True),
    Column("metric", Name, nullable=False),
    Column("state", Name, nullable=False, index=True),
    Column("severity", Name, nullable=False),
    Column("first_at", Float, nullable=False),
    Column("last_at", Float, nullable=False, index=True),
    Column("changed_at", Float, nullable=False),
    Column("count", BigInteger, nullable=False),
    Column("score", Float, nullable=False),
    Column("why", Text, nullable=False),
    Column("by", Name, nullable=False),
)
#: What is to be told to `target` (a digest of its address), in the order of `version`;
#: `gave_up_at` is set where that was not possible in time.
alert_delivery = Table(
    "alert_delivery",
    metadata,
    Column("target", Name, primary_key=True),
    Column("version", BigInteger, primary_key=True, autoincrement=False),
    Column("alert", BigInteger, ForeignKey("alert.id"), nullable=False, index=True),
    Column("body", Text, nullable=False),
    Column("made_at", Float, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("due_at", Float, nullable=False),
    Column("gave_up_at", Float),
    Column("error", Text),
)
#: The evidence of an alert; more is gathered at `due_at`, nothing more where that is NULL.
investigation = Table(
    "investigation",
    metadata,
    Column("alert", BigInteger, ForeignKey("alert.id"), primary_key=True, autoincrement=False),
    Column("due_at", Float, index=True),
    Column("body", Text),
)
#: Packets that were copied for an alert, as a pcap file.
packet_sample = Table(
    "packet_sample",
    metadata,
    Column("alert", BigInteger, ForeignKey("alert.id"), primary_key=True, autoincrement=False),
    Column("at", Float, nullable=False),
    Column("count", Integer, nullable=False),
    Column("pcap", LargeBinary, nullable=False),
)
#: Up to when (Unix seconds) a loop has told of what it saw.
mark = Table(
    "mark",
    metadata,
    Column("name", Name, primary_key=True),
    Column("at", Float, nullable=False),
)
#: How a VM behaved in the weeks that began `week` weeks after 1970-01-01; neither column refers
#: to the VM, since the behaviour of one that is gone is compared with too.
behaviour = Table(
    "behaviour",
    metadata,
    Column("vm", Name, primary_key=True),
    Column("week", Integer, primary_key=True, autoincrement=False),
    Column("at", Float, nullable=False),
    Column("body", Text, nullable=False),
)
role = Table(
    "role",
    metadata,
    Column("key", Name, primary_key=True),
    Column("body", Text, nullable=False),
)


def _hours(name: str, *counts: str) -> Table:
    """Counts of an hour (hours since 1970-01-01, UTC), by who began and whom to. Neither refers
    to a VM, for what a VM did is known for longer than the VM. `peer` is a VM, a prefix, or "*"."""
    return Table(
        name,
        metadata,
        Column("vm", Name, primary_key=True),
        Column("peer", Name, primary_key=True, index=True),
        Column("protocol", Name, primary_key=True),
        Column("port", Integer, primary_key=True, autoincrement=False),
        Column("hour", Integer, primary_key=True, autoincrement=False, index=True),
        Column("tenant", Name, nullable=False),
        Column("external", Boolean, nullable=False),
        *(Column(count, BigInteger, nullable=False) for count in counts),
        Column("first_at", Float, nullable=False),
        Column("last_at", Float, nullable=False),
    )


signature_hour = _hours(
    "signature_hour", "connections", "packets_out", "bytes_out", "packets_in", "bytes_in"
)
denial_hour = _hours("denial_hour", "packets", "bytes")
#: How far the counters of a signature had counted at a switch when they were read last: what
#: begins, the rest of what was sent, and replies. `kept` where the controller put them there.
signature_counter = Table(
    "signature_counter",
    metadata,
    Column("datapath", Name, primary_key=True),
    Column("mac", Name, primary_key=True),
    Column("peer", Name, primary_key=True),
    Column("protocol", Integer, primary_key=True, autoincrement=False),
    Column("port", Integer, primary_key=True, autoincrement=False),
    Column("vm", Name, nullable=False),
    Column("kept", Boolean, nullable=False),
    Column("begun", BigInteger, nullable=False),
    Column("begun_bytes", BigInteger, nullable=False),
    Column("rest", BigInteger, nullable=False),
    Column("rest_bytes", BigInteger, nullable=False),
    Column("back", BigInteger, nullable=False),
    Column("back_bytes", BigInteger, nullable=False),
    Column("used_at", Float, nullable=False),
)
