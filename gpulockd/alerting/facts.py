"""The facts that conditions may name: what each is, and how it is made of statistics, a snapshot and the monitor.

Rates that have fewer samples than `least_samples` say what they say before any: nothing is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from gpulockd.alerting.expression import Kind, Value
from gpulockd.ledger.health import health
from gpulockd.ledger.suspicions import Suspicion
from gpulockd.ledger.tally import Tally
from gpulockd.model import Snapshot, TicketRecord

MOST_TOLD = 5


class Fact(msgspec.Struct, frozen=True):
    """What a fact is and what it says."""

    kind: Kind
    says: str


FACTS: dict[str, Fact] = {
    "timeout_rate": Fact("share", "attempts whose wait limit was over first, of all attempts in the window"),
    "success_rate": Fact("share", "attempts that got the lock, of all attempts in the window"),
    "attempts": Fact("count", "attempts that were decided in the window"),
    "timeouts": Fact("count", "attempts that timed out in the window"),
    "deadlock_detected": Fact("boolean", "a lease looks dead: its holder is gone, silent, or waits in a circle"),
    "dead_locks": Fact("count", "how many leases look dead"),
    "idle_holders": Fact("count", "holders whose GPU does nothing while others wait for it"),
    "monitor_health": Fact("boolean", "the pool's daemon lives and its last checks had a picture"),
    "heartbeat_failure_rate": Fact("share", "missed heartbeats, of the tasks that held a GPU in the window"),
    "heartbeats_missed": Fact("count", "heartbeats that were missed in the window"),
    "recoveries": Fact("count", "leases that were ended for their holder in the window"),
    "failed_recoveries": Fact("count", "gpus that had to be set apart in the window"),
    "wait_mean": Fact("seconds", "mean wait of those who got the lock in the window"),
    "wait_p95": Fact("seconds", "the wait that 95% of them did not exceed"),
    "queue_length": Fact("count", "how many wait"),
    "oldest_wait": Fact("seconds", "the longest that somebody waits now (of the first 256 places)"),
    "leases": Fact("count", "leases that stand"),
    "leases_warned": Fact("count", "leases older than their warning age"),
    "gpus": Fact("count", "gpus that are offered"),
    "gpus_lost": Fact("count", "offered gpus whose card has failed"),
    "gpus_quarantined": Fact("count", "offered gpus that are set apart because something stays on them"),
    "gpus_drained": Fact("count", "offered gpus that an operator has taken out"),
    "health_score": Fact("count", "the health of the pool, 0 to 100"),
    "redis_cpu": Fact("share", "the store's CPU time of the time since the last look, of one core"),
    "redis_roundtrip": Fact("seconds", "how long the store took for the last picture"),
}
"""Every name that a condition may use."""

KINDS: dict[str, Kind] = {name: fact.kind for name, fact in FACTS.items()}


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """The facts of one pool at one moment: their values (None: not known) and, for some, the words that explain them.

    `samples` is the number of attempts behind the rates.
    """

    values: Mapping[str, Value]
    about: Mapping[str, str] = {}
    samples: int = 0

    def told(self, names: Sequence[str]) -> str:
        """Return the values of these facts as a person reads them."""
        return "; ".join(self.about.get(name) or f"{name} = {_shown(self.values.get(name), name)}" for name in names)


def of_window(window: Tally, recent: str, dead_locks: int, held_now: int, least_samples: int) -> dict[str, Value]:
    """Return the facts that were counted in a window.

    :param held_now: how many leases stand at its end
    :param least_samples: fewer attempts, or tasks, than this say nothing of rates
    """
    enough = window.attempts >= least_samples
    ended = window.of("lock_released") + window.of("lock_expired") + window.of("lock_revoked")
    # Who held in the window: those who began in it, or those who ended in it or still hold, whichever are more.
    tasks = max(window.of("acquired"), ended + held_now)
    missed = window.of("heartbeat_missed")
    mean_ms, p95_ms = window.waits.mean_ms, window.waits.quantile_ms(0.95)
    judged = window if enough else Tally()
    return {
        "timeout_rate": window.timeout_rate if enough else 0.0,
        "success_rate": window.success_rate if enough else 1.0,
        "attempts": float(window.attempts),
        "timeouts": float(window.of("timed_out")),
        "heartbeats_missed": float(missed),
        "heartbeat_failure_rate": min(1.0, missed / tasks) if tasks >= max(1, least_samples) else 0.0,
        "recoveries": float(window.recoveries),
        "failed_recoveries": float(window.failed_recoveries),
        "wait_mean": (mean_ms or 0.0) / 1000,
        "wait_p95": (p95_ms or 0.0) / 1000,
        "health_score": health(judged, recent if enough else "", dead_locks).score,
    }


def of_snapshot(snapshot: Snapshot) -> tuple[dict[str, Value], dict[str, str]]:
    """Return the facts of a snapshot, and what explains them."""
    leases = [lease for lease in snapshot.leases if lease.state == "held"]
    warned = [lease for lease in leases if lease.level]
    offered = [record for record in snapshot.gpus if record.offered]
    values: dict[str, Value] = {
        "queue_length": float(snapshot.queued),
        "oldest_wait": max((ticket.waited_ms for ticket in snapshot.queue), default=0) / 1000,
        "leases": float(len(leases)),
        "leases_warned": float(len(warned)),
        "gpus": float(len(offered)),
    }
    about = {"leases_warned": _listed("older than their limits", [_named(lease) for lease in warned])}
    for state in ("lost", "quarantined", "drained"):
        found = [str(record.gpu) for record in offered if record.state == state]
        values[f"gpus_{state}"] = float(len(found))
        about[f"gpus_{state}"] = _listed(state, found)
    return values, {name: text for name, text in about.items() if text}


def of_suspicions(found: Sequence[Suspicion]) -> tuple[dict[str, Value], dict[str, str]]:
    """Return what looks dead, and why."""
    dead = [one for one in found if one.kind != "idle"]
    told = _listed("looks dead", [f"{one.task} on {', '.join(one.gpus)} ({one.why})" for one in dead])
    values: dict[str, Value] = {
        "deadlock_detected": bool(dead),
        "dead_locks": float(len(dead)),
        "idle_holders": float(len(found) - len(dead)),
    }
    return values, ({"deadlock_detected": told, "dead_locks": told} if told else {})


def _named(lease: TicketRecord) -> str:
    return f"{lease.job.task} on {', '.join(lease.gpus)} ({lease.level})"


def _listed(what: str, which: Sequence[str]) -> str:
    if not which:
        return ""
    rest = f" and {len(which) - MOST_TOLD} more" if len(which) > MOST_TOLD else ""
    return f"{what}: {', '.join(which[:MOST_TOLD])}{rest}"


def _shown(value: Value, name: str) -> str:
    if value is None or isinstance(value, bool):
        return {None: "unknown", True: "true", False: "false"}[value]
    kind = KINDS.get(name)
    return f"{value * 100:.4g}%" if kind == "share" else f"{value:.4g} s" if kind == "seconds" else f"{value:g}"
