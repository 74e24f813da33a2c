"""What must be done about leases that are old or silent: pure, from a snapshot, readings and rules.

Its law: each level acts once per lease, the highest reached wins, and what is not known is never held against a holder.
The ledger's ages decide, so a daemon that was away acts as if it had been here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import msgspec

from gpulockd.daemon.levels import RANK, Level, Rules, limits_of, reached
from gpulockd.model import Snapshot, TicketRecord

Why = Literal["hard_timeout", "silent"]


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """What this host knows of a lease's run. `idle_ms`: for how long it has used neither CPU nor GPU; None: not known.

    `gone`: the holder's process has ended; None: not known.
    """

    idle_ms: int | None = None
    gone: bool | None = None


class Recovery(msgspec.Struct, frozen=True, kw_only=True):
    """A lease that was taken from its holder, or was to be.

    `tried_at_s` is the last of its `tries` on the daemon's clock; `given_up`: a person was told.
    """

    lease: str
    token: int
    gpus: tuple[str, ...]
    why: Why
    tries: int
    tried_at_s: float
    given_up: bool = False


class Readings(msgspec.Struct, frozen=True, kw_only=True):
    """What the ledger does not say, by lease id: of runs, of recoveries under way, and levels that were acted on."""

    runs: Mapping[str, Reading] = {}
    recoveries: Mapping[str, Recovery] = {}
    levels: Mapping[str, str] = {}


class Instruction(msgspec.Struct, frozen=True, kw_only=True):
    """Something that must be done about the lease with that id and token."""

    lease: str
    token: int


class Mark(Instruction, frozen=True, kw_only=True):
    """It has reached an age: say so; `stop`: ask its holder to stop. `after_ms` is the limit that was reached."""

    level: Level
    after_ms: int
    stop: bool = False


class Remind(Instruction, frozen=True, kw_only=True):
    """An operator wants it to end: ask its holder once more."""

    after_ms: int = 0


class Miss(Instruction, frozen=True, kw_only=True):
    """Nothing was heard of its task for `after_ms`: say so. `manual`: the task itself is to report."""

    after_ms: int
    manual: bool


class Revoke(Instruction, frozen=True, kw_only=True):
    """Take it from its holder; one that was silent only if it still is. `after_ms` is the limit that was reached."""

    gpus: tuple[str, ...]
    why: Why
    after_ms: int
    manual: bool


class Bury(Instruction, frozen=True, kw_only=True):
    """Its holder's process is gone and nobody has told the ledger: end that session."""

    session: str


class Press(Instruction, frozen=True, kw_only=True):
    """It has ended, but its run has not left `gpus`: once more."""

    gpus: tuple[str, ...]


class GiveUp(Instruction, frozen=True, kw_only=True):
    """Every try to recover `gpus` has failed: offer them no more and tell a person."""

    gpus: tuple[str, ...]
    why: Why


def silence_ms(lease: TicketRecord) -> int | None:
    """For how long nothing was heard of a lease's task (in ms), None if that is not known.

    A task that reports by itself is heard when it does; any other by its process's keepalives, which go on while its
    body computes, and stop with a process that is stopped or that something blocks as a whole.
    """
    if lease.job.heartbeat == "manual":
        return lease.held_ms if lease.heartbeat_age_ms is None else lease.heartbeat_age_ms
    return lease.seen_age_ms


def is_silent(lease: TicketRecord, rules: Rules) -> bool:
    """Whether its task has said nothing for `heartbeat.timeout`."""
    silent_ms = silence_ms(lease)
    return silent_ms is not None and silent_ms >= rules.monitor.heartbeat.timeout * 1000


def was_told(lease: TicketRecord) -> bool:
    """Whether its present silence has been told of."""
    silent_ms = silence_ms(lease)
    return lease.missed_age_ms is not None and silent_ms is not None and lease.missed_age_ms <= silent_ms


def judge(snapshot: Snapshot, readings: Readings, rules: Rules, now_s: float) -> tuple[Instruction, ...]:
    """What must be done now.

    :param now_s: the daemon's own clock (in seconds), by which it counts the time between two tries
    """
    if not rules.monitor.enabled or snapshot.frozen_ms > 0:
        return ()
    return tuple(_instructions(snapshot, readings, rules, now_s))


def _instructions(snapshot: Snapshot, readings: Readings, rules: Rules, now_s: float) -> Iterator[Instruction]:
    for lease in snapshot.leases:
        reading = readings.runs.get(lease.id, Reading())
        if reading.gone and rules.recovers:
            yield Bury(lease=lease.id, token=lease.token, session=lease.session)
        elif lease.state == "held":
            yield from _of_lease(lease, reading, readings, rules, now_s)
    for recovery in readings.recoveries.values():
        yield from _of_recovery(recovery, snapshot, rules, now_s)


