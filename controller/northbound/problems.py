"""How is a caller told that something is wrong? RFC 9457 problems, from every kind of error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import ValidationError
from pydantic_core import to_json
from starlette.responses import Response

from controller.api import PROBLEM, Fault, ProblemBody
from controller.history import errors as history
from controller.observe.cloudevents import Refused, Why, faults_of
from controller.store import errors


@dataclass(frozen=True, slots=True)
class Type:
    """One type of problem: its stable name, its title, and its HTTP status."""

    name: str
    title: str
    status: int

    @property
    def urn(self) -> str:
        """The `type` of RFC 9457."""
        return f"urn:pleach:problem:{self.name}"


MALFORMED = Type("malformed", "The request is not well formed", 400)
UNAUTHENTICATED = Type("unauthenticated", "A valid token is required", 401)
FORBIDDEN = Type("forbidden", "The token does not allow this", 403)
NOT_FOUND = Type("not-found", "There is no such thing", 404)
UNKNOWN_SUBJECT = Type("unknown-subject", "The event is about something unknown", 404)
METHOD = Type("method-not-allowed", "The path has no such method", 405)
SLOW = Type("slow-request", "The body did not arrive in time", 408)
CONFLICT = Type("conflict", "The request contradicts what is", 409)
DUPLICATE = Type("duplicate", "The value belongs to another", 409)
IN_USE = Type("in-use", "Something still refers to it", 409)
EVENT_ID_REUSED = Type("event-id-reused", "The event id was used for another event", 409)
NOT_APPLIED = Type("not-applied", "The fabric cannot apply this as it is", 409)
COMPACTED = Type("compacted", "Those changes are not kept any more", 410)
TOO_LARGE = Type("too-large", "The request is too large", 413)
MEDIA_TYPE = Type("media-type", "The body's media type is not understood", 415)
INVALID = Type("invalid", "A field is invalid", 422)
MISSING = Type("missing-reference", "The record refers to one that is not there", 422)
FUTURE = Type("event-in-the-future", "The event is dated in the future", 422)
TOO_MANY = Type("too-many-requests", "Too many requests", 429)
INTERNAL = Type("internal", "A fault in Pleach", 500)
UNAVAILABLE = Type("unavailable", "Not possible at the moment", 503)
TIMEOUT = Type("timeout", "The switches have not confirmed in time", 504)
STORE_FULL = Type("store-full", "There is no room in the store", 507)

TYPES: tuple[Type, ...] = tuple(value for value in globals().values() if isinstance(value, Type))


class Problem(Exception):  # noqa: N818 - the name that RFC 9457 gives it
    """Something to tell a caller. `headers` go with the reply."""

    def __init__(
        self,
        type_: Type,
        detail: str,
        mend: str,
        faults: tuple[Fault, ...] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.type = type_
        self.detail = detail
        self.mend = mend
        self.faults = faults
        self.headers = headers

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self.type.status

    def body(self) -> ProblemBody:
        """The problem as it is told."""
        return ProblemBody(
            type=self.type.urn,
            title=self.type.title,
            status=self.type.status,
            detail=self.detail,
            mend=self.mend,
            faults=self.faults,
        )

    def after(self, what: str) -> Problem:
        """The same problem, its detail led in by `what` had been done before."""
        return Problem(self.type, what + self.detail, self.mend, self.faults, self.headers)

    def response(self) -> Response:
        """The problem as a reply."""
        content = to_json(self.body())
        return Response(content, self.status, self.headers, PROBLEM)


_EVENT_TYPES = {
    Why.MALFORMED: MALFORMED,
    Why.UNKNOWN: UNKNOWN_SUBJECT,
    Why.CONFLICT: CONFLICT,
    Why.FUTURE: FUTURE,
}


def of_refusal(refused: Refused) -> Problem:
    """A refused event as a problem."""
    faults = tuple(Fault(pointer=f.pointer, detail=f.detail) for f in refused.faults)
    return Problem(_EVENT_TYPES[refused.why], refused.detail, refused.mend, faults)


def of_validation(error: ValidationError) -> Problem:
    """A body that does not fit its model as a problem with each fault's place."""
    faults = tuple(Fault(pointer=f.pointer, detail=f.detail) for f in faults_of(error))
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    detail = f"{faults[0].pointer or 'the body'}: {faults[0].detail}{more}"
    return Problem(INVALID, detail, "Correct what `faults` lists.", faults)


_STORE_TYPES: tuple[tuple[type[errors.StoreError], Type], ...] = (
    (errors.Duplicate, DUPLICATE),
    (errors.Missing, MISSING),
    (errors.InUse, IN_USE),
    (errors.FeedCompacted, COMPACTED),
    (errors.NumbersExhausted, STORE_FULL),
    (errors.StoreFull, STORE_FULL),
)


def of_store(error: errors.StoreError) -> Problem:
    """What the store refused or could not do, as a problem."""
    type_ = next((type_ for kind, type_ in _STORE_TYPES if isinstance(error, kind)), UNAVAILABLE)
    headers = {"retry-after": "1"} if type_ is UNAVAILABLE else None
    return Problem(type_, f"{error.place}: {error.cause}", f"{error.mend}.", (), headers)


def of_history(error: history.HistoryError) -> Problem:
    """What the history refused or could not do, as a problem."""
    match error:
        case history.BadBatch():
            type_ = INVALID if error.pointer else MALFORMED
            faults = (Fault(pointer=error.pointer, detail=error.cause),) if error.pointer else ()
            return Problem(type_, f"{error.place}: {error.cause}", f"{error.mend}.", faults)
        case history.BadQuery():
            return Problem(INVALID, error.cause, f"{error.mend}.")
        case history.StaleSequence():
            return Problem(CONFLICT, error.cause, f"{error.mend}.")
        case history.HistoryFull():
            type_ = STORE_FULL
        case _:
            type_ = UNAVAILABLE
    wait = {"retry-after": "10"}
    return Problem(type_, f"{error.place}: {error.cause}", f"{error.mend}.", headers=wait)


def of_any(error: Exception) -> Problem:
    """Any error as a problem; what is not foreseen tells nothing of the inside."""
    match error:
        case Problem():
            return error
        case Refused():
            return of_refusal(error)
        case errors.StoreError():
            return of_store(error)
        case history.HistoryError():
            return of_history(error)
    return Problem(
        INTERNAL, "an unforeseen fault; it is logged", "Report it with the log line, and try again."
    )
