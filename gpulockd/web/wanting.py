"""What POST /api/v1/leases takes, and the lines that it answers."""

from __future__ import annotations

import os
import socket
from typing import Literal

import msgspec

from gpulockd.client import wishes
from gpulockd.client.published import Published
from gpulockd.client.table import Ask, Entry
from gpulockd.client.waiting import Patience
from gpulockd.client.whoami import boot_id, started_ticks
from gpulockd.errors import ConfigError
from gpulockd.ledger.address import without_secret
from gpulockd.model import Process
from gpulockd.settings import GpuLockBlock, Tree
from gpulockd.units import clean, parse_duration_s
from gpulockd.web.auth import Caller
from gpulockd.web.problems import CannotHold, Problem
from gpulockd.web.ttl import check_ttl
from gpulockd.web.unendable import counts_as_we_do, why_unendable
from gpulockd.web.views import ExpectedView

Duration = float | str
HIGHEST_PID = 2**22
_NAME = frozenset("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_-.@+$:\\")
_ID = frozenset("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_-")


class LeaseWish(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is wanted, for how long at most, and who will hold it. Durations are seconds or text such as "30m".

    With `session` and `ticket` the daemon asks on behalf of the process that chose them, and lets go after the grant.
    With `pid` (on the unix socket) the lease lasts as long as that process; with `ttl` for that time, which PATCH
    renews; else as long as the connection. Of these two `ticket`, on the unix socket, is the lease's id: asked again
    with it, a request whose answer did not come is answered with the same place or lease.
    `spares_older`: with `session`, the children that this process has before the grant are no part of its run.
    `usual_max_wait_time` is what the asker's environment says: what was changed live goes before it.
    """

    count: int = 1
    gpus: tuple[int | str, ...] | None = None
    key: str | None = None
    memory: int | str | None = None
    exclusive: bool | None = None
    priority: int = 0
    max_wait_time: Duration | None = None
    usual_max_wait_time: Duration | None = None
    task: str = ""
    task_id: str = ""
    warning: Duration | None = None
    soft_timeout: Duration | None = None
    hard_timeout: Duration | None = None
    lock_timeout: Duration | None = None
    heartbeat: Literal["automatic", "manual"] = "automatic"
    session: str | None = None
    ticket: str | None = None
    process: Process | None = None
    pid: int | None = None
    ttl: Duration | None = None
    inside: tuple[str, int] | None = None
    spares_older: bool = False


class GpuWords(msgspec.Struct, frozen=True, kw_only=True):
    """A gpu that was granted; memory in MiB."""

    key: str
    index: int | None
    uuid: str | None
    name: str | None
    memory_mib: int | None


class WaitingLine(msgspec.Struct, frozen=True, kw_only=True, tag_field="state", tag="waiting"):
    """In the queue: place 1 is next. Comes when something changed, and every 5 s.

    `expected_start`: when it may get its gpus, null where that cannot be said.
    """

    place: int | None
    queued: int | None
    text: str
    expected_start: ExpectedView | None = None


class GrantedLine(msgspec.Struct, frozen=True, kw_only=True, tag_field="state", tag="granted"):
    """The lease: its gpus, and the environment for a program that uses them.

    `limits_s`: the ages at which it is warned of, asked to stop, and ended.
    """

    lease: str
    token: int
    session: str
    pool: str
    gpus: tuple[GpuWords, ...]
    waited_s: float
    store: str
    env: dict[str, str]
    limits_s: tuple[float, float, float]


class HeldLine(msgspec.Struct, frozen=True, kw_only=True, tag_field="state", tag="held"):
    """The lease still stands; every 5 s, so that a cut connection is noticed."""


class LostLine(msgspec.Struct, frozen=True, kw_only=True, tag_field="state", tag="lost"):
    """The lease has ended without its holder: stop using the gpus."""

    reason: str


class FailedLine(msgspec.Struct, frozen=True, kw_only=True, tag_field="state", tag="failed"):
    """There will be no lease, and why."""

    problem: Problem


Line = WaitingLine | GrantedLine | HeldLine | LostLine | FailedLine


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A wish that was understood."""

    ask: Ask
    patience: Patience
    process: Process
    session: str | None
    ticket: str | None
    pid: int | None
    ttl_s: float | None
    spares_older: bool = False


def plan_of(wish: LeaseWish, published: Tree, caller: Caller) -> Plan:
    """Return what to ask for, completed by what the pool has published and by what the kernel says of the caller.

    :raises ImpossibleRequest: if nothing can be asked for so
    :raises ConfigError: if a duration or an id cannot be read
    """
    stays = wish.pid is not None or wish.ttl is not None
    if (wish.session is None) != (wish.ticket is None) and not (stays and wish.session is None):
        raise ConfigError("session, ticket: give both or neither; with pid or ttl a ticket alone")
    if stays and wish.ticket is not None and caller.peer is None:
        raise ConfigError("ticket: with ttl only on the unix socket, where the kernel says who asks")
    if wish.pid is not None and wish.session is not None:
        raise ConfigError("pid, session: give one of them; a session is kept alive by its own process")
    if wish.ttl is not None and (wish.pid is not None or wish.session is not None):
        raise ConfigError("ttl, pid, session: give one of them; each says how long the lease lasts")
    wants = wishes.wants_of(wish.key, wish.count if wish.count != 1 else None, wish.gpus, wish.memory, wish.exclusive)
    process = process_of(wish, caller)
    task = wish.task or process.program or "http"
    job = wishes.job_of(task, wish.task_id, wish.warning, wish.soft_timeout, wish.hard_timeout, wish.heartbeat)
    block = _in_force(wish, published, task)
    lock_timeout_s = block.lock_timeout
    if wish.lock_timeout is not None:
        lock_timeout_s = parse_duration_s(wish.lock_timeout, "lock_timeout")
    return Plan(
        ask=Ask(wants, wishes.check_priority(wish.priority), job, max(50, round(lock_timeout_s * 1000)), wish.inside),
        patience=wishes.patience_of(block, wish.max_wait_time, None),
        process=process,
        session=check_id(wish.session, "session") if wish.session is not None else None,
        ticket=check_id(wish.ticket, "ticket") if wish.ticket is not None else None,
        pid=wish.pid,
        ttl_s=check_ttl(parse_duration_s(wish.ttl, "ttl")) if wish.ttl is not None else None,
        spares_older=wish.spares_older and wish.session is not None,
    )


def _in_force(wish: LeaseWish, published: Tree, task: str) -> GpuLockBlock:
    """Return how such a request waits, as the library of the asking process would find it."""
    here: Tree = {}
    if wish.usual_max_wait_time is not None:
        usual_s = parse_duration_s(wish.usual_max_wait_time, "usual_max_wait_time")
        here = {"gpu_lock": {"max_wait_time": usual_s}}
    return Published.of(published, wish.session or "").in_force(here, task).gpu_lock


def process_of(wish: LeaseWish, caller: Caller) -> Process:
    """Return whom the ledger shall name as holder: pid and user are the kernel's words wherever it has some.

    :raises ConfigError: if what it says of itself cannot be shown, or is none
    """
    said = wish.process
    program = clean(said.program) if said is not None else ""
    host = said.host if said is not None else ""
    if said is not None:
        _check_said(said)
    seen, user = 0, said.user if said is not None else ""
    if caller.peer is not None:
        seen, user = wish.pid or caller.peer.pid, caller.user
    pid = seen or (said.pid if said is not None else 0)
    if wish.ttl is not None:
        pid = seen = 0  # no process stands for it, so none whose end would end it
    return Process(
        pid=pid,
        host=host or socket.gethostname(),
        boot_id=boot_id(),
        user=user[:64],
        program=program[:200],
        started_ticks=started_ticks(seen) if seen > 0 else 0,  # what it only says is another process's number here
    )


def _check_said(said: Process) -> None:
    if not 0 <= said.pid <= HIGHEST_PID:
        raise ConfigError(f"process.pid: {said.pid} is no pid; say the process's own, or 0")
    for name, text, most in (("host", said.host, 255), ("user", said.user, 64)):
        if len(text) > most or not _NAME.issuperset(text):
            raise ConfigError(f"process.{name}: {text[:60]!r} is no name of a {name}; use letters, digits and '._-'")


def check_pid(pid: int, caller: Caller, api_socket: str, store_pid: int = 0) -> int:
    """Return a pidfd of the process `pid`, if the caller may hold a lease for it.

    :param api_socket: where the kernel says who asks
    :param store_pid: the daemon's own store, 0 if it has none
    :raises CannotHold: if there is no such process of the caller's, it is one that nobody can end, or the kernel does
        not know the caller
    """
    line = f"curl --unix-socket {api_socket} http://localhost/api/v1/leases -d "
    if caller.peer is None:
        detail = "pid: only on the unix socket, where the kernel says who asks"
        raise CannotHold(detail, line + f"'{{\"pid\": {pid}}}'")
    hint = "name a living process of your own user and PID namespace: " + line + "'{\"pid\": '$$'}'"
    gone = CannotHold(f"pid {pid}: no such process of yours", hint)
    try:
        descriptor = os.pidfd_open(pid) if pid > 1 else -1
    except (OSError, OverflowError):
        raise gone from None
    if descriptor < 0:
        raise gone
    if not counts_as_we_do(caller.peer.pid):
        os.close(descriptor)
        raise gone
    try:
        # The descriptor is opened first, so the folder read here is that of the process it means, or is gone.
        owner = os.stat(f"/proc/{pid}").st_uid
    except OSError:
        owner = -1
    if owner != caller.peer.uid and caller.peer.uid != 0:
        os.close(descriptor)
        raise gone
    unendable = why_unendable(pid, store_pid)
    if unendable:
        os.close(descriptor)
        hint = "name the process that uses the GPU; for a time of its own say " + line + '\'{"ttl": "10m"}\''
        raise CannotHold(f"pid {pid} is {unendable}: it cannot be ended when its lease is over", hint)
    return descriptor


def granted_line(
    entry: Entry, pool: str, url: str, api_socket: str, limits_s: tuple[float, float, float], *, trusted: bool
) -> GrantedLine:
    """Return what the holder must know. Only a trusted caller is told the password of the store."""
    uuids = [gpu.uuid or str(gpu.index) for gpu in entry.gpus if gpu.uuid or gpu.index is not None]
    env = {
        "GPULOCKD_LEASE": entry.id,
        "GPULOCKD_TOKEN": str(entry.token),
        "GPULOCKD_POOL": pool,
        "GPULOCKD_SOCKET": api_socket,
    }
    if uuids:
        env["CUDA_VISIBLE_DEVICES"] = ",".join(uuids)
    return GrantedLine(
        lease=entry.id,
        token=entry.token,
        session=entry.session,
        pool=pool,
        gpus=tuple(
            GpuWords(key=gpu.key, index=gpu.index, uuid=gpu.uuid, name=gpu.name, memory_mib=gpu.memory_mib)
            for gpu in entry.gpus
        ),
        waited_s=round(entry.waited_s, 3),
        store=url if trusted else without_secret(url),
        env=env,
        limits_s=limits_s,
    )


def check_id(text: str, name: str) -> str:
    """Return an id that a client has chosen.

    :raises ConfigError: if it is too short to be its own, or cannot be shown
    """
    if not (16 <= len(text) <= 64 and _ID.issuperset(text)):
        raise ConfigError(f"{name}: use 16 to 64 letters, digits, '_' or '-', such as a random UUID's hex")
    return text
