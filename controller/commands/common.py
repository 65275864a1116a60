"""What do all commands share? Where the server is, how results are shown, how errors end.

Exit codes: 0 done; 1 refused by the server; 2 the command, the settings, the store or a file
is wrong; 3 the server cannot be reached; 4 not allowed; 5 the switches did not confirm.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from enum import IntEnum
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel, ValidationError
from pydantic_core import to_json

from controller.api import EventReply
from controller.client import Client, Problem
from controller.model.nouns import Vm
from controller.settings import Settings, SettingsError, load
from controller.store import StoreError

#: The file in `state_dir` to which the brain writes the operator's token.
TOKEN_FILE = "operator.token"  # noqa: S105 - the name of a file


class Exit(IntEnum):
    """How a command ended."""

    DONE = 0
    REFUSED = 1
    WRONG = 2
    UNREACHABLE = 3
    NOT_ALLOWED = 4
    NOT_APPLIED = 5


Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Wait = Annotated[
    bool, typer.Option("--wait/--no-wait", help="Return once the switches have confirmed.")
]
Timeout = Annotated[
    float | None, typer.Option("--timeout", help="Seconds to wait for the switches at most.")
]


class Failure(Exception):  # noqa: N818 - it ends a command and is told, not traced
    """Something that ends a command: what was wrong, what to do, and how to exit."""

    def __init__(self, detail: str, mend: str = "", code: Exit = Exit.WRONG) -> None:
        super().__init__(detail)
        self.mend = mend
        self.code = code


class Place:
    """Where the settings and the server are, as the options before the command say."""

    config: Path | None = None
    url: str | None = None
    certificate: tuple[Path, Path] | None = None


PLACE = Place()


def settings() -> Settings:
    """The settings of this machine. Raises SettingsError."""
    return load(PLACE.config, os.environ)


@contextmanager
def client() -> Iterator[Client]:
    """A client of the server that options, environment or settings name."""
    url = PLACE.url or os.environ.get("PLEACH_URL")
    token = os.environ.get("PLEACH_TOKEN")
    ca = os.environ.get("PLEACH_CA")
    if url is None or token is None:
        local = settings()
        url = url or _local_url(local)
        token = token or _local_token(local)
    try:
        made = Client(url, token, ca=Path(ca) if ca else None, certificate=PLACE.certificate)
    except OSError as error:
        files = [ca, *map(str, PLACE.certificate or ())]
        raise Failure(
            f"one of {', '.join(filter(None, files))} cannot be used: {error.strerror or error}",
            "Name PEM files by PLEACH_CA, --certificate and --key.",
        ) from error
    with made:
        yield made


def _local_url(local: Settings) -> str:
    northbound = local.northbound
    scheme = "https" if northbound.tls.enabled else "http"
    host = northbound.host
    try:
        if ip_address(host).is_unspecified:  # listening everywhere: here is one of the places
            host = "127.0.0.1" if ip_address(host).version == 4 else "::1"
        if ip_address(host).version == 6:
            host = f"[{host}]"
    except ValueError:
        pass  # a name stays as it is
    return f"{scheme}://{host}:{northbound.port}"


def _local_token(local: Settings) -> str:
    file = local.state_dir / TOKEN_FILE
    try:
        return file.read_text().strip()
    except OSError as error:
        raise Failure(
            f"no token: PLEACH_TOKEN is not set, and {file}: {error.strerror}",
            "Set PLEACH_TOKEN, or run this as the user that `pleach brain` runs as, once it "
            "has started.",
            Exit.NOT_ALLOWED,
        ) from error


def show_json(value: object) -> None:
    """Print a value as JSON."""
    typer.echo(to_json(value, indent=2).decode())


def show_table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows in aligned columns."""
    cells = [[*headers], *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headers))]
    for row in cells:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        typer.echo(line.rstrip())


def show_fields(fields: Iterable[tuple[str, object]]) -> None:
    """Print name and value, a line each; what is empty is left out."""
    told = [(name, _cell(value)) for name, value in fields]
    told = [(name, value) for name, value in told if value]
    width = max((len(name) for name, _ in told), default=0)
    for name, value in told:
        typer.echo(f"{name.ljust(width)}  {value}")


def _cell(value: object) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case dict():
            return " ".join(f"{name}={_cell(v)}" for name, v in value.items() if _cell(v))
        case tuple() | list():
            return ", ".join(map(_cell, value))
    return "".join(c if c.isprintable() else "?" for c in str(value))


def show_record(record: BaseModel, as_json: bool) -> None:
    """Print one record."""
    if as_json:
        show_json(record)
    else:
        show_fields(record.model_dump(mode="json").items())


def show_event(told: EventReply, as_json: bool) -> None:
    """Print what became of an event; warnings go to stderr."""
    if as_json:
        show_json(told)
        return
    typer.echo(f"{told.outcome}: {told.reason} (revision {told.revision})")
    for warning in told.warnings:
        typer.echo(f"warning: {warning}", err=True)


def refuse_unknown(pleach: Client, vm: str | None, found: Sized) -> None:
    """Refuse a VM that is not there, which a filter that finds nothing does not tell."""
    if vm is not None and not found:
        pleach.get(Vm, vm)


def made(build: Callable[[], Any]) -> Any:
    """What `build` makes of the command's words, each fault told with its option."""
    try:
        return build()
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, e['loc']))}: {e['msg'].removeprefix('Value error, ')}"
            for e in error.errors(include_url=False)
            if e["type"] != "default_factory_not_called"  # follows from another fault
        )
        raise Failure(faults, "Correct the command's words.") from error


def exit_of(problem: Problem) -> Exit:
    """The exit code for what the server refused."""
    if problem.status == 0:
        return Exit.UNREACHABLE
    if problem.status in (401, 403):
        return Exit.NOT_ALLOWED
    return Exit.NOT_APPLIED if problem.type in ("not-applied", "timeout") else Exit.REFUSED


def complain(error: Exception) -> Exit | None:
    """Tell an expected error on stderr and how to exit; None for any other."""
    match error:
        case Problem():
            lines = [f"error: {error.detail}"]
            lines += [f"  {fault.pointer}: {fault.detail}" for fault in error.faults]
            return _say(lines, error.mend, exit_of(error))
        case Failure():
            return _say([f"error: {error}"], error.mend, error.code)
        case SettingsError():
            return _say([f"error: {problem}" for problem in error.problems], "", Exit.WRONG)
        case StoreError():
            return _say([f"error: {error.place}: {error.cause}"], error.mend, Exit.WRONG)
    return None


def _say(lines: list[str], mend: str, code: Exit) -> Exit:
    sys.stderr.write("\n".join([*lines, *([f"mend: {mend}"] if mend else [])]) + "\n")
    return code
