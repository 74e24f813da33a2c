"""What happened: the notes of the workers, the events of the pool, and the rules that both must obey."""

from __future__ import annotations

import itertools
import os
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
import redis

from gpulockd import events
from gpulockd.ledger.keys import PoolKeys
from tests.servers import Server


class Note(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of a worker's diary; `at_ns` is CLOCK_MONOTONIC, the same clock for all processes of a machine."""

    at_ns: int
    who: str
    what: str
    key: str = ""
    token: int = 0
    gpus: tuple[str, ...] = ()
    lease: str = ""
    text: str = ""

    @property
    def at_s(self) -> float:
        """When, in seconds on CLOCK_MONOTONIC."""
        return self.at_ns / 1e9


class Diary:
    """The file into which one process writes its notes, each in one write."""

    def __init__(self, path: Path, who: str) -> None:
        self.who = who
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def note(
        self,
        what: str,
        key: str = "",
        *,
        token: int = 0,
        gpus: Sequence[str] = (),
        lease: str = "",
        text: str = "",
        at_s: float | None = None,
    ) -> None:
        """Write a line, of what happened now or at `at_s` (seconds on CLOCK_MONOTONIC)."""
        note = Note(
            at_ns=time.monotonic_ns() if at_s is None else round(at_s * 1e9),
            who=self.who,
            what=what,
            key=key,
            token=token,
            gpus=tuple(gpus),
            lease=lease,
            text=text,
        )
        os.write(self._file, msgspec.json.encode(note) + b"\n")


def read_notes(paths: Iterable[Path]) -> list[Note]:
    """All notes of these files, in the order of their time. A line that is just being written is none yet."""
    lines = itertools.chain.from_iterable(path.read_bytes().rpartition(b"\n")[0].splitlines() for path in paths)
    return sorted((msgspec.json.decode(line, type=Note) for line in lines), key=lambda note: note.at_ns)


def read_events(server: Server, pool: str) -> list[events.Event]:
    """All events of the pool, oldest first."""
    with redis.Redis.from_url(server.url) as store:
        rows = store.xrange(PoolKeys(pool).events_channel)
    decoded = [events.decode(fields[b"e"]) for _, fields in rows]
    return [event for event in decoded if event is not None]


# The rules. Each returns what breaks it, in words.


def overlaps(notes: Iterable[Note]) -> list[str]:
    """Invariant 1, as the kernel saw it: who found another on its gpu."""
    return [f"{note.who} {note.key} token {note.token} on {note.gpus}" for note in notes if note.what == "OVERLAP"]


def troubles(notes: Iterable[Note]) -> list[str]:
    """What must not happen to a worker where nothing is broken."""
    notes = list(notes)
    # Stopped in the middle of its body for longer than its session: it lost its lease, and was told so.
    stopped = {(note.who, note.key) for note in notes if note.what == "stopped"}
    wrong = [note for note in notes if note.what in ("OVERLAP", "refused", "lost")]
    return [
        f"{note.who} {note.what} {note.text}"
        for note in wrong
        if note.what != "lost" or (note.who, note.key) not in stopped
    ]


def token_breaks(notes: Iterable[Note]) -> list[str]:
    """Invariant 2, on whole cards: where a gpu is used under a token that is not higher than the one before."""
    last: dict[str, int] = defaultdict(int)
    broken = []
    for note in notes:
        for gpu in note.gpus if note.what == "use" else ():
            if note.token <= last[gpu]:
                broken.append(f"{gpu}: {note.token} after {last[gpu]} by {note.who}")
            last[gpu] = note.token
    return broken


class Ticket:
    """What the events tell of one ticket. Its arrival is the event of its request, or of its grant at once."""

    def __init__(self, arrived: events.Event) -> None:
        self.id = arrived.lease or ""
        self.arrived_seq = arrived.seq
        self.arrived_ms = arrived.at_ms
        self.granted: list[events.Event] = []
        self.ended: events.Event | None = None

    @property
    def token(self) -> int:
        """The token of its grant; 0 if there was none."""
        return self.granted[0].token or 0 if self.granted else 0

    @property
    def granted_ms(self) -> int:
        """When it was granted: its claim, where the doorbell rang."""
        return self.arrived_ms + (self.granted[0].waited_ms or 0) if self.granted else 1 << 60

    @property
    def ended_ms(self) -> int:
        """When its gpus were free again."""
        return self.ended.at_ms if self.ended else 1 << 60


ENDS = ("lock_released", "lock_expired", "lock_revoked", "wait_abandoned", "wait_timed_out")


def tickets_of(story: Iterable[events.Event]) -> list[Ticket]:
    """The tickets in the order of their arrival."""
    found: dict[str, Ticket] = {}
    for event in story:
        if event.lease is None:
            continue
        if isinstance(event, events.LockRequested | events.LockAcquired):
            ticket = found.setdefault(event.lease, Ticket(event))
            if isinstance(event, events.LockAcquired):
                ticket.granted.append(event)
        elif event.lease in found and event.kind in ENDS:
            found[event.lease].ended = event
    return list(found.values())


def inversions(tickets: Sequence[Ticket]) -> list[str]:
    """Invariant 4, for equal wants of equal priority that were always present: who was granted before an earlier one.

    Tokens are given in the order of grants, whoever confirms first.
    """
    broken = []
    highest: Ticket | None = None
    for ticket in tickets:
        if not ticket.granted:
            continue
        if highest is not None and ticket.token < highest.token:
            broken.append(f"{ticket.id} (token {ticket.token}) was granted before {highest.id} (token {highest.token})")
        if highest is None or ticket.token > highest.token:
            highest = ticket
    return broken


def granted_twice(tickets: Iterable[Ticket]) -> list[str]:
    """Invariant 3: who was granted more than once."""
    return [ticket.id for ticket in tickets if len(ticket.granted) > 1]


def idle_gpus(tickets: Sequence[Ticket], gpus: Sequence[str], tolerance_ms: int) -> list[str]:
    """Invariant 5, for tickets that fit any one gpu: where one waited while a gpu was free.

    :param tolerance_ms: several requests of one millisecond get stamps of their own, a millisecond apart
    """
    broken = []
    waits = sorted((ticket.arrived_ms, ticket.granted_ms, ticket.id) for ticket in tickets)
    for gpu in gpus:
        holds = sorted((t.granted_ms, t.ended_ms) for t in tickets if t.granted and gpu in t.granted[0].gpus)
        free_from = waits[0][0] if waits else 0
        for granted_ms, ended_ms in [*holds, (1 << 60, 1 << 60)]:
            for arrived_ms, served_ms, id in waits:
                idle_ms = min(granted_ms, served_ms) - max(free_from, arrived_ms)
                if idle_ms > tolerance_ms:
                    broken.append(f"{id} waited {idle_ms} ms while {gpu} was free")
            free_from = ended_ms
    return broken


def hand_offs_s(notes: Iterable[Note]) -> list[float]:
    """From one end of a use to the beginning of the next on the same gpu, where the next had asked before (seconds)."""
    asked: dict[tuple[str, str], int] = {}
    freed: dict[str, int] = {}
    took = []
    for note in notes:
        if note.what == "ask":
            asked[note.who, note.key] = note.at_ns
        for gpu in note.gpus:
            if note.what == "use" and gpu in freed and asked[note.who, note.key] < freed[gpu]:
                took.append((note.at_ns - freed[gpu]) / 1e9)
            if note.what == "used":
                freed[gpu] = note.at_ns
    return took
