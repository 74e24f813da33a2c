"""What the scripts answer, as typed values. Every answer carries the terms it was given under (`clock`)."""

from __future__ import annotations

from typing import Any

import msgspec

from gpulockd.model import Gpu, PoolClock, Snapshot


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """Any answer: the pool's clock terms and the ledger clock at which it was given (in ms)."""

    clock: PoolClock
    now_ms: int


class Granted(Answer, frozen=True, kw_only=True):
    """The lease stands: `waited_ms` is the wait on the ledger clock."""

    token: int
    gpus: tuple[Gpu, ...]
    waited_ms: int


class Joined(Answer, frozen=True, kw_only=True):
    """The ticket is a member of another process's lease."""

    token: int
    lease: str
    gpus: tuple[Gpu, ...]


class Waiting(Answer, frozen=True, kw_only=True):
    """The ticket is in the queue: place 1 is next. `frozen_ms` > 0: the pool grants nothing yet, and why."""

    place: int
    queued: int
    frozen_ms: int
    why: str


class Busy(Answer, frozen=True, kw_only=True):
    """Not free now, and the request was not to wait."""


class Gone(Answer, frozen=True, kw_only=True):
    """The ticket or session has ended: `reason` tells how."""

    reason: str


class Late(Answer, frozen=True, kw_only=True):
    """The request is older than its tombstone could be: ask anew with a new id."""


class Impossible(Answer, frozen=True, kw_only=True):
    """The pool can never grant that: `kind` and `detail` tell why."""

    kind: str
    detail: str


class Deadlock(Answer, frozen=True, kw_only=True):
    """Asked for more than the lease it runs inside of."""

    lease: str


class Lapsed(Answer, frozen=True, kw_only=True):
    """The claim was not confirmed in time: ask again by request."""


class Frozen(Answer, frozen=True, kw_only=True):
    """The pool grants nothing for `remaining_ms`."""

    remaining_ms: int
    why: str


class Ended(Answer, frozen=True, kw_only=True):
    """It ended in this step."""

    reason: str


class Stale(Answer, frozen=True, kw_only=True):
    """Another token holds; nothing was changed."""

    token: int


class Alive(Answer, frozen=True, kw_only=True):
    """The session stands. `has`: (id, token, state) of all but waiting tickets; `lost`: (id, reason); `stops`: ids.

    `rung`: ids of those that are to stop if their doorbell has said so; a daemon of an earlier version writes no more.
    """

    listeners: int
    has: tuple[tuple[str, int, str], ...]
    lost: tuple[tuple[str, str], ...]
    stops: tuple[str, ...] = ()
    rung: tuple[str, ...] = ()


class Opened(Answer, frozen=True, kw_only=True):
    """The session is open. `defaults` is the pool's published configuration; `refused`: leases not accepted."""

    defaults: dict[str, Any]
    how: str
    refused: tuple[str, ...]


class Elsewhere(Answer, frozen=True, kw_only=True):
    """The pool belongs to another boot: `host` offers it."""

    host: str
    boot_id: str


class Offered(Answer, frozen=True, kw_only=True):
    """The offer stands; the pool grants nothing for `frozen_ms`."""

    how: str
    frozen_ms: int


class Noted(Answer, frozen=True, kw_only=True):
    """Taken down. `was`: the gpu's state before, where a gpu was reported."""

    was: str


class UnknownGpu(Answer, frozen=True, kw_only=True):
    """The pool has no such gpu."""


class Pictured(Answer, frozen=True, kw_only=True):
    """The snapshot that was asked for."""

    snapshot: Snapshot
    of_boot: int


class NoSession(Answer, frozen=True, kw_only=True):
    """The ledger does not know the session: open it again."""


class Unopened(msgspec.Struct, frozen=True):
    """The pool has no books: open a session first, with what is held from before."""


class AskFleet(msgspec.Struct, frozen=True):
    """The pool has no books: look whether the fleet's list names it, then ask again."""


NO_BOOKS = Unopened()
ASK_FLEET = AskFleet()
