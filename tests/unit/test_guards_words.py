"""What the guard says, and when it said it: words that are read late end no lease of now, and prove no guard of now."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from gpulockd import places
from gpulockd.client.admitting import GuardLink
from gpulockd.client.guarded import GuardAway, LastWord
from gpulockd.client.keeper import Keeper
from gpulockd.client.line import Line
from gpulockd.client.session import Session
from gpulockd.client.table import Ask, Entry
from gpulockd.clock import boottime_s
from gpulockd.daemon.admission import Hello, Leave
from gpulockd.daemon.callers import Caller
from gpulockd.daemon.fence import Lease, Party
from gpulockd.hardware.processes.identity import identify
from gpulockd.ledger.verbs import Terms
from gpulockd.model import Job, PoolClock, Wants
from gpulockd.settings import QueueBlock, SessionBlock, SettleBlock
from tests.pools import CALM, QUICK
from tests.states import until
from tests.unit.test_guarding import guard_in

ZERO = ("gpu_lock:0",)
GUARDED = PoolClock(epoch="e", version=0, ttl_ms=20_000, step_ms=3_000, keepalive_ms=5_000, guarded=True)


def ms(at_s: float) -> int:
    """As lines carry it."""
    return round(at_s * 1000)


def test_a_line_counts_from_when_it_was_said() -> None:
    """A process that was stopped reads old lines: the guard may have died meanwhile, and its gpu may be another's."""
    word, now_s = LastWord(), boottime_s()
    word.asked()
    word.heard({"pool": "here", "at_ms": ms(now_s)})
    word.heard({"alive": True, "at_ms": ms(now_s + 30)})
    assert abs(word.at_s - (now_s + 30)) < 10
    word.heard({"alive": True, "at_ms": ms(now_s + 10)})
    word.heard({"admitted": "lease", "token": 1})
    assert abs(word.at_s - (now_s + 30)) < 10


def test_lines_that_nobody_has_read_yet_count_too() -> None:
    """A body that blocks its loop for an hour is vouched for all the same."""
    word, now_s = LastWord(), boottime_s()
    word.asked()
    word.heard({"pool": "here", "at_ms": ms(now_s)})
    lines = b"".join(b'{"alive":true,"at_ms":%d}\n' % ms(now_s + part) for part in (20, 40, 60))
    word.waits_unread(lines + b'{"alive":true,"at_ms":17')
    assert abs(word.at_s - (now_s + 60)) < 10


def test_a_guard_in_another_time_namespace_is_understood() -> None:
    """A container may count CLOCK_BOOTTIME from another moment than its host."""
    word, now_s = LastWord(), boottime_s()
    word.asked()
    word.heard({"pool": "here", "at_ms": ms(now_s - 5_000)})
    assert abs(word.at_s - now_s) < 10
    word.heard({"alive": True, "at_ms": ms(now_s - 5_000 + 40)})
    assert abs(word.at_s - (now_s + 40)) < 10


def test_a_guard_of_before_is_trusted_when_it_is_read() -> None:
    """A daemon of the version before says no moments."""
    word, now_s = LastWord(), boottime_s()
    word.asked()
    word.heard({"alive": True})
    assert word.at_s >= now_s
    word.at_s = 0.0
    word.waits_unread(b'{"alive":true}\n')
    assert word.at_s >= now_s


async def test_what_was_lost_unheard_is_told_at_the_next_hello(tmp_path: Path) -> None:
    """A grant that nobody read, taken from the ledger by a new daemon: its gpu would be quarantined until that process
    ends."""
    process = identify(os.getpid())
    assert process is not None
    with guard_in(tmp_path) as guard:
        mine = Party(ticket="t1", session="s1", pid=process.pid, started=process.started_ticks)
        lease = Lease(id="t1", token=5, gpus=ZERO, exclusive=True, parties=[mine])
        guard.adopt_ledgers(lease)
        guard.lost(lease, "expired")
        said: list[object] = []
        caller = Caller(process, os.getuid(), said.append)
        guard.hello(caller, Hello(session="s2", was=["s1"]))
        await asyncio.sleep(0)
        assert said == [{"lost": "t1", "token": 5, "reason": "expired"}]
        guard.leave(caller, Leave(lease="t1", token=4, lost=True))
        assert lease.inside
        guard.leave(caller, Leave(lease="t1", token=5, lost=True))
        assert not lease.inside


