"""Tokens: made, listed and revoked by operators."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from controller.api import NewToken, Role, TokenInfo, Tokens, TokenSecret
from controller.model.nouns import Host
from controller.northbound.auth import digest, new_secret
from controller.northbound.brain import Brain, parsed, principal, reply, validated, written
from controller.northbound.documents import TOKEN_EXAMPLE, body, replies
from controller.northbound.gate import read_body
from controller.northbound.problems import CONFLICT, DUPLICATE, MISSING, NOT_FOUND, Problem
from controller.northbound.record_routes import Key
from controller.store import Token, Transaction


def router(brain: Brain) -> APIRouter:
    """The routes of tokens."""
    routes = APIRouter(tags=["tokens"])

    @routes.post(
        "/v1/tokens",
        operation_id="create_token",
        status_code=201,
        responses=replies(TokenSecret, 201, "Made; the secret is told this once"),
        openapi_extra=body(NewToken, TOKEN_EXAMPLE),
    )
    async def create(request: Request) -> Response:
        """Make a token."""
        wanted = validated(NewToken, parsed(await read_body(request)))
        secret, now = new_secret(), time.time()
        expires = None if wanted.lifetime_s is None else now + wanted.lifetime_s
        token = Token(wanted.name, wanted.role.value, wanted.host, digest(secret), now, expires)
        await written(brain, _Create(token, principal(request).name))
        return reply(TokenSecret(**_info(token), secret=secret), 201)

    @routes.get("/v1/tokens", operation_id="list_tokens", responses=replies(Tokens))
    async def listed() -> Response:
        """All tokens, without their secrets."""
        tokens = await written(brain, lambda transaction: transaction.tokens())
        return reply(Tokens(items=tuple(TokenInfo(**_info(token)) for token in tokens)))

    @routes.delete("/v1/tokens/{key}", operation_id="revoke_token", status_code=204)
    async def revoke(key: Key, request: Request) -> Response:
        """Revoke a token, at once."""
        actor = principal(request).name

        def work(transaction: Transaction) -> None:
            held = transaction.tokens()
            if all(token.name != key for token in held):
                raise Problem(NOT_FOUND, f"there is no token {key}", "See GET /v1/tokens.")
            if not any(t.role == Role.OPERATOR and t.name != key for t in held):
                raise Problem(
                    CONFLICT,
                    f"token {key} is the last of an operator",
                    "Make another operator's token first.",
                )
            transaction.revoke_token(key)
            transaction.audit(time.time(), actor, "token.revoke", f"token {key}", {})

        await written(brain, work)
        brain.auth.forget()
        return Response(status_code=204)

    return routes


class _Create:
    def __init__(self, token: Token, actor: str) -> None:
        self._token = token
        self._actor = actor

    def __call__(self, transaction: Transaction) -> None:
        token = self._token
        if transaction.token(token.name) is not None:
            raise Problem(
                DUPLICATE,
                f"token {token.name} is there already",
                "Choose another name, or revoke that one first.",
            )
        if token.host is not None and transaction.get(Host, token.host) is None:
            raise Problem(
                MISSING, f"there is no host {token.host}", f"PUT /v1/hosts/{token.host} first."
            )
        transaction.put_token(token)
        detail: dict[str, object] = {"role": token.role, "host": token.host}
        transaction.audit(
            token.created_at, self._actor, "token.create", f"token {token.name}", detail
        )


def _info(token: Token) -> dict[str, Any]:
    shown = replace(token, digest="")
    return {
        "name": shown.name,
        "role": shown.role,
        "host": shown.host,
        "created_at": shown.created_at,
        "expires_at": shown.expires_at,
    }
