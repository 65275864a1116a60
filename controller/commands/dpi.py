"""`pleach dpi`: which applications are in a capture, or arrive at a DPI port, and how the
behavioural classifier is made."""

from __future__ import annotations

import csv
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic_core import to_json

from controller.commands.common import Failure, Json, show_json, show_table
from controller.observe.applications import policy as policies
from controller.observe.applications.capture import Sniffer, SnifferError
from controller.observe.applications.identifier import Identifier
from controller.observe.applications.records import Application, Endpoint, Service, Verdict
from controller.observe.applications.services import conclude
from controller.observe.applications.worker import Identified, Worker, WorkerError
from controller.waiting import readable

app = typer.Typer(no_args_is_help=True, help="Which applications answer, by their packets.")

Policy = Annotated[
    Path, typer.Option("--policy", help="Categories and rules, YAML.", show_default=False)
]
Model = Annotated[Path | None, typer.Option(help="A behavioural classifier that `dpi train` made.")]
#: A capture is looked at as it is, however long its pauses are.
_NEVER_IDLE_S = 1e18
#: How long `watch` waits for frames before it looks after the rest (s).
_TICK_S = 0.1


@app.command()
def identify(
    file: Annotated[Path, typer.Argument(help="A capture, pcap or pcapng.")],
    policy: Policy = policies.DEFAULT,
    model: Model = None,
    flows: Annotated[bool, typer.Option("--flows", help="Each flow, not each service.")] = False,
    as_json: Json = False,
) -> None:
    """Tell which applications are in a capture."""
    rules = policies.load(policy)
    limits = replace(rules.limits(), idle_s=_NEVER_IDLE_S)
    with _told(), Worker(rules.naming(), limits, time.monotonic, model) as worker:
        found = worker.identify(file)
    if flows:
        _show_flows(found, as_json)
    else:
        _show_services(found, as_json)
    if found.trouble:
        typer.echo(f"warning: {file}: {found.trouble}; what is before it was looked at", err=True)
    for key in found.crashed:
        typer.echo(f"warning: nDPI crashed at the flow {key}", err=True)


@app.command()
def watch(
    interface: Annotated[str, typer.Argument(help="The interface behind the DPI port.")],
    policy: Policy = policies.DEFAULT,
    model: Model = None,
    seconds: Annotated[float | None, typer.Option(help="End after so long.")] = None,
) -> None:
    """Print what arrives at an interface, a verdict on a flow a line, as JSON.

    Ends by SIGINT or SIGTERM with a line of counters.
    """
    rules = policies.load(policy)
    with _told(), _stopping() as stopped:
        sniffer = Sniffer(interface)
        try:
            with Worker(rules.naming(), rules.limits(), time.monotonic, model) as worker:
                identifier = Identifier(worker, lambda _, end: end.address)
                _watch(sniffer, identifier, stopped, seconds)
        finally:
            sniffer.close()


@app.command()
def train(
    captures: Annotated[Path, typer.Option(help="A folder of captures.")],
    out: Annotated[Path, typer.Option(help="The file to write.")],
    labels: Annotated[
        str,
        typer.Option(
            help="`ndpi`: learn from flows that nDPI is sure of. Or a CSV file with the columns "
            "capture, protocol, responder, port, category; an empty field stands for any."
        ),
    ] = "ndpi",
    policy: Policy = policies.DEFAULT,
    seed: Annotated[int, typer.Option(help="Of all that is random.")] = 1,
    trees: Annotated[int, typer.Option(min=1, max=2_000, help="How many decide.")] = 150,
    as_json: Json = False,
) -> None:
    """Train the behavioural classifier on labelled captures, and tell how good it is.

    It is judged on captures that it has not seen; then all are learned from. Without a
    trained classifier, what nDPI does not know stays unknown.
    """
    from controller.observe.applications import training  # scikit-learn is slow to import

    rules = policies.load(policy)
    category = training.confirmed_category if labels == "ndpi" else None
    listed = None if category else _labels(Path(labels), rules.names)
    limits = replace(rules.limits(traces=True), idle_s=_NEVER_IDLE_S)
    samples: list[training.Sample] = []
    with _told(), Worker(rules.naming(), limits, time.monotonic) as worker:
        for file in _captures(captures):
            told = category or _label_of(listed or [], file.name)
            samples += training.samples(file.name, worker.identify(file).verdicts, told)
    try:
        trained = training.train(samples, seed, rules.behaviour.answer_from, trees)
    except training.TrainingError as error:
        raise Failure(str(error), "Give more captures.") from error
    try:
        out.write_bytes(trained.model.to_bytes())
    except OSError as error:
        raise Failure(f"{out}: cannot be written: {error.strerror}", "Correct --out.") from error
    report = {**asdict(trained.report), "flows_of": trained.flows, "left_out": trained.left_out}
    if as_json:
        show_json(report)
    else:
        for name, value in report.items():
            typer.echo(f"{name}: {value}")


