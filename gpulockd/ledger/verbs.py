"""One typed function per Lua verb, of the same name: the only place that knows the order of KEYS and ARGV.

Each returns a `Call`, which is not sent yet: `Store.ask` (asyncio) and `BlockingStore.ask` (a thread) send it and
return its typed answer. All times are in ms of the ledger clock unless the name says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, Literal, TypeVar

import msgspec

from gpulockd.ledger import answers as a
from gpulockd.ledger import reading
from gpulockd.ledger.keys import FleetKeys, PoolKeys
from gpulockd.ledger.lua_files import Script, script
from gpulockd.model import Gpu, Job, Process, Wants
from gpulockd.settings import QueueBlock, SessionBlock, SettleBlock
from gpulockd.units import sendable

T = TypeVar("T")
Reply = list[Any]
_Left = Literal["released", "abandoned", "parked", "timed_out", "expired", "left"]
_Lost = Literal["died", "revoked", "operator", "hard_timeout", "silent", "gpu_lost"]
EndReason = Literal[_Left, _Lost]
"""Why something ends; "revoked" alone does not say by whom. "expired": its time was over, as planned; "left": its
connection from afar is gone. Nobody knows what the user of these two still does, so their gpus settle."""

encode = msgspec.json.encode


class Call(Generic[T]):
    """One script call, ready to be sent any number of times: every verb is idempotent by its ids."""

    __slots__ = ("args", "extends", "keys", "read", "script")

    def __init__(
        self, call: Script, keys: PoolKeys | FleetKeys, args: tuple[Any, ...], read: Callable[[Reply], T]
    ) -> None:
        self.script = call
        self.keys = keys
        self.args = args
        self.read = read
        # A call that names its sender's session extends it; an operator's or a picture's proves nothing of it.
        self.extends = bool(args[0])

    def __repr__(self) -> str:
        return f"<Call {self.script.name} {self.keys.pool}>"


class BroughtTicket(msgspec.Struct, kw_only=True):
    """A ticket that a session asserts again after the store lost data."""

    id: str
    wants: str
    priority: int
    stamp: int
    job: str
    task: str
    task_id: str
    lock_timeout_ms: int


class BroughtLease(BroughtTicket, kw_only=True):
    """A lease that a session asserts again; `age_ms` is how long it has been held."""

    token: int
    gpus: tuple[str, ...]
    age_ms: int


class Brought(msgspec.Struct, kw_only=True):
    """All that a session has from before."""

    tickets: list[BroughtTicket] = []
    leases: list[BroughtLease] = []


NOTHING = Brought()


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """The times of a pool, in ms. They are the pool's: those of its first caller, until a daemon offers others."""

    ttl_ms: int
    step_ms: int
    keepalive_ms: int
    claim_window_ms: int
    priority_step_ms: int
    hold_back_ms: int
    settle_ms: int
    settle_policy: str

    @classmethod
    def of(cls, session: SessionBlock, queue: QueueBlock, settle: SettleBlock) -> Terms:
        """The terms that these settings (in seconds) say."""
        return cls(
            ttl_ms=round(session.ttl * 1000),
            step_ms=round(session.step_s * 1000),
            keepalive_ms=round(session.keepalive * 1000),
            claim_window_ms=round(session.claim_window * 1000),
            priority_step_ms=round(queue.priority_step * 1000),
            hold_back_ms=round(queue.hold_back_after * 1000),
            settle_ms=round(settle.timeout * 1000),
            settle_policy=settle.policy,
        )


class OfferedGpu(msgspec.Struct, frozen=True, kw_only=True):
    """A gpu as an offer names it; memory in MiB."""

    key: str
    index: int
    uuid: str
    name: str
    memory_mib: int

    @classmethod
    def of(cls, gpu: Gpu) -> OfferedGpu:
        """:raises ValueError: for a slot without hardware, which cannot be offered"""
        if gpu.index is None or gpu.uuid is None or gpu.memory_mib is None:
            raise ValueError(f"{gpu.key} has no hardware and cannot be offered")
        return cls(key=gpu.key, index=gpu.index, uuid=gpu.uuid, name=gpu.name or "", memory_mib=gpu.memory_mib)


def open(
    keys: PoolKeys,
    *,
    session: str,
    process: Process,
    terms: Terms,
    machine: str = "",
    known_pool: bool | None = None,
    brought: Brought = NOTHING,
    guard_gone_ms: int = 0,
    lasts_ms: int = 0,
) -> Call[a.Opened | a.Gone | a.Elsewhere | a.AskFleet]:
    """Begin to be alive in a pool.

    :param machine: what stays the same over reboots of this host
    :param known_pool: does the fleet's list name it; None = not looked yet
    :param guard_gone_ms: how long to wait for a guard that this session knew before, 0 if it knew none
    :param lasts_ms: how long it lasts at least, also when nobody keeps it alive
    """
    about = (encode(process), process.boot_id, encode(terms), _known(known_pool), encode(brought), machine)
    args = (session, *about, str(guard_gone_ms), str(lasts_ms))
    return Call(script("open"), keys, args, reading.opened)


