"""What one look at the daemon shows: its cards, who has them, who waits, and what happened lately."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from gpulockd.cli import http
from gpulockd.cli.records import Record

MOST_EVENTS = 50
PLACES = 64
PAST_S = 600.0


@dataclass(frozen=True)
class Picture:
    """The pool at the moment `taken_s` (monotonic clock, in seconds); what ages since then is told by who shows it."""

    pool: Record
    gpus: list[Record]
    leases: list[Record]
    queue: list[Record]
    queued: int
    taken_s: float = field(default_factory=time.monotonic)

    @property
    def passed_s(self) -> float:
        """How old it is (in seconds)."""
        return time.monotonic() - self.taken_s

    def holders(self, key: str) -> list[Record]:
        """The leases on a gpu, without the members of runs."""
        return [lease for lease in self.leases if key in lease["gpus"] and not lease.get("of")]


def take(path: str) -> Picture:
    """Ask the daemon at this socket.

    :raises CommandError: if it does not answer
    """
    with http.Daemon(path) as daemon:
        pools = daemon.get("/api/v1/pools")["pools"]
        line = daemon.get(f"/api/v1/queue?length={PLACES}")
        return Picture(
            pool=pools[0] if pools else {},
            gpus=daemon.get("/api/v1/gpus")["gpus"],
            leases=daemon.get("/api/v1/leases")["leases"],
            queue=line["queue"],
            queued=line["queued"],
        )


def lately(path: str) -> list[Record]:
    """The events of the last minutes, the latest last.

    :raises CommandError: if the daemon does not answer
    """
    asked = f"/api/v1/events?since={PAST_S:.0f}&follow=0"
    with http.Daemon(path).stream("GET", asked, silence_s=http.ANSWER_DEADLINE_S) as stream:
        try:
            return list(events_in(stream))[-MOST_EVENTS:]
        except OSError as cut:
            raise http.DaemonDown(path, f"its answer broke off: {cut}") from cut


def events_in(stream: http.Stream) -> Iterator[Record]:
    """Each event of a stream of server-sent events."""
    for line in stream.lines():
        if line.startswith(b"data:"):
            event = json.loads(line[5:])
            if isinstance(event, dict):
                yield event
