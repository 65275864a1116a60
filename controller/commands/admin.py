"""`pleach token|store|settings`: what keeps the controller itself in order."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
import yaml

from controller.api import NewToken
from controller.commands.common import (
    PLACE,
    Failure,
    Json,
    client,
    made,
    settings,
    show_fields,
    show_json,
    show_table,
)
from controller.commands.settings_help import explained
from controller.settings import masked
from controller.store import Store, copy_store
from controller.store import backup as back_up

token = typer.Typer(no_args_is_help=True, help="Who may call.")
store = typer.Typer(no_args_is_help=True, help="The state of record, on this machine.")
config = typer.Typer(no_args_is_help=True, help="The settings, on this machine.")

Name = Annotated[str, typer.Argument(help="The token's name.")]


def _instant(at: float | None) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds") if at else "never"


@token.command()
def create(
    name: Name,
    role: Annotated[str, typer.Option(help="hypervisor, operator or viewer.")],
    host: Annotated[str | None, typer.Option(help="The host of a hypervisor's token.")] = None,
    lifetime: Annotated[float | None, typer.Option(help="Seconds; else for ever.")] = None,
    as_json: Json = False,
) -> None:
    """Make a token; its secret is printed this once."""
    fields = {"name": name, "role": role, "host": host, "lifetime_s": lifetime}
    wanted = made(lambda: NewToken.model_validate(fields))
    with client() as pleach:
        told = pleach.create_token(wanted)
    if as_json:
        show_json(told)
    else:
        typer.echo(told.secret)


@token.command("list")
def list_tokens(as_json: Json = False) -> None:
    """List tokens, without their secrets."""
    with client() as pleach:
        tokens = pleach.tokens()
    if as_json:
        show_json(tokens)
        return
    show_table(
        ("TOKEN", "ROLE", "HOST", "CREATED", "EXPIRES"),
        ((t.name, t.role, t.host, _instant(t.created_at), _instant(t.expires_at)) for t in tokens),
    )


@token.command()
def revoke(name: Name) -> None:
    """Revoke a token, at once."""
    with client() as pleach:
        pleach.revoke_token(name)
    typer.echo(f"revoked token {name}")


@store.command()
def backup(file: Annotated[Path, typer.Argument(help="A file that is not there yet.")]) -> None:
    """Copy the store into an SQLite file while others go on working.

    A store in PostgreSQL comes back by `pleach store copy sqlite:///FILE URL --replace`.
    """
    back_up(settings().store.url, file)
    typer.echo(f"wrote {file}")


@store.command()
def check() -> None:
    """Read the whole store and tell whether it is sound."""
    local = settings().store
    with closing(Store.open(local.url, busy_timeout_s=local.busy_timeout_s)) as opened:
        opened.check()
        typer.echo(f"{masked(local.url)}: sound, at revision {opened.revision}")


@store.command("copy")
def copy_all(
    source: Annotated[str, typer.Argument(metavar="FROM_URL", help="The store to copy.")],
    target: Annotated[str, typer.Argument(metavar="TO_URL", help="An empty database, or none.")],
    replace: Annotated[
        bool, typer.Option("--replace", help="Lose what is at TO_URL already.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Copy a store to another database, of either engine, and compare the two.

    Stop Pleach first: what is written at FROM_URL afterwards is not in the copy. A password
    is better told by PGPASSWORD or PGPASSFILE than in a URL.
    """
    copied = copy_store(source, target, replace=replace)
    if as_json:
        show_json(asdict(copied))
        return
    show_table(("TABLE", "ROWS"), copied.rows.items())
    typer.echo(f"{masked(target)}: the same as the source at revision {copied.revision}")


@config.command("check")
def check_settings() -> None:
    """Tell whether the settings are right, or all that is wrong with them."""
    local = settings()
    local.northbound.tls.check("northbound.tls")
    local.southbound.tls.check("southbound.tls")
    typer.echo(f"{PLACE.config or 'settings'}: right")


@config.command()
def show(as_json: Json = False) -> None:
    """Show every setting, from file, environment or default."""
    values = settings().model_dump(mode="json")
    if as_json:
        show_json(values)
    elif values:
        typer.echo(yaml.safe_dump(values, sort_keys=False).rstrip())
    else:
        show_fields([])


@config.command()
def explain(
    key: Annotated[str, typer.Argument(help="Such as paths or paths.hedge; all without.")] = "",
) -> None:
    """Say what settings mean, as YAML that a file of settings can begin with."""
    try:
        typer.echo(explained(settings().model_dump(mode="json"), key))
    except ValueError as error:
        raise Failure(str(error), "`pleach settings show` lists all there are.") from None
