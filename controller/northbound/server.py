"""The brain's process: the application put together, and served until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import signal
import socket
import ssl
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from types import FrameType

import httpx
import uvicorn
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from controller import __version__, logs
from controller.api import Explained, Fault, NewToken, Tokens, TokenSecret
from controller.history.errors import HistoryError
from controller.northbound import (
    alert_routes,
    bandwidth_routes,
    behaviour_routes,
    event_routes,
    explain_routes,
    forecast_routes,
    path_routes,
    reading_routes,
    record_routes,
    sample_routes,
    service_routes,
    signature_routes,
    token_routes,
    tunnel_routes,
)
from controller.northbound.auth import make_operator_token
from controller.northbound.brain import Brain
from controller.northbound.documents import document
from controller.northbound.gate import EVENTS_PATH, SAMPLES_PATH, Gate
from controller.northbound.problems import INVALID, METHOD, NOT_FOUND, Problem, of_any
from controller.observe.cloudevents import Refused
from controller.process import seldom_collect
from controller.settings import Problem as SettingsProblem
from controller.settings import Settings, SettingsError
from controller.store import Store, StoreError

log = logging.getLogger("controller.northbound")

#: Longest turn of a thread that computes while others wait, in seconds.
SWITCH_S = 0.0005
#: Seconds that requests under way have to end after a signal.
GRACE_S = 5
#: Seconds between two looks meanwhile at whose connections are over.
_PART_S = 0.05


def application(brain: Brain) -> Gate:
    """The ASGI application of `brain`, which starts and stops with it."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await _build_routes(app)
        await brain.start()
        try:
            yield
        finally:
            await brain.stop()

    app = FastAPI(
        title="Pleach",
        version=__version__,
        lifespan=lifespan,
        openapi_url="/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.documented = [*reading_routes.MODELS, *sample_routes.MODELS]
    app.state.documented += [*alert_routes.MODELS, *behaviour_routes.MODELS]
    app.state.documented += bandwidth_routes.MODELS
    app.state.documented += service_routes.MODELS
    app.state.documented += signature_routes.MODELS
    app.state.documented += path_routes.MODELS
    app.state.documented += tunnel_routes.MODELS
    app.state.documented += forecast_routes.MODELS
    app.state.documented += [Explained, NewToken, Tokens, TokenSecret]
    for routes in (
        event_routes,
        record_routes,
        reading_routes,
        explain_routes,
        sample_routes,
        token_routes,
        alert_routes,
        behaviour_routes,
        bandwidth_routes,
        service_routes,
        signature_routes,
        path_routes,
        tunnel_routes,
        forecast_routes,
    ):
        app.include_router(routes.router(brain))
    app.openapi = lambda: document(app)  # type: ignore[method-assign]
    for kind in (Problem, Refused, StoreError, HistoryError):
        app.add_exception_handler(kind, _told)
    app.add_exception_handler(RequestValidationError, _told_query)
    app.add_exception_handler(HTTPException, _told_http)
    app.add_exception_handler(Exception, _told)
    direct = {
        ("POST", EVENTS_PATH): event_routes.endpoint(brain),
        ("POST", SAMPLES_PATH): sample_routes.endpoint(brain),
    }
    return Gate(app, brain.settings.northbound, brain.auth, direct)


async def _build_routes(app: FastAPI) -> None:
    """Have all routes made ready before there are threads beside this one.

    FastAPI does that at the first request that goes past them, and silences warnings meanwhile;
    threads that import or silence something themselves would undo that, or it theirs.
    """
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app)) as client:
        await client.get("http://brain/nothing-is-here")  # a path that every route is asked about


async def _told(_: Request, error: Exception) -> Response:
    return of_any(error).response()


async def _told_query(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    faults = tuple(
        Fault(pointer=".".join(map(str, found["loc"])), detail=found["msg"])
        for found in error.errors()
    )
    detail = f"{faults[0].pointer}: {faults[0].detail}"
    return Problem(INVALID, detail, "Correct what `faults` lists.", faults).response()


async def _told_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.url.path
    if error.status_code == 404:
        problem = Problem(NOT_FOUND, f"there is no path {path}", "See /openapi.json.")
    elif error.status_code == 405:
        detail = f"{request.method} is not possible at {path}"
        problem = Problem(METHOD, detail, "See `Allow`.", headers=error.headers)
    else:
        raise error
    return problem.response()


class Server(uvicorn.Server):
    """Uvicorn's, ended by a signal without raising it anew, so that what follows is done."""

    def __init__(self, config: uvicorn.Config, brain: Brain) -> None:
        super().__init__(config)
        self.brain = brain
        self._loop: asyncio.AbstractEventLoop | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        self._loop = asyncio.get_running_loop()
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {
            number: signal.signal(number, self.handle_exit)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        self.stop()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        parting = asyncio.create_task(self._part(), name="parting")
        try:
            await super().shutdown(sockets)
        finally:
            parting.cancel()

    async def _part(self) -> None:
        """Take leave of clients without their reply. A TLS connection that is closed waits for
        the other side's close_notify, and who keeps it for later requests does not look."""
        while self.config.ssl is not None:
            for connection in list(self.server_state.connections):
                transport = connection.transport
                if transport.is_closing() and not transport.get_write_buffer_size():
                    # Ours is sent, or on its way in TCP, which an end from there does not stop.
                    _hear_no_more(transport)
            await asyncio.sleep(_PART_S)

    def stop(self) -> None:
        """End once the requests under way are answered. From any thread."""
        self.should_exit = True
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self.brain.begin_stop)


def _hear_no_more(transport: asyncio.Transport) -> None:
    """Let a connection see the end of what the other side sends."""
    number = transport.get_extra_info("socket").fileno()
    # The event loop's own object does not let it be done.
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(number)) as connection:
        connection.shutdown(socket.SHUT_RD)


