"""Who calls, and may they? Bearer tokens with roles, and how many requests each may make.

Only the SHA-256 of a token's secret is stored: the secrets are 256 random bits, so a slow
hash would add nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from controller.api import Role
from controller.northbound.problems import TOO_MANY, UNAUTHENTICATED, Problem
from controller.settings import safe_directory
from controller.store import Store, Token

#: Seconds for which a token's validity is taken from memory: a revocation by another process
#: counts after at most this long, one by this process at once.
CACHE_S = 5.0
#: Callers and tokens remembered at most.
_MEMORY = 10_000
OPERATOR_TOKEN_FILE = "operator.token"  # noqa: S105 - the name of a file
#: Failed attempts per second and address, and at once, before an address has to wait.
FAILURES_PER_S = 5.0
FAILURE_BURST = 50


@dataclass(frozen=True, slots=True)
class Principal:
    """Who calls. `host` is set for hypervisors only."""

    name: str
    role: Role
    host: str | None = None


def new_secret() -> str:
    """A secret that nobody guesses."""
    return f"pleach_{secrets.token_urlsafe(32)}"


def digest(secret: str) -> str:
    """What is stored of a secret."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def make_operator_token(store: Store, state_dir: Path, now: float) -> Path | None:
    """Where no operator's token exists, make one and write it to a file of `state_dir` that
    only this user can read. Returns the file, or None where there was a token."""
    with store.transaction() as transaction:
        if any(token.role == Role.OPERATOR for token in transaction.tokens()):
            return None
        secret = new_secret()
        file = safe_directory(state_dir) / OPERATOR_TOKEN_FILE
        _write_private(file, f"{secret}\n")
        transaction.put_token(Token("operator", Role.OPERATOR.value, None, digest(secret), now))
        transaction.audit(now, "pleach", "token.create", "token operator", {"role": "operator"})
    return file


def _write_private(file: Path, text: str) -> None:
    beside = file.with_name(f"{file.name}.{secrets.token_hex(4)}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    beside.replace(file)


class Bucket:
    """Tokens that refill at `rate` per second up to `burst`; time in monotonic seconds."""

    __slots__ = ("at", "burst", "left", "rate")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self.rate = rate
        self.burst = burst
        self.left = burst
        self.at = now

    def take(self, now: float, count: float = 1.0) -> float:
        """0.0 and `count` taken where there is that much, else the seconds to wait for it."""
        self.left = min(self.burst, self.left + (now - self.at) * self.rate)
        self.at = now
        if self.left >= count:
            self.left -= count
            return 0.0
        return (count - self.left) / self.rate

    @property
    def empty(self) -> bool:
        """Whether less than one is left (as of the last `take`)."""
        return self.left < 1.0


class Buckets:
    """A bucket for each name; the longest unused are forgotten. A `rate` of 0 is no limit."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = burst
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()

    def take(self, name: str, now: float) -> None:
        """Take one from the bucket of `name`. Raises Problem (TOO_MANY) where it is empty."""
        if self._rate == 0:
            return
        bucket = self._buckets.get(name)
        if bucket is None:
            bucket = self._buckets[name] = Bucket(self._rate, self._burst, now)
            if len(self._buckets) > _MEMORY:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end(name)
        wait = bucket.take(now)
        if wait > 0:
            raise Problem(
                TOO_MANY,
                f"more than {self._rate:g} requests per second",
                f"Wait {wait:.1f} s, and send fewer requests (events go in batches).",
                headers={"retry-after": str(max(1, round(wait + 0.5)))},
            )


class Authenticator:
    """Tells who a bearer token is, asking the store at most every CACHE_S seconds."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: OrderedDict[str, tuple[Token, float]] = OrderedDict()
        #: How often tokens have changed.
        self._changes = 0
        #: Refuses those who try too many tokens, by address.
        self.guesses = Buckets(FAILURES_PER_S, FAILURE_BURST)

    def forget(self) -> None:
        """Ask the store anew: tokens have changed."""
        self._known.clear()
        self._changes += 1

    async def principal(self, authorization: str | None, address: str) -> Principal:
        """Whose token the Authorization header holds. Raises Problem (UNAUTHENTICATED, or
        TOO_MANY for an address that guesses)."""
        scheme, _, secret = (authorization or "").partition(" ")
        secret = secret.strip()
        if scheme.lower() != "bearer" or not secret:
            raise self._refusal(address, "the request has no bearer token")
        token = await self._token(digest(secret))
        if token is None:
            raise self._refusal(address, "the token is not known or was revoked")
        if token.expires_at is not None and token.expires_at <= time.time():
            raise self._refusal(address, f"token {token.name} has expired")
        return Principal(token.name, Role(token.role), token.host)

    async def _token(self, key: str) -> Token | None:
        now = time.monotonic()
        cached = self._known.get(key)
        if cached is not None and now - cached[1] < CACHE_S:
            return cached[0]
        changes = self._changes
        token = await asyncio.to_thread(self._store.token, key)
        if token is None:
            self._known.pop(key, None)
        elif changes == self._changes:  # else it may have been revoked since it was read
            self._known[key] = (token, now)
            if len(self._known) > _MEMORY:
                self._known.popitem(last=False)
        return token

    def _refusal(self, address: str, detail: str) -> Problem:
        self.guesses.take(address, time.monotonic())
        return Problem(
            UNAUTHENTICATED,
            detail,
            "Send `Authorization: Bearer …`; an operator makes tokens by `pleach token create`.",
            headers={"www-authenticate": 'Bearer realm="pleach"'},
        )
