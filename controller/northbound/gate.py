"""What does every request pass first? Identity, role, rate, size, media type, one log line.

Pure ASGI around the application, so that a request costs no task or queue more.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from controller.api import CLOUDEVENT, CLOUDEVENTS, JSON, MSGPACK, Role
from controller.northbound.auth import Authenticator, Buckets, Principal
from controller.northbound.problems import FORBIDDEN, MEDIA_TYPE, SLOW, TOO_LARGE, Problem, of_any
from controller.settings import NorthboundSettings

log = logging.getLogger("controller.northbound")

#: Seconds that a client may take to send a body.
BODY_TIMEOUT_S = 30.0
#: Paths that say nothing worth protecting.
OPEN_PATHS = frozenset({"/v1/health", "/openapi.json", "/docs"})
EVENTS_PATH = "/v1/events"
SAMPLES_PATH = "/v1/samples"
SERVICES_PATH = "/v1/services"
#: What hypervisors tell all the time, and in which media types.
_TOLD = {
    EVENTS_PATH: (CLOUDEVENT, CLOUDEVENTS, JSON),
    SAMPLES_PATH: (MSGPACK, JSON),
    SERVICES_PATH: (JSON,),
}
#: Answers a request of one method and path.
Endpoint = Callable[[Request], Awaitable[Response]]
_READING = frozenset({"GET", "HEAD", "OPTIONS"})


class Gate:
    """Lets a request through to `app`, with its Principal in `scope["state"]`; what is asked
    most often goes to its endpoint in `direct`, by method and path, past all routing."""

    def __init__(
        self,
        app: ASGIApp,
        settings: NorthboundSettings,
        auth: Authenticator,
        direct: Mapping[tuple[str, str], Endpoint],
    ) -> None:
        self._app = app
        self._direct = direct
        self._auth = auth
        self._max_body = settings.max_body_bytes
        self._rates = Buckets(settings.requests_per_s, settings.burst)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        status = 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        scope.setdefault("state", {})["principal"] = None
        error: Exception | None = None
        try:
            await self._admit(scope)
            endpoint = self._direct.get((scope["method"], scope["path"]))
            if endpoint is None:
                await self._app(scope, self._bounded(receive), sending)
            else:
                answer = await endpoint(Request(scope, self._bounded(receive)))
                await answer(scope, receive, sending)
        except ClientDisconnect:
            status = status or 499  # the log's only: nobody is there to be told
        except Exception as caught:
            error = caught
            if status == 0:
                await of_any(caught).response()(scope, receive, sending)
        self._log(scope, status, time.perf_counter() - began, error)

    async def _admit(self, scope: Scope) -> None:
        headers = dict(scope["headers"])
        path: str = scope["path"]
        method: str = scope["method"]
        if path not in OPEN_PATHS:
            client = scope.get("client") or ("", 0)
            authorization = headers.get(b"authorization")
            principal = await self._auth.principal(
                authorization.decode("latin-1") if authorization is not None else None, client[0]
            )
            scope["state"]["principal"] = principal
            self._rates.take(principal.name, time.monotonic())
            _check_role(principal, method, path)
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._max_body:
            raise self._too_large()
        if method in ("POST", "PUT"):
            _check_media_type(path, headers)

    def _bounded(self, receive: Receive) -> Receive:
        taken = 0

        async def receiving() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self._max_body:
                raise self._too_large()
            return message

        return receiving

    def _too_large(self) -> Problem:
        return Problem(
            TOO_LARGE,
            f"a body has at most {self._max_body} bytes",
            "Send less at once, or raise northbound.max_body_bytes.",
            headers={"connection": "close"},
        )

    def _log(self, scope: Scope, status: int, took: float, error: Exception | None) -> None:
        principal: Principal | None = scope["state"].get("principal")
        fields = {
            "method": scope["method"],
            "path": scope["path"],
            "status": status,
            "took_ms": round(took * 1000, 2),
            "actor": principal.name if principal else None,
        }
        if status >= 500 or (error is not None and not isinstance(error, Problem)):
            unforeseen = error if error is not None and status == 500 else None
            log.error("request failed", extra=fields, exc_info=unforeseen)
            return
        quiet = scope["method"] in _READING or scope["path"] in _TOLD
        level = logging.DEBUG if quiet and status < 400 else logging.INFO
        log.log(level, "request", extra=fields)


def _check_role(principal: Principal, method: str, path: str) -> None:
    if principal.role is Role.OPERATOR:
        return
    if path.startswith("/v1/tokens"):
        raise _forbidden(principal, "manage tokens")
    if method in _READING:
        return
    if principal.role is Role.HYPERVISOR and method == "POST" and path in _TOLD:
        return
    raise _forbidden(principal, f"{method} {path}")


def _forbidden(principal: Principal, what: str) -> Problem:
    return Problem(
        FORBIDDEN,
        f"token {principal.name} has the role {principal.role} and may not {what}",
        "Use a token with the role operator.",
    )


def _check_media_type(path: str, headers: dict[bytes, bytes]) -> None:
    given = headers.get(b"content-type", b"").decode("latin-1").partition(";")[0].strip().lower()
    allowed = _TOLD.get(path, (JSON,))
    if given not in allowed:
        raise Problem(
            MEDIA_TYPE,
            f"the body is declared as {given or 'nothing'}",
            f"Send Content-Type: {' or '.join(allowed)}.",
        )


async def read_body(request: Request) -> bytes:
    """The whole body. Raises Problem where it is too large or too slow."""
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            return await request.body()
    except TimeoutError:
        raise Problem(
            SLOW,
            f"the body did not arrive within {BODY_TIMEOUT_S:g} s",
            "Send it at once.",
            headers={"connection": "close"},
        ) from None