def _of_lease(
    lease: TicketRecord, reading: Reading, readings: Readings, rules: Rules, now_s: float
) -> Iterator[Instruction]:
    limits = limits_of(lease.job, rules)
    level = reached(lease.held_ms, limits)
    manual = lease.job.heartbeat == "manual"
    silence_limit_ms = round(rules.monitor.heartbeat.timeout * 1000)
    if is_silent(lease, rules) and not was_told(lease):
        yield Miss(lease=lease.id, token=lease.token, after_ms=silence_limit_ms, manual=manual)
    why = _why_to_end(lease, level, reading, rules)
    if why is not None and rules.recovers:
        if _may_try(readings.recoveries.get(lease.id), rules, now_s):
            after_ms = limits.hard_ms if why == "hard_timeout" else silence_limit_ms
            yield Revoke(lease=lease.id, token=lease.token, gpus=lease.gpus, why=why, after_ms=after_ms, manual=manual)
        return
    if level is not None and RANK[level] > max(RANK[lease.level], RANK[readings.levels.get(lease.id, "")]):
        after_ms = {"warning": limits.warning_ms, "soft": limits.soft_ms, "hard": limits.hard_ms}[level]
        stop = level == "soft" and rules.recovers
        yield Mark(lease=lease.id, token=lease.token, level=level, after_ms=after_ms, stop=stop)


def reminders(snapshot: Snapshot, readings: Readings, rules: Rules) -> tuple[Mark | Remind, ...]:
    """Whom to ask again to stop: a ring is only a hint and may have been lost."""
    if snapshot.frozen_ms > 0:
        return ()
    return tuple(_reminders(snapshot, readings, rules))


def _reminders(snapshot: Snapshot, readings: Readings, rules: Rules) -> Iterator[Mark | Remind]:
    for lease in snapshot.leases:
        if lease.state != "held":
            continue
        is_old = max(RANK[lease.level], RANK[readings.levels.get(lease.id, "")]) >= RANK["soft"]
        if is_old and rules.recovers:
            after_ms = limits_of(lease.job, rules).soft_ms
            yield Mark(lease=lease.id, token=lease.token, level="soft", after_ms=after_ms, stop=True)
        elif lease.asked_to_stop:
            yield Remind(lease=lease.id, token=lease.token)


def _may_try(recovery: Recovery | None, rules: Rules, now_s: float) -> bool:
    """Whether it is time to take a lease, once more if need be. Between the last retry and more, a person is told."""
    if recovery is None:
        return True
    cleanup = rules.monitor.cleanup
    told = recovery.tries <= cleanup.max_retry or recovery.given_up
    return told and now_s >= recovery.tried_at_s + cleanup.retry_delay


def _why_to_end(lease: TicketRecord, level: Level | None, reading: Reading, rules: Rules) -> Why | None:
    if level == "hard":
        return "hard_timeout"
    if not is_silent(lease, rules):
        return None
    if lease.job.heartbeat == "manual":
        return "silent"
    idle = reading.idle_ms is not None and reading.idle_ms >= rules.monitor.heartbeat.timeout * 1000
    return "silent" if idle else None


def stands(recovery: Recovery, snapshot: Snapshot) -> bool:
    """Whether the lease still holds, because no try to end it came through."""
    return any((lease.id, lease.token) == (recovery.lease, recovery.token) for lease in snapshot.leases)


def stuck_gpus(recovery: Recovery, snapshot: Snapshot) -> tuple[str, ...]:
    """The gpus that its run has not left in the time it had."""
    if stands(recovery, snapshot):
        return recovery.gpus
    quarantined = {record.gpu.key for record in snapshot.gpus if record.state == "quarantined"}
    return tuple(key for key in recovery.gpus if key in quarantined)


def is_over(recovery: Recovery, snapshot: Snapshot) -> bool:
    """Whether the lease has ended and others may have its gpus."""
    unready = {record.gpu.key for record in snapshot.gpus if record.state in ("settling", "quarantined")}
    return not stands(recovery, snapshot) and unready.isdisjoint(recovery.gpus)


def _of_recovery(recovery: Recovery, snapshot: Snapshot, rules: Rules, now_s: float) -> Iterator[Instruction]:
    stuck = stuck_gpus(recovery, snapshot)
    too_early = now_s < recovery.tried_at_s + rules.monitor.cleanup.retry_delay
    if not stuck or too_early or recovery.given_up or not rules.recovers:
        return
    if recovery.tries > rules.monitor.cleanup.max_retry:
        yield GiveUp(lease=recovery.lease, token=recovery.token, gpus=stuck, why=recovery.why)
    elif not stands(recovery, snapshot):
        yield Press(lease=recovery.lease, token=recovery.token, gpus=stuck)


def next_look_s(snapshot: Snapshot, readings: Readings, rules: Rules, now_s: float) -> float:
    """In how many seconds the ages alone may bring something to do, if no event does before; inf if nothing will.

    What a lease is due for already (its usage is not known, or a try has just been made) waits for the full check or
    for the next try.
    """
    if not rules.monitor.enabled:
        return float("inf")
    if snapshot.frozen_ms > 0:
        return snapshot.frozen_ms / 1000
    moments_ms: list[float] = []
    for lease in snapshot.leases:
        if lease.state != "held":
            continue
        limits = limits_of(lease.job, rules)
        ages = (limits.warning_ms, limits.soft_ms, limits.hard_ms)
        moments_ms += [limit_ms - lease.held_ms for limit_ms in ages if limit_ms > lease.held_ms]
        silent_ms = silence_ms(lease)
        if silent_ms is not None and not is_silent(lease, rules):
            moments_ms.append(rules.monitor.heartbeat.timeout * 1000 - silent_ms)
    retry_s = rules.monitor.cleanup.retry_delay
    waits_s = [recovery.tried_at_s + retry_s - now_s for recovery in readings.recoveries.values()]
    return min((*(ms / 1000 for ms in moments_ms), *(wait_s for wait_s in waits_s if wait_s > 0)), default=float("inf"))
