"""Errors as RFC 9457 problems: every one carries a hint that says what to do."""

from __future__ import annotations

import difflib
import re
from http import HTTPStatus
from typing import Any

import msgspec
from starlette.responses import Response

from gpulockd.config.staged import NotNow
from gpulockd.errors import (
    ConfigConflict,
    ConfigError,
    EndedOutside,
    GpuLockError,
    GpuLockTimeout,
    ImpossibleRequest,
    LeaseLost,
    StoreUnavailable,
    Unvalidated,
    WouldDeadlock,
)
from gpulockd.ledger.revisions import UnknownRevision
from gpulockd.settings import Settings

MEDIA_TYPE = "application/problem+json"


class Problem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What went wrong: `kind` is one word for programs, `hint` says what to do."""

    status: int
    title: str
    kind: str
    detail: str = ""
    hint: str = ""
    reasons: tuple[str, ...] = ()


class ProblemError(Exception):
    """Answers a request with a problem.

    :param headers: further headers of the answer
    """

    def __init__(self, problem: Problem, headers: dict[str, str] | None = None) -> None:
        super().__init__(problem.detail or problem.title)
        self.problem = problem
        self.headers = headers or {}


def problem(status: int, kind: str, detail: str, hint: str, *, reasons: tuple[str, ...] = ()) -> Problem:
    """Return a problem whose title is the status's own phrase."""
    title = HTTPStatus(status).phrase
    return Problem(status=status, title=title, kind=kind, detail=detail, hint=hint, reasons=reasons)


def refusal(status: int, kind: str, detail: str, hint: str, *, headers: dict[str, str] | None = None) -> ProblemError:
    """Return the error to raise in a handler."""
    return ProblemError(problem(status, kind, detail, hint), headers)


class CannotHold(ImpossibleRequest):
    """Nobody can hold a lease for that process.

    :param hint: what to do
    """

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


class HoldsAlready(WouldDeadlock):
    """That process holds already, or asks already.

    :param hint: what to do
    """

    def __init__(self, message: str, hint: str, *, held: tuple[str, ...] = ()) -> None:
        super().__init__(message, held=held)
        self.hint = hint


_OURS: tuple[tuple[type[GpuLockError], int, str, str], ...] = (
    (StoreUnavailable, 503, "store", "the daemon tries again by itself; ask again in a moment"),
    (ImpossibleRequest, 422, "impossible", "GET /api/v1/gpus lists what there is"),
    (EndedOutside, 409, "ended", "ask again, with a new ticket"),
    (WouldDeadlock, 409, "would_deadlock", "ask for all GPUs in one call"),
    (LeaseLost, 410, "lost", "stop using the GPU and ask again"),
    (UnknownRevision, 404, "not_found", "GET /api/v1/config/history lists them; the last 1,000 are kept"),
    (NotNow, 409, "not_now", "`gpulockd config rollout` says where it stands"),
    (ConfigConflict, 409, "conflict", "look at `gpulockd config show`, then send the change again"),
    (Unvalidated, 409, "unvalidated", "validate it with `gpulockd bench config`, or say unvalidated (--unvalidated)"),
    (ConfigError, 422, "config", "`gpulockd config show` prints what is in force"),
)


def of_error(error: GpuLockError) -> Problem:
    """Return the problem that one of our errors means."""
    if isinstance(error, GpuLockTimeout):
        if error.max_wait_s == 0:  # however long a slow store took to say so
            return problem(409, "busy", error.message, "ask with max_wait_time to wait for it")
        return problem(408, "timeout", error.message, "wait longer with max_wait_time, or raise priority")
    for kind, status, word, hint in _OURS:
        if isinstance(error, kind):
            if isinstance(error, CannotHold | HoldsAlready):
                return problem(status, word, error.message, error.hint or hint)
            detail, _, cure = error.message.rpartition("; ") if word == "config" else (error.message, "", "")
            return problem(status, word, detail or error.message, cure if detail and cure else hint)
    return problem(500, "internal", error.message, "the daemon's log says more")


def raw_answer(found: Problem) -> bytes:
    """Return the whole HTTP answer for a problem that ends its connection, for where there is no request yet."""
    body = msgspec.json.encode(found)
    head = f"HTTP/1.1 {found.status} {found.title}\r\ncontent-type: {MEDIA_TYPE}\r\ncontent-length: {len(body)}\r\n"
    return head.encode() + b"connection: close\r\n\r\n" + body


def response(found: Problem, headers: dict[str, str] | None = None) -> Response:
    """Return the HTTP answer for a problem."""
    return Response(
        msgspec.json.encode(found), status_code=found.status, media_type=MEDIA_TYPE, headers=dict(headers or {})
    )


def of_form(message: str, kind: Any) -> Problem:
    """Return the problem of a body that is not of the form `kind`, from what msgspec says of it."""
    what, _, where = message.partition(" - at ")
    path = where.strip("`").removeprefix("$").removeprefix(".")
    words = what.replace("Expected `int` >= 0", "expected a whole number from 0").replace("`", "")
    detail = f"{path}: {words[:1].lower()}{words[1:]}" if path else words[:1].lower() + words[1:]
    hint = "GET /api/v1/openapi.json tells the form of each body"
    unknown = re.match(r"Object contains unknown field `(\w+)`", message)
    if unknown is not None:
        known: tuple[str, ...] = getattr(kind, "__struct_encode_fields__", ())
        name, near = unknown[1], difflib.get_close_matches(unknown[1], known, n=1, cutoff=0.7)
        detail = f"{path + ': ' if path else ''}there is no field {name!r}"
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}" if known else hint
        if "set" in known and name in Settings.__struct_encode_fields__:
            hint = f'put it under "set": {{"set": {{"{name}": …}}}}'
    return problem(422, "invalid", detail, hint)