def server(settings: Settings, store: Store) -> Server:
    """A server of `store` that is not yet running. Raises SettingsError for TLS files."""
    brain = Brain(settings, store)
    tls = settings.northbound.tls
    tls.check("northbound.tls")
    config = uvicorn.Config(
        application(brain),
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=GRACE_S,
        ssl_certfile=tls.certificate,
        ssl_keyfile=tls.key,
        ssl_ca_certs=str(tls.client_ca) if tls.client_ca else None,
        ssl_cert_reqs=_client_certificates(settings),
    )
    try:
        config.load()
    except ssl.SSLError as error:
        # Which of the files it is, OpenSSL does not say.
        files = ", ".join(str(file) for file in (tls.certificate, tls.key, tls.client_ca) if file)
        raise SettingsError(
            SettingsProblem(
                files,
                "northbound.tls",
                f"cannot be used ({error.reason or error})",
                "give a PEM certificate, the key that belongs to it, and as client_ca, if any, "
                "PEM certificates too",
            )
        ) from error
    if config.ssl is not None:
        # What OpenSSL takes as the least otherwise is the distribution's choice (RFC 8996).
        config.ssl.minimum_version = ssl.TLSVersion.TLSv1_2
    return Server(config, brain)


def _client_certificates(settings: Settings) -> int:
    """A client's certificate is asked for beside its token, not in its place: uvicorn does
    not tell an application whose certificate it was."""
    tls = settings.northbound.tls
    if tls.require_client_certificate:
        return ssl.CERT_REQUIRED
    return ssl.CERT_OPTIONAL if tls.client_ca else ssl.CERT_NONE


def listen(settings: Settings, *, plain: bool) -> socket.socket:
    """The listening socket. Raises SettingsError where the address cannot be had, or where
    tokens would cross a network without TLS and `plain` does not allow that."""
    northbound = settings.northbound
    host, port = northbound.host, northbound.port
    place = f"{host}:{port}"
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        if not (northbound.tls.enabled or plain or _is_loopback(str(address[0]))):
            raise SettingsError(
                SettingsProblem(
                    place,
                    "northbound.host",
                    "tokens would cross the network in the clear",
                    "set northbound.tls, or start with --plain behind a proxy that speaks TLS",
                )
            )
        listening = socket.socket(family, kind, proto)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(address)
        except OSError:
            listening.close()
            raise
    except OSError as error:
        hint = "choose another northbound.port or host, or end what uses it"
        cause = f"cannot be listened at: {error.strerror or error}"
        raise SettingsError(SettingsProblem(place, "northbound.port", cause, hint)) from error
    return listening


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def serve(settings: Settings, *, plain: bool = False) -> None:
    """Run the brain until SIGTERM or SIGINT.

    Raises SettingsError and StoreError where it cannot start. `plain` allows addresses other
    than loopback without TLS.
    """
    logs.configure(settings.log.level, settings.log.format)
    # The loop and the writer share one interpreter: neither should wait 5 ms for its turn.
    sys.setswitchinterval(SWITCH_S)
    seldom_collect()
    listening = listen(settings, plain=plain)
    with contextlib.closing(listening), contextlib.closing(open_store(settings)) as store:
        file = make_operator_token(store, settings.state_dir, time.time())
        if file is not None:
            log.info("operator's token made", extra={"file": str(file)})
        running = server(settings, store)
        host, port = listening.getsockname()[:2]
        log.info(
            "brain starts",
            extra={"host": host, "port": port, "tls": settings.northbound.tls.enabled},
        )
        running.run(sockets=[listening])
        log.info("brain has stopped")


def open_store(settings: Settings) -> Store:
    """The store of `settings`."""
    return Store.open(
        settings.store.url,
        busy_timeout_s=settings.store.busy_timeout_s,
        feed_keep=settings.store.feed_keep,
    )