@contextmanager
def _told() -> Iterator[None]:
    """Errors of the worker and of the sniffer, as errors of the command."""
    try:
        yield
    except WorkerError as error:
        raise Failure(str(error)) from error
    except SnifferError as error:
        raise Failure(str(error), "See `ip link` for the interfaces.") from error


@contextmanager
def _stopping() -> Iterator[Callable[[], bool]]:
    """Whether a signal asked to stop."""
    asked: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: asked.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _watch(
    sniffer: Sniffer, identifier: Identifier, stopped: Callable[[], bool], seconds: float | None
) -> None:
    until = None if seconds is None else time.monotonic() + seconds
    while not stopped() and (until is None or time.monotonic() < until):
        readable([sniffer.fileno()], _TICK_S)
        for frame in sniffer.frames(1_000):
            identifier.feed("", frame.time, frame.data, frame.link)
        _print_found(identifier.poll(time.time()))
    _print_found(identifier.finish(timeout_s=10.0))
    counters = {**asdict(sniffer.count()), **asdict(identifier.worker.counters)}
    typer.echo(to_json({"counters": counters}))


def _print_found(verdicts: list[tuple[Service, Verdict]]) -> None:
    for service, verdict in verdicts:
        typer.echo(to_json({"service": asdict(service), **_plain(verdict)}))


def _plain(verdict: Verdict) -> dict[str, Any]:
    """A verdict as JSON values."""
    plain: dict[str, Any] = verdict._asdict()
    for end in ("initiator", "responder"):
        plain[end] = plain[end]._asdict()
    del plain["trace"]
    return plain


def _show_flows(found: Identified, as_json: bool) -> None:
    verdicts = sorted(found.verdicts, key=lambda verdict: verdict.first_seen)
    if as_json:
        show_json([_plain(verdict) for verdict in verdicts])
        return
    show_table(
        ("PROTOCOL", "FROM", "TO", "APPLICATION", "HOW", "CATEGORY", "PACKETS", "RISKS"),
        (
            (
                v.protocol,
                _end(v.initiator),
                _end(v.responder),
                v.application,
                v.kind,
                v.category,
                v.packets,
                v.risks,
            )
            for v in verdicts
        ),
    )


def _end(end: Endpoint) -> str:
    return f"[{end.address}]:{end.port}" if ":" in end.address else f"{end.address}:{end.port}"


def _show_services(found: Identified, as_json: bool) -> None:
    services: dict[Service, list[Verdict]] = {}
    for verdict in found.verdicts:
        service = Service(verdict.responder.address, verdict.protocol, verdict.responder.port)
        services.setdefault(service, []).append(verdict)
    concluded = [
        conclude(service, verdicts, max(v.first_seen for v in verdicts))
        for service, verdicts in sorted(services.items())
    ]
    if as_json:
        show_json([asdict(application) for application in concluded])
        return
    show_table(
        ("SERVICE", "APPLICATION", "HOW", "CATEGORY", "FLOWS", "HANDSHAKE", "RESPONSE", "RISKS"),
        (_row(application) for application in concluded),
    )


def _row(known: Application) -> tuple[object, ...]:
    conflicts = "".join(f" (also {name})" for name, _ in known.conflicts)
    return (
        str(known.service),
        known.application + conflicts,
        known.kind,
        known.category,
        known.flows,
        _milliseconds(known.times.handshake_s),
        _milliseconds(known.times.response_s),
        known.risks,
    )


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1000:.2f} ms"


def _captures(folder: Path) -> list[Path]:
    try:
        files = sorted(file for file in folder.iterdir() if file.is_file())
    except OSError as error:
        raise Failure(f"{folder}: {error.strerror}", "Name a folder of captures.") from error
    return [file for file in files if file.suffix in (".pcap", ".pcapng", ".cap")]


_COLUMNS = ("capture", "protocol", "responder", "port", "category")


def _labels(path: Path, names: tuple[str, ...]) -> list[dict[str, str]]:
    """The rows of a file of labels."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
    except (OSError, UnicodeDecodeError) as error:
        raise Failure(f"{path}: cannot be read: {error}", "Name a CSV file, or ndpi.") from error
    if tuple(reader.fieldnames or ()) != _COLUMNS:
        raise Failure(f"{path}:1: the columns are wrong", f"Write {','.join(_COLUMNS)} on top.")
    for line, row in enumerate(rows, 2):
        if row["category"] not in names:
            raise Failure(
                f"{path}:{line}: category: the policy has no {row['category']!r}",
                f"Choose one of {', '.join(names)}.",
            )
    return rows


def _label_of(rows: list[dict[str, str]], capture: str) -> Callable[[Verdict], str | None]:
    """Gives the category of the first row that fits a flow of `capture`."""
    here = [row for row in rows if row["capture"] in ("", capture)]

    def label(verdict: Verdict) -> str | None:
        facts = {
            "protocol": verdict.protocol,
            "responder": verdict.responder.address,
            "port": str(verdict.responder.port),
        }
        for row in here:
            if all(row[name] in ("", value) for name, value in facts.items()):
                return row["category"]
        return None

    return label