def keepalive(
    keys: PoolKeys, *, session: str, echo: int, leases: Sequence[tuple[str, int]]
) -> Call[a.Alive | a.NoSession | a.Unopened]:
    """Extend the session; `leases` are the (id, token) pairs that the process believes to hold."""
    flat = [str(part) for pair in leases for part in pair]
    return Call(script("keepalive"), keys, (session, str(echo), *flat), reading.alive)


def request(
    keys: PoolKeys,
    *,
    session: str,
    id: str,
    wants: Wants,
    priority: int,
    wait: bool,
    job: Job,
    lock_timeout_ms: int,
    asked_ms: int | None,
    inside: tuple[str, int] | None = None,
    parked: str = "",
) -> Call[reading.RequestAnswer]:
    """Take a place in the queue, or the gpus at once. `inside`: (lease, token) of a run to join. `parked`: a ticket
    that has ended by that reason, whose place this one takes over if it is still kept."""
    args = (
        session,
        id,
        wants.text,
        str(priority),
        "1" if wait else "0",
        encode(job),
        job.task,
        job.task_id,
        str(lock_timeout_ms),
        "" if asked_ms is None else str(asked_ms),
        inside[0] if inside else "",
        str(inside[1]) if inside else "",
        parked,
    )
    return Call(script("request"), keys, args, reading.requested)


def confirm(
    keys: PoolKeys, *, session: str, id: str, token: int
) -> Call[a.Granted | a.Lapsed | a.Gone | a.Frozen | a.NoSession | a.Unopened]:
    """Ask whether the lease stands; only a granted answer lets a body start."""
    return Call(script("confirm"), keys, (session, id, str(token)), reading.confirmed)


def end(
    keys: PoolKeys,
    *,
    session: str,
    id: str,
    token: int | None,
    reason: EndReason,
    what: Literal["ticket", "session"] = "ticket",
) -> Call[a.Ended | a.Gone | a.Stale | a.NoSession | a.Unopened]:
    """End a ticket, a lease or a session. `session`: "" for an operator. `token` None: whatever it has."""
    args = (session, what, id, "" if token is None else str(token), reason)
    return Call(script("end"), keys, args, reading.ended)


def progress(
    keys: PoolKeys, *, session: str, id: str, token: int, percent: float | None, note: str
) -> Call[a.Noted | a.Gone | a.Stale | a.NoSession | a.Unopened]:
    """Say how far the work of a lease is (`percent` 0 to 100). `session` "": its user says it, not its process."""
    args = (session, id, str(token), "" if percent is None else f"{percent:g}", sendable(note))
    return Call(script("progress"), keys, args, reading.progressed)


def offer(
    keys: PoolKeys,
    *,
    session: str,
    process: Process,
    machine: str,
    terms: Terms,
    defaults: dict[str, Any],
    gpus: Sequence[Gpu],
    complete_run_id: str | None,
    fresh: bool = False,
    known_pool: bool | None = None,
    guarded: bool = False,
    knows_all: bool = False,
    highest_token: int = 0,
    offerer: str = "",
    version: int | None = None,
) -> Call[a.Offered | a.Elsewhere | a.NoSession | a.Unopened | a.AskFleet]:
    """Put gpus at the pool's disposal.

    :param complete_run_id: the run id under which the store surely lost nothing, None if it may have
    :param fresh: nobody can have used the store since this boot began, so books that are missing were never there
    :param guarded: from now on the daemon's guard lets in who begins
    :param knows_all: everybody whom it has let in has been asserted again, and nobody else can be in
    :param highest_token: the highest token that it has let in
    :param offerer: who offers, the same over restarts of this daemon: another one is refused while it lives
    :param version: of these defaults as this daemon knows it; None: it has not published yet
    """
    args = (
        session,
        process.boot_id,
        process.host,
        machine,
        encode(terms),
        encode(defaults),
        encode([OfferedGpu.of(gpu) for gpu in gpus]),
        complete_run_id or "",
        _known(known_pool),
        "1" if fresh else "0",
        "1" if guarded else "0",
        "1" if knows_all else "0",
        str(highest_token),
        offerer,
        "" if version is None else str(version),
    )
    return Call(script("offer"), keys, args, reading.offered)


def report(
    keys: PoolKeys, *, session: str, gpu: str, state: str, reason: str
) -> Call[a.Noted | a.UnknownGpu | a.NoSession | a.Unopened]:
    """Say how a gpu is: ready, settled, quarantined, lost, or by somebody's word drained or resumed."""
    return Call(script("report"), keys, (session, gpu, state, reason), reading.reported)


def snapshot(
    keys: PoolKeys, *, session: str = "", first: int = 0, length: int = 256, boot_id: str = ""
) -> Call[a.Pictured | a.NoSession | a.Unopened]:
    """See all of the pool.

    :param first: the first place of the queue's page (0 = the head); `length` 1 to 256 places
    :param boot_id: a boot whose living sessions are counted
    """
    return Call(
        script("snapshot"),
        keys,
        (session, str(first), str(length), boot_id),
        lambda reply: reading.pictured(reply, keys.pool, first),
    )


def _known(known_pool: bool | None) -> str:
    return "?" if known_pool is None else "1" if known_pool else "0"