class Door:
    """The guard's end of its socket: answers as told, keeps what it hears."""

    def __init__(self) -> None:
        self.heard: list[dict[str, Any]] = []
        self.connections = 0
        self.thinks_again = self.is_silent = self.greets_nobody = False
        self._writer: asyncio.StreamWriter | None = None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection: who says hello is greeted, who asks is let in."""
        self._writer = writer
        self.connections += 1
        try:
            while line := await reader.readline():  # until the link is closed
                self.answer(json.loads(line))
        except ConnectionError:
            pass
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()
            self.connections -= 1

    def answer(self, said: dict[str, Any]) -> None:
        """Keep a line, and answer it."""
        self.heard.append(said)
        if said["verb"] == "hello" and not self.greets_nobody:
            self.say(pool="here", admitted=[], at_ms=ms(boottime_s()))
        elif said["verb"] == "admit" and not self.is_silent:
            self.say(admitted=said["lease"]["id"], token=said["lease"]["token"])
            if self.thinks_again:
                self.say(lost=said["lease"]["id"], token=said["lease"]["token"], reason="lapsed")

    def say(self, **words: object) -> None:
        """One line."""
        assert self._writer is not None
        self._writer.write(json.dumps(words).encode() + b"\n")

    def left(self) -> list[tuple[str, int]]:
        """What it was told to be over."""
        return [(said["lease"], said["token"]) for said in self.heard if said["verb"] == "leave"]


@asynccontextmanager
async def door_in(folder: Path) -> AsyncIterator[Door]:
    """A guard's socket in `folder`."""
    door = Door()
    server = await asyncio.start_unix_server(door.serve, folder / places.GUARD_SOCKET)
    try:
        yield door
    finally:
        server.close()
        await until(lambda: not door.connections)


def session_in(folder: Path, times: SessionBlock) -> Session:
    """A session before the guard's socket in `folder`; it has no store."""
    terms = Terms.of(times, QueueBlock(), SettleBlock())
    return Session("unix:///nowhere", "here", times, terms, socket=str(folder / "api.sock"))


def ticket_of(session: Session, id: str, loop: asyncio.AbstractEventLoop | None = None) -> Entry:
    """A ticket of the session that has not been granted, of this loop if no other is named."""
    entry = Entry(Ask(Wants(), 0, Job(task="test"), 1_000), session.id, loop or asyncio.get_running_loop(), id)
    session.table.add(entry)
    return entry


async def test_a_late_loss_ends_no_later_grant_of_its_ticket(tmp_path: Path) -> None:
    """The claim of before has lapsed and was told lost; the ticket holds by its next grant by now."""
    session = session_in(tmp_path, CALM)
    entry = ticket_of(session, "t1")
    async with door_in(tmp_path) as door:
        link = GuardLink(session)
        await asyncio.wait_for(link.admit(entry, 9, ZERO), 20)
        entry.hold(9, (), 0.0)
        door.say(lost="t1", token=8, reason="lapsed")
        await until(lambda: door.left() == [("t1", 8)])
        assert not entry.lost.is_set()
        door.say(lost="unknown", token=7, reason="expired")
        await until(lambda: ("unknown", 7) in door.left())
        door.say(lost="t1", token=9, reason="revoked")
        await asyncio.wait_for(entry.lost.wait(), 20)
        assert ("t1", 9) not in door.left()  # its body ends first
        link.close()


