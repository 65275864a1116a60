"""Which schema has a database, and how does it get the newest?"""

from __future__ import annotations

from sqlalchemy import Connection

from controller.store.errors import SchemaTooNew, StoreCorrupt, StoreUnavailable
from controller.store.schema import HEAD


def outdated(connection: Connection, place: str, mend: str) -> bool:
    """Whether the database of Pleach at `connection` needs `migrate`.

    Raises SchemaTooNew, and StoreCorrupt with `mend` where it does not say what it has."""
    found = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    if not isinstance(found, str):
        raise StoreCorrupt(place, "it does not say what schema it has", mend)
    if found > HEAD:
        raise SchemaTooNew(
            place,
            f"its schema is {found} and this Pleach knows up to {HEAD}",
            "start the newer Pleach that wrote it, or restore an older backup",
        )
    return found != HEAD


def older(place: str) -> StoreUnavailable:
    """The error of who must not upgrade the database `place`, and may find none of Pleach."""
    return StoreUnavailable(
        place, "it holds no store of this version", "start Pleach with it once, or correct the URL"
    )


def migrate(connection: Connection) -> None:
    """Bring the database to the newest schema, in the transaction that is open."""
    # Imported here, because it takes long and hardly any start needs it.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", "controller.store:migrations")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
