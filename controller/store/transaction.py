"""One transaction on the store: what a caller may read and change before it commits."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, TypeVar, cast

from sqlalchemy import (
    Connection,
    CursorResult,
    Executable,
    Table,
    bindparam,
    delete,
    func,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.exc import DBAPIError, IntegrityError

from controller.model.nouns import BELONGINGS, Migration, Placement, Record, Vm
from controller.model.state import Change
from controller.store import schema
from controller.store.errors import Duplicate, NumbersExhausted, StoreError
from controller.store.records import EventReceipt, Progress, Token
from controller.store.shapes import (
    SHAPES,
    Shape,
    nic_rows,
    number_of,
    plugs,
    why_not_deleted,
    why_not_put,
)

R = TypeVar("R", bound=Record)
#: What a statement's parameters are: of one row, of several, or of none.
Values = Mapping[str, object] | Sequence[Mapping[str, object]] | None

# Statements are made once: building one costs as much as running it.
_BODY = {
    kind: select(shape.table.c.body).where(shape.table.c.key == bindparam("key"))
    for kind, shape in SHAPES.items()
}
_BODIES = {
    kind: select(shape.table.c.body).order_by(shape.table.c.key) for kind, shape in SHAPES.items()
}
_MOVES = _BODIES[Migration.kind].where(schema.migration.c.vm == bindparam("vm"))
_INSERT = {kind: insert(shape.table) for kind, shape in SHAPES.items()}
_UPDATE = {
    kind: update(shape.table).where(shape.table.c.key == bindparam("at"))
    for kind, shape in SHAPES.items()
}
_DELETE = {
    kind: delete(shape.table).where(shape.table.c.key == bindparam("key"))
    for kind, shape in SHAPES.items()
}
_COUNTER = select(schema.counter.c.value).where(schema.counter.c.name == bindparam("counter"))
_COUNT = (
    update(schema.counter)
    .where(schema.counter.c.name == bindparam("counter"))
    .values(value=bindparam("count"))
)
_FEED = insert(schema.feed)
_DROP_NICS = delete(schema.nic).where(schema.nic.c.vm == bindparam("of"))
_ADD_NICS = insert(schema.nic)
_OPEN_MOVES = select(schema.migration.c.body).where(schema.migration.c.open_vm == bindparam("vm"))
_PLUGS = select(schema.plug.c.host, schema.plug.c.port, schema.plug.c.nic).where(
    schema.plug.c.vm == bindparam("vm")
)
_UNPLUG = delete(schema.plug).where(
    schema.plug.c.host == bindparam("at_host"), schema.plug.c.port == bindparam("at_port")
)
_PLUG = insert(schema.plug)
#: As text, like the next two: each engine has a construct of its own for what both write alike.
_PROGRESS = text(
    "INSERT INTO progress (datapath, revision, confirmed_at, connected, pending, error) "
    "VALUES (:datapath, :revision, :confirmed_at, :connected, :pending, :error) "
    "ON CONFLICT (datapath) DO UPDATE SET revision = excluded.revision, "
    "confirmed_at = excluded.confirmed_at, connected = excluded.connected, "
    "pending = excluded.pending, error = excluded.error"
)
_EVENT_TIME = text(
    "INSERT INTO event_time (subject, at) VALUES (:subject, :at) "
    "ON CONFLICT (subject) DO UPDATE SET at = excluded.at WHERE excluded.at > event_time.at"
)
_REMEMBER = text(
    "INSERT INTO event (source, event_id, fingerprint, outcome, revision, received_at) "
    "VALUES (:source, :event_id, :fingerprint, :outcome, :revision, :received_at) "
    "ON CONFLICT (source, event_id) DO NOTHING"
)
_SEEN = select(schema.event).where(
    schema.event.c.source == bindparam("source"), schema.event.c.event_id == bindparam("id")
)
_LAST_EVENTS = select(schema.event_time.c.subject, schema.event_time.c.at).where(
    schema.event_time.c.subject.in_(bindparam("subjects", expanding=True))
)


class Transaction:
    """Reads see what was written before in the same transaction. To be used by one thread,
    inside `with store.transaction()`; nothing is kept unless that ends without exception."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._base = self._counter("revision")
        self._entries: list[tuple[str, str, str | None]] = []
        #: What was changed, as consumers of the feed will have it.
        self.changes: list[Change] = []
        # One writer at a time: what was read or written once in it stays true to its end.
        self._bodies: dict[tuple[str, str], str | None] = {}
        #: Whether anything was written.
        self.dirty = False

    @property
    def revision(self) -> int:
        """The last revision written, or the store's where nothing was changed."""
        return self._base + len(self._entries)

    # The nouns.

    def get(self, cls: type[R], key: str) -> R | None:
        """The record with this key."""
        shape = SHAPES[cls.kind]
        body = self._body(shape, key)
        return None if body is None else cast("R", shape.load(body))

    def all(self, cls: type[R]) -> list[R]:
        """Every record of a kind, in the order of their keys."""
        shape = SHAPES[cls.kind]
        bodies = self._connection.scalars(_BODIES[cls.kind])
        return [cast("R", shape.load(body)) for body in bodies]

    def where(self, cls: type[R], **columns: str) -> list[R]:
        """The records of a kind whose columns have these values, in the order of their keys.

        Known are the references of each kind (tenant, vm, host, datapath), for VMs also
        subnet, mac and host, for migrations vm, source, target and host (either of the two).
        ValueError where a column is not known."""
        shape = SHAPES[cls.kind]
        if cls is Migration and columns.keys() == {"vm"}:
            query = _MOVES  # every event asks for these
        else:
            query = _BODIES[cls.kind].where(*shape.condition(columns))
        return [cast("R", shape.load(body)) for body in self._connection.scalars(query, columns)]

    def put(self, record: R) -> R:
        """Insert or replace a record and return it as stored.

        The store owns `number`: a new record that has 0 gets the next one never used (a
        freed one where none is left), and a stored record keeps its own. What is equal to
        what is stored makes no entry in the feed. Raises Duplicate, Missing or
        NumbersExhausted, and then has changed nothing: the transaction may go on."""
        shape = SHAPES[record.kind]
        held = self._body(shape, record.key)
        before = None if held is None else cast("R", shape.load(held))
        if before is not None and shape.max_number:
            record = record.model_copy(update={"number": number_of(before)})
        if record.model_dump_json() == held:
            return record
        with self._whole(lambda: why_not_put(self._connection, shape, record)):
            if before is None and shape.max_number:
                record = self._numbered(shape, record)
            body = record.model_dump_json()
            self._bodies[record.kind, record.key] = body
            self._write(shape, record, body, before)
        self._enter(record.kind, record.key, body, record)
        return record

    def delete(self, cls: type[R], key: str) -> bool:
        """Remove a record; False where there is none. InUse where another refers to it, and
        then the transaction may go on. What is only told of the record goes with it."""
        before = self.get(cls, key)
        if before is None:
            return False
        gone = [record for of in BELONGINGS.get(cls, ()) for record in self.where(of, vm=key)]
        gone.append(before)
        with self._whole(lambda: why_not_deleted(self._connection, cls.kind, key)):
            for record in gone:
                self._connection.execute(_DELETE[record.kind], {"key": record.key})
                self._bodies[record.kind, record.key] = None
            if isinstance(before, Placement | Migration):
                self._replug(before.vm)
            if cls.kind == "datapath":
                self._delete_where(schema.progress, datapath=key)
        for record in gone:
            self._enter(record.kind, record.key, None, None)
        return True

    # Events.

    def seen(self, source: str, event_id: str) -> EventReceipt | None:
        """The receipt of an event that was taken before."""
        row = self._connection.execute(_SEEN, {"source": source, "id": event_id}).first()
        return None if row is None else EventReceipt(**row._mapping)

    def remember(self, receipt: EventReceipt) -> None:
        """Keep the receipt of an event. Duplicate where there is one already."""
        if self._connection.execute(_REMEMBER, asdict(receipt)).rowcount == 0:
            holder = f"an event received before, from {receipt.source}"
            raise Duplicate("event", "id", receipt.event_id, holder)
        self.dirty = True

    def last_events(self, subjects: Iterable[str]) -> dict[str, float]:
        """Time of the newest event about each VM or host, of which `note_event` was told, even
        where the subject is gone. Where it was forgotten: the newest time forgotten of any
        subject, so that no older event is ever taken for a new one. Unix seconds; without
        the subjects of which nothing was ever noted while nothing was forgotten."""
        wanted = [*subjects]
        rows = self._connection.execute(_LAST_EVENTS, {"subjects": [*wanted, ""]})
        noted: dict[str, float] = dict(rows.all())
        forgotten = noted.get("", -math.inf)
        newest = {subject: max(noted.get(subject, forgotten), forgotten) for subject in wanted}
        return {subject: at for subject, at in newest.items() if at > -math.inf}

    def last_event(self, subject: str) -> float | None:
        """`last_events` of one subject, or None."""
        return self.last_events([subject]).get(subject)

    def note_event(self, subject: str, at: float) -> None:
        """Remember the time of an event about `subject`; an older time changes nothing."""
        if not subject:
            raise ValueError("an event is about a VM or a host: the subject is empty")
        self._raise_event_time(subject, at)

    def forget_events(self, older_than: float) -> int:
        """Forget what was received (receipts) or happened (times) before `older_than`, Unix
        seconds; returns how many receipts went."""
        table = schema.event_time
        old = (table.c.at < older_than) & (table.c.subject != "")
        newest = self._connection.scalar(select(func.max(table.c.at)).where(old))
        if newest is not None:
            self._connection.execute(delete(table).where(old))
            self._raise_event_time("", newest)
        forgotten = self._connection.execute(
            delete(schema.event).where(schema.event.c.received_at < older_than)
        ).rowcount
        self.dirty = self.dirty or forgotten > 0
        return forgotten

    # Tokens and audit.

    def token(self, name: str) -> Token | None:
        """The token with this name."""
        row = self._connection.execute(
            select(schema.token).where(schema.token.c.name == name)
        ).first()
        return None if row is None else Token(**row._mapping)

    def tokens(self) -> list[Token]:
        """All tokens, by name."""
        rows = self._connection.execute(select(schema.token).order_by(schema.token.c.name))
        return [Token(**row._mapping) for row in rows]

    def put_token(self, token: Token) -> None:
        """Insert or replace a token. Duplicate where another has the same digest."""
        held = select(schema.token.c.name).where(schema.token.c.digest == token.digest)

        def clash() -> StoreError:
            holder = self._connection.scalar(held)
            return Duplicate("token", "digest", token.digest, f"token {holder}")

        with self._whole(clash):
            self._delete_where(schema.token, name=token.name)
            self._connection.execute(insert(schema.token), asdict(token))

    def revoke_token(self, name: str) -> bool:
        """Remove a token; False where there is none."""
        return self._delete_where(schema.token, name=name)

    def audit(
        self, at: float, actor: str, action: str, subject: str, detail: dict[str, object]
    ) -> None:
        """Add to the audit log, at `at` (Unix seconds). `detail` must fit JSON."""
        row = {"at": at, "actor": actor, "action": action, "subject": subject}
        self._connection.execute(
            insert(schema.audit), {**row, "detail": json.dumps(detail, sort_keys=True)}
        )
        self.dirty = True

    # What other rooms keep in tables of their own, of which the feed tells nothing.

    def read(self, statement: Executable, values: Values = None) -> CursorResult[Any]:
        """The rows that `statement` finds, with what was written before in here."""
        return self._connection.execute(statement, values)

    def write(self, statement: Executable, values: Values = None) -> CursorResult[Any]:
        """Do `statement`, for one row of `values` or for each of several."""
        self.dirty = True
        return self._connection.execute(statement, values)

    def next_number(self, name: str) -> int:
        """A number that is given once, from 1 on, of the counter `number.NAME` that a migration
        made."""
        counter = f"number.{name}"
        number = self._counter(counter) + 1
        self._count(counter, number)
        self.dirty = True
        return number

    # For the store itself.

    def report(self, rows: list[Progress]) -> None:
        """Replace the progress of the datapaths that `rows` are about."""
        if not rows:
            return
        newest = {row.datapath: row for row in rows}
        self._connection.execute(_PROGRESS, [asdict(row) for row in newest.values()])
        self.dirty = True

    def finish(self) -> None:
        """Write the feed entries: the last thing before the commit."""
        if not self._entries:
            return
        until = self.revision
        rows = [
            {"revision": self._base + i, "until": until, "kind": kind, "key": key, "body": body}
            for i, (kind, key, body) in enumerate(self._entries, 1)
        ]
        self._connection.execute(_FEED, rows)
        self._count("revision", until)

    def _body(self, shape: Shape, key: str) -> str | None:
        at = shape.kind, key
        if at not in self._bodies:
            self._bodies[at] = self._connection.scalar(_BODY[shape.kind], {"key": key})
        return self._bodies[at]

    def _enter(self, kind: str, key: str, body: str | None, record: Record | None) -> None:
        self._entries.append((kind, key, body))
        self.changes.append(Change(self.revision, kind, key, record))

    @contextmanager
    def _whole(self, why: Callable[[], StoreError | None]) -> Iterator[None]:
        """All that is written inside, or nothing; `why` explains a constraint that failed."""
        failed: IntegrityError | None = None
        # As plain SQL, which both engines take: SQLAlchemy's own costs twice as much.
        self._connection.exec_driver_sql("SAVEPOINT whole")
        known = self._bodies.copy()
        try:
            yield
        except IntegrityError as error:
            self._take_back(known)
            failed = error
        except DBAPIError:
            raise  # the database is in trouble: nothing of the transaction will be kept
        except BaseException:
            self._take_back(known)
            raise
        else:
            self._connection.exec_driver_sql("RELEASE SAVEPOINT whole")
            self.dirty = True
        if failed is not None:
            raise why() or failed from failed

    def _take_back(self, known: dict[tuple[str, str], str | None]) -> None:
        self._connection.exec_driver_sql("ROLLBACK TO SAVEPOINT whole")
        self._connection.exec_driver_sql("RELEASE SAVEPOINT whole")
        self._bodies = known

    def _write(self, shape: Shape, record: Record, body: str, before: Record | None) -> None:
        row = shape.row(record, body)
        if before is None:
            self._connection.execute(_INSERT[shape.kind], row)
        else:
            row["at"] = row.pop("key")
            self._connection.execute(_UPDATE[shape.kind], row)
        if isinstance(record, Vm):
            if isinstance(before, Vm):
                if before.nics == record.nics:
                    return
                self._connection.execute(_DROP_NICS, {"of": record.id})
            self._connection.execute(_ADD_NICS, nic_rows(record))
        elif isinstance(record, Placement | Migration):
            self._replug(record.vm)
            if isinstance(before, Migration) and before.vm != record.vm:
                self._replug(before.vm)

    def _replug(self, vm: str) -> None:
        """Make the table of plugs say what the placement and open migrations of `vm` say."""
        connection = self._connection
        held: list[Record] = []
        if (body := self._body(SHAPES["placement"], vm)) is not None:
            held.append(SHAPES["placement"].load(body))
        held += map(SHAPES["migration"].load, connection.scalars(_OPEN_MOVES, {"vm": vm}))
        wanted: dict[tuple[str, str], int] = {}
        for record in held:
            assert isinstance(record, Placement | Migration)
            for (host, port), nic in plugs(record).items():
                if wanted.setdefault((host, port), nic) != nic:
                    raise Duplicate(record.kind, "port", f"{host}/{port}", f"another NIC of {vm}")
        rows = connection.execute(_PLUGS, {"vm": vm})
        present = {(host, port): nic for host, port, nic in rows}
        gone = present.items() - wanted.items()
        new = wanted.items() - present.items()
        if gone:
            connection.execute(_UNPLUG, [{"at_host": h, "at_port": p} for (h, p), _ in gone])
        if new:
            connection.execute(
                _PLUG, [{"host": h, "port": p, "vm": vm, "nic": nic} for (h, p), nic in new]
            )

    def _numbered(self, shape: Shape, record: R) -> R:
        """A new record with the number it asks for, or the next."""
        number = number_of(record)
        counter = f"number.{shape.kind}"
        if number:
            self._count(counter, max(number, self._counter(counter)))
        else:
            number = self._counter(counter) + 1
            if number <= shape.max_number:
                self._count(counter, number)
            else:
                number = self._freed(shape)
        return record.model_copy(update={"number": number})

    def _freed(self, shape: Shape) -> int:
        """The lowest number that no record has. NumbersExhausted where there is none."""
        number = shape.table.c.number
        if self._connection.scalar(select(number).where(number == 1)) is None:
            return 1
        other = shape.table.alias()
        after = select(func.min(number) + 1).where(
            ~select(other.c.key).where(other.c.number == number + 1).exists()
        )
        free = int(self._connection.scalar(after) or 1)
        if free > shape.max_number:
            raise NumbersExhausted(shape.kind, shape.max_number)
        return free

    def _raise_event_time(self, subject: str, at: float) -> None:
        self._connection.execute(_EVENT_TIME, {"subject": subject, "at": at})
        self.dirty = True

    def _delete_where(self, table: Table, **columns: str) -> bool:
        statement = delete(table)
        for name, value in columns.items():
            statement = statement.where(table.c[name] == value)
        found = self._connection.execute(statement).rowcount > 0
        self.dirty = self.dirty or found
        return found

    def _counter(self, name: str) -> int:
        return int(self._connection.execute(_COUNTER, {"counter": name}).scalar_one())

    def _count(self, name: str, value: int) -> None:
        self._connection.execute(_COUNT, {"counter": name, "count": value})