async def test_a_yes_that_was_taken_back_in_the_same_breath_lets_nobody_in(tmp_path: Path) -> None:
    """Both lines are read before the task that waits for the yes is awake; its gpu is the next one's by then."""
    session = session_in(tmp_path, CALM)
    entry = ticket_of(session, "t1")
    async with door_in(tmp_path) as door:
        link = GuardLink(session)
        await asyncio.wait_for(link.admit(entry, 8, ZERO), 20)
        assert link.has_let_in(entry, 8)
        door.thinks_again = True
        await asyncio.wait_for(link.admit(entry, 9, ZERO), 20)
        await until(lambda: ("t1", 9) in door.left())
        assert not link.has_let_in(entry, 9)
        link.close()


async def test_a_loss_told_instead_of_a_yes_cancels_nobody(tmp_path: Path) -> None:
    """A guard that begins anew tells what is over while it is asked; to be cancelled would end the program."""
    session = session_in(tmp_path, CALM)
    entry = ticket_of(session, "t1")
    async with door_in(tmp_path) as door:
        door.is_silent = True
        link = GuardLink(session)
        asked = link.admit(entry, 9, ZERO)
        await until(lambda: any(said["verb"] == "admit" for said in door.heard))
        door.say(lost="t1", token=9, reason="expired")
        with pytest.raises(GuardAway):
            await asyncio.wait_for(asked, 20)
        await until(lambda: ("t1", 9) in door.left())
        link.close()


async def test_another_loops_link_answers_for_nobody(tmp_path: Path) -> None:
    """The guard tells each connection of a session; only the loop that asked knows whether its body has begun."""
    session, elsewhere = session_in(tmp_path, CALM), asyncio.new_event_loop()
    mine = ticket_of(session, "mine")
    ticket_of(session, "others", elsewhere)
    async with door_in(tmp_path) as door:
        link = GuardLink(session)
        await asyncio.wait_for(link.admit(mine, 8, ZERO), 20)
        door.say(lost="others", token=9, reason="lapsed")
        door.say(lost="mine", token=8, reason="lapsed")
        await until(lambda: bool(door.left()))
        assert door.left() == [("mine", 8)]
        link.close()
    elsewhere.close()


async def test_a_guard_that_has_not_answered_is_told_later_which_sessions_have_ended(tmp_path: Path) -> None:
    """It may have taken a grant that nobody read from the ledger: it keeps its gpu until this process says a word."""
    session = session_in(tmp_path, QUICK)
    entry = ticket_of(session, "t1")
    async with door_in(tmp_path) as door:
        door.greets_nobody = True
        link = GuardLink(session)
        with pytest.raises(GuardAway):
            await asyncio.wait_for(link.admit(entry, 9, ZERO), 20)
        ended = session.id
        session.begin_anew(ended, "died")
        link.leave(entry)
        session.table.remove(entry)
        door.greets_nobody = False
        session.clock = GUARDED
        link.look()
        await until(lambda: door.heard[-1].get("was") == [ended])
        link.close()


async def test_a_doorbell_that_is_heard_late_takes_no_answer_from_a_grant_that_waits(tmp_path: Path) -> None:
    """The claim has lapsed, a poll was granted the gpu under a later token; the old ring was read only now."""
    session = session_in(tmp_path, QUICK)
    session.clock = GUARDED
    entry = ticket_of(session, "t1")
    async with door_in(tmp_path) as door:
        door.is_silent = True
        line = Line(session, Keeper(session))
        asked = line.guard.admit(entry, 9, ZERO)
        await until(lambda: any(said["verb"] == "admit" for said in door.heard))
        line.doorbell.take(b"claim t1 8 gpu_lock:0")
        line.doorbell.take(b"claim t1 1009 gpu_lock:0")
        door.say(admitted="t1", token=9)
        await asyncio.wait_for(asked, 20)
        assert line.guard.has_let_in(entry, 9) and not door.left()
        await line.aclose()
