"""What happened: past-tense, frozen facts, written by the script that made them so.

On the wire one JSON object with the tag `type` in snake_case. Readers survive tags they do not know.
"""

from __future__ import annotations

import re

import msgspec

from gpulockd.model import PROBE_KEY


def _tag(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type", tag=_tag):
    """A fact of a pool: `seq` grows by one an event, `at_ms` is the server's wall clock (ms), waits and holds in ms."""

    seq: int
    at_ms: int
    pool: str
    gpus: tuple[str, ...] = ()
    lease: str | None = None
    token: int | None = None
    task: str | None = None
    task_id: str | None = None
    reason: str | None = None
    session: str | None = None
    waited_ms: int | None = None
    held_ms: int | None = None

    @property
    def is_probe(self) -> bool:
        """Whether this is of a lease by which a daemon has only checked that leases are granted."""
        return PROBE_KEY in self.gpus

    @property
    def kind(self) -> str:
        """The tag: "lock_acquired"."""
        return _tag(type(self).__name__)


class SessionOpened(Event, frozen=True, kw_only=True):
    """Signals that a process has begun to be alive in the pool."""


class SessionLost(Event, frozen=True, kw_only=True):
    """Signals that a process has gone without a word: killed, cut off, or stopped for too long."""


class LockRequested(Event, frozen=True, kw_only=True):
    """Signals that a ticket has taken a place in the queue. A request granted at once is only `LockAcquired`."""


class LockAcquired(Event, frozen=True, kw_only=True):
    """Signals that a lease has begun, and how long its ticket waited.

    `via`: what told one that waited: "doorbell", or "poll" when it asked again by itself.
    """

    via: str | None = None


class LockReleased(Event, frozen=True, kw_only=True):
    """Signals that a holder has given its lease back; `reason` "left": by closing its connection from another host."""


class LockExpired(Event, frozen=True, kw_only=True):
    """Signals that a lease has ended by itself: its holder died, or let its lock timeout pass.

    `planned`: it was asked for with a `ttl`, and that is over; nobody was lost.
    """

    planned: bool = False


class LockRevoked(Event, frozen=True, kw_only=True):
    """Signals that a lease was taken from its holder."""


class WaitAbandoned(Event, frozen=True, kw_only=True):
    """Signals that a waiter has left the queue."""


class WaitTimedOut(Event, frozen=True, kw_only=True):
    """Signals that a waiter has left the queue because its wait limit was over."""


class StopRequested(Event, frozen=True, kw_only=True):
    """Signals that a holder was asked to stop: at the soft limit, or by an operator, as `reason` says."""


class TimeoutWarned(Event, frozen=True, kw_only=True):
    """Signals that a lease has reached its warning age."""


class HeartbeatMissed(Event, frozen=True, kw_only=True):
    """Signals that a task has been silent for too long."""


class GpuSettling(Event, frozen=True, kw_only=True):
    """Signals that a gpu is not offered until what its last holder left is gone."""


class GpuSettled(Event, frozen=True, kw_only=True):
    """Signals that a gpu is offered again."""


class GpuDrained(Event, frozen=True, kw_only=True):
    """Signals that somebody has taken a gpu out of the pool, who is in `reason`; its holder keeps it to the end."""


class GpuResumed(Event, frozen=True, kw_only=True):
    """Signals that a gpu is offered again that was out of the pool; by whom, or why, is in `reason`."""


class GpuQuarantined(Event, frozen=True, kw_only=True):
    """Signals that something stays on a gpu and it is not offered."""


class GpuLost(Event, frozen=True, kw_only=True):
    """Signals that a card has failed."""


class ForeignProcessSeen(Event, frozen=True, kw_only=True):
    """Signals that a process without a lease is on a card."""


class ConfigChanged(Event, frozen=True, kw_only=True):
    """Signals that a new revision of the configuration is in force."""


class ConfigRolledBack(Event, frozen=True, kw_only=True):
    """Signals that an earlier revision of the configuration is in force again."""


class AlertRaised(Event, frozen=True, kw_only=True):
    """Signals that something needs a person: which rule, how bad, and in `reason` what is true."""

    rule: str = ""
    level: str = ""
    message: str = ""


class AlertResolved(Event, frozen=True, kw_only=True):
    """Signals that an alert is over."""

    rule: str = ""
    level: str = ""
    message: str = ""


class DaemonStarted(Event, frozen=True, kw_only=True):
    """Signals that a daemon serves the pool."""


class DaemonStopped(Event, frozen=True, kw_only=True):
    """Signals that the daemon has stopped."""


AnyEvent = (
    SessionOpened
    | SessionLost
    | LockRequested
    | LockAcquired
    | LockReleased
    | LockExpired
    | LockRevoked
    | WaitAbandoned
    | WaitTimedOut
    | StopRequested
    | TimeoutWarned
    | HeartbeatMissed
    | GpuSettling
    | GpuSettled
    | GpuDrained
    | GpuResumed
    | GpuQuarantined
    | GpuLost
    | ForeignProcessSeen
    | ConfigChanged
    | ConfigRolledBack
    | AlertRaised
    | AlertResolved
    | DaemonStarted
    | DaemonStopped
)


class When(msgspec.Struct, frozen=True):
    """What every event says, whatever its tag: its number, and when it happened (in ms of the wall clock)."""

    seq: int
    at_ms: int


_decoder = msgspec.json.Decoder(AnyEvent)


def decode(json: bytes) -> Event | None:
    """Read one event; None for a tag or a form that this version does not know."""
    try:
        event: Event = _decoder.decode(json)
    except msgspec.MsgspecError:
        return None
    return event
