"""The daemon's session in its pool, and what it publishes there for clients."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any, Protocol

import anyio
import msgspec
import structlog

from gpulockd.client.line import Line
from gpulockd.client.session import OpenAnswer, Session
from gpulockd.client.whoami import machine
from gpulockd.clock import boottime_s
from gpulockd.errors import ConfigError, GpuLockError, StoreUnavailable
from gpulockd.ledger import answers as a
from gpulockd.ledger import verbs
from gpulockd.ledger.store import Store
from gpulockd.ledger.verbs import Brought, BroughtLease, Terms
from gpulockd.model import Gpu, Process
from gpulockd.settings import Settings

REBOOT_RETRY_S = 0.5

LOOK_S = 0.1
"""How often a freeze that waits for the guard looks whether it knows all (in seconds)."""

_log = structlog.get_logger(__name__)


class Guarding(Protocol):
    """The guard, as the offer sees it."""

    def knows_all(self, *, after_ttl: bool = False) -> bool:
        """Whether nobody can be on a gpu here without its knowledge; `after_ttl`: nobody was answered for a ttl."""

    def began_alone(self) -> None:
        """The pool was never used before it."""

    def doubt(self) -> None:
        """Somebody may have begun without it."""

    @property
    def highest_token(self) -> int:
        """The highest token that it has let in."""

    def assertions(self) -> list[tuple[str, Process, BroughtLease]]:
        """The leases that are in, each with its session and process, as the ledger must be told of them."""


class ElsewhereError(ConfigError):
    """The pool belongs to another host: choose another pool with --pool, or another Redis."""

    host: str = ""


class OfferingSession(Session):
    """The daemon's session. It tells when an answer shows another epoch, or when it has begun anew."""

    on_change: Callable[[], None] | None = None
    on_anew: Callable[[], None] | None = None
    """Told from any thread when the session has ended in the ledger, so that the pool has had no guard for a while."""

    _seen: tuple[str, str] = ("", "")

    def heard(self, asked_at: float, answer: a.Answer) -> None:
        """As every session, and look whether the offer may be lost; also called by the keepalive thread."""
        super().heard(asked_at, answer)
        now = (self.id, answer.clock.epoch)
        if now != self._seen:
            self._seen = now
            if self.on_change is not None:
                self.on_change()

    def begin_anew(self, ended_id: str, reason: str) -> None:
        """As every session; the pool may have been without its guard."""
        if self.id == ended_id and self.on_anew is not None:
            self.on_anew()
        super().begin_anew(ended_id, reason)

    def opened(self, asked_at: float, answer: OpenAnswer, asked_id: str) -> bool:
        """:raises ElsewhereError: if the daemon of another host offers this pool"""
        if isinstance(answer, a.Elsewhere):
            raise elsewhere(self.pool, answer)
        return super().opened(asked_at, answer, asked_id)


def defaults_of(settings: Settings) -> dict[str, Any]:
    """Return what the pool publishes for its clients, as plain JSON values."""
    return {
        name: msgspec.to_builtins(getattr(settings, name))
        for name in ("gpu_lock", "session", "gpu_lock_monitor", "settle")
    }


def open_session(url: str, pool: str, settings: Settings, api_socket: str) -> OfferingSession:
    """Return the daemon's session, not open yet.

    :raises ConfigError: if `pool` cannot be the name of a pool
    """
    terms = Terms.of(settings.session, settings.queue, settings.settle)
    return OfferingSession(url, pool, settings.session, terms, socket=api_socket)


def with_memory(gpu: Gpu) -> Gpu:
    """A card that shares the host's memory has none to be divided."""
    return gpu if gpu.memory_mib is not None else msgspec.structs.replace(gpu, memory_mib=0)


def elsewhere(pool: str, answer: a.Elsewhere) -> ElsewhereError:
    host = answer.host or answer.boot_id
    return ElsewhereError(
        f"pool {pool!r} is offered by a daemon that runs on host {host!r}: give this host a pool of its own "
        "(--pool NAME, GPULOCKD_POOL or 'pool:' in config.yml), or stop that daemon",
        host=answer.host,
    )


async def open_after_reboot(line: Line) -> None:
    """Open the session; after a reboot of this host wait until the ledger has ended its earlier offer.

    :raises ElsewhereError: if another host offers this pool
    """
    until_s = boottime_s() + line.session.terms.ttl_ms / 1000 + 2.0
    said = False
    while True:
        try:
            return await line.ready()
        except ElsewhereError as other:
            if other.host != socket.gethostname() or boottime_s() > until_s:
                raise
            if not said:
                said = True
                _log.info("offer.waits", message="waiting for the end of this host's offer of an earlier boot")
            await anyio.sleep(REBOOT_RETRY_S)


class Doubt:
    """A freeze that waits for the guard to know all who are in: the ledger has lost its data, and the guard is not
    sure of its own. It may become sure at any time, and the offer must then be made again."""

    def __init__(self, guard: Guarding | None) -> None:
        self._guard = guard
        self._ttl_s = 0.0
        self._epoch = ""
        self._began_at = 0.0
        self._over_at: float | None = None

    def __repr__(self) -> str:
        return f"<Doubt {'none' if self._over_at is None else self._epoch}>"

    def heard(self, answer: a.Offered) -> None:
        """Take what an offer was answered."""
        now, clock = anyio.current_time(), answer.clock
        if self._guard is not None and not self._epoch and answer.how == "never_used":
            self._guard.began_alone()
        if clock.epoch != self._epoch:
            self._epoch, self._began_at = clock.epoch, now
        self._ttl_s = max(self._ttl_s, clock.ttl_ms / 1000)
        waits = answer.frozen_ms > 0 and answer.how not in ("never_used", "known_by_guard")
        self._over_at = now + answer.frozen_ms / 1000 if waits else None

    def is_over(self) -> bool:
        """Whether the guard knows all who are in now."""
        # In this epoch everybody who talks to the store has said what it has; who does not believes for a ttl.
        after_ttl = bool(self._epoch) and anyio.current_time() >= self._began_at + self._ttl_s
        return self._guard is not None and self._guard.knows_all(after_ttl=after_ttl)

    async def outlast(self, changed: anyio.Event) -> bool:
        """Wait until something has changed, or until the guard knows all (True) that a freeze waits for."""
        while self._over_at is not None and anyio.current_time() < self._over_at and not changed.is_set():
            if self.is_over():
                return True
            with anyio.move_on_after(LOOK_S):
                await changed.wait()
        await changed.wait()
        return False


async def lacks(guard: Guarding, own: Session, store: Store) -> bool:
    """Whether the ledger has lost a lease that the guard has let in."""
    inside = {lease.id for _, _, lease in guard.assertions()}
    if not inside:
        return False
    answer = await store.ask(verbs.snapshot(own.keys, length=1))
    return not isinstance(answer, a.Pictured) or not inside <= {ticket.id for ticket in answer.snapshot.leases}


async def assert_all(guard: Guarding, own: Session, store: Store) -> None:
    """Tell the ledger, which has lost them, of the leases that are in; their processes may be stopped."""
    for session, process, lease in guard.assertions():
        call = verbs.open(
            own.keys,
            session=session,
            process=process,
            terms=own.terms,
            machine=machine(),
            known_pool=True,
            brought=Brought(leases=[lease]),
        )
        try:
            await store.ask(call)
        except StoreUnavailable:
            raise
        except GpuLockError as refused:
            _log.error("offer.lease_unreadable", lease=lease.id, message=refused.message)
