"""`python -m tests.faults.evil [--seconds N | --grants N | --seed S]`: all breaks at random, for real, and is judged.

A daemon, a store, six programs on two cards, and somebody who breaks one thing after the other. Round follows round,
each on new ground, so that a round that breaks a rule is repeated alone by its seed.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import anyio
import psutil
import redis
from msgspec.structs import replace

from gpulockd.errors import GpuLockError
from tests.daemons import Daemon, daemon_folder, running_daemon, start_daemon
from tests.faults.judge import NEMESIS, Bounds, Story, judged
from tests.faults.scene import CONFIG, own_store
from tests.pools import snapshot
from tests.servers import Server, keys_left
from tests.states import until
from tests.system.history import Diary, Note
from tests.system.workers_started import BRISK, Crew, Started

PROGRAMS = 6
ROUND_S = 60.0
SERVED_S = 90.0
"""Within which everybody is served when the evil is over: a store that forgot waits for its guard first (seconds)."""

LONG_S, SHORT_S = 0.6, 0.03
"""How long a program holds at most (in seconds): as users do, and for many grants."""

DAEMONS = ("sessions", "session", "session_tickets", "due")
"""Keys that the daemon's own session has."""

SETTINGS = CONFIG | {"session": CONFIG["session"] | {"guard_gone_after": 10}}


class Round(NamedTuple):
    """What became of a round: grants that were used, what was broken, and what is wrong."""

    grants: int
    faults: list[str]
    wrong: list[str]


class Nemesis:
    """Breaks one thing after the other, by the dice; notes what it has done to programs."""

    def __init__(
        self, folder: Path, server: Server, crew: Crew, base: Path, daemon: Daemon, seed: int, most_hold_s: float
    ) -> None:
        self.dice = random.Random(seed)
        self.diary = Diary(folder / "nemesis.jsonl", NEMESIS)
        self.server = server
        self.crew = crew
        self.base = base
        self.daemon = daemon
        self.done: list[str] = []
        self.over_ns = 0
        self._listen = f"127.0.0.1:{daemon.port}"
        self._next = PROGRAMS
        self._most_hold_s = most_hold_s

    def start(self, name: str) -> Started:
        """Another program, which asks for one card or both."""
        wishes = [{}, {}, {}, {"count": 2}, {"lock_timeout": 4}]
        (started,) = self.crew.start("loop", name, hold_s=[0.01, self._most_hold_s], wishes=wishes)
        return started

    @property
    def living(self) -> list[Started]:
        """The programs that nobody has ended."""
        return [worker for worker in self.crew.workers.values() if worker.process.poll() is None]

    async def strike(self) -> None:
        """Do one evil thing."""
        evils: list[Callable[[], object]] = [self.kill, self.kill, self.stop, self.stop, self.flush]
        evils += [self.forget_scripts, self.pause_store, self.kill_store, self.kill_daemon]
        evil = self.dice.choice(evils)
        self.done.append(evil.__name__)
        made = evil()
        if made is not None and hasattr(made, "__await__"):
            await made

    def kill(self) -> None:
        """A program dies, and another comes."""
        self.end(self.dice.choice(self.living))
        self.start(f"w{self._next}")
        self._next += 1

    def end(self, victim: Started) -> None:
        """Kill it, and note since when it may be dead: until it is reaped others may have begun where it was."""
        at_s = victim.kill()
        self.diary.note("killed", victim.name, at_s=at_s)

    async def stop(self) -> None:
        """A program stands still, longer than its session or not."""
        victim = self.dice.choice(self.living)
        victim.stop()
        await anyio.sleep(self.dice.uniform(0.1, 1.5 * BRISK.ttl))
        with suppress(ProcessLookupError):
            victim.resume()

    def flush(self) -> None:
        """FLUSHALL."""
        with redis.Redis.from_url(self.server.url) as store:
            store.flushall()

    def forget_scripts(self) -> None:
        """FUNCTION FLUSH."""
        with redis.Redis.from_url(self.server.url) as store:
            store.function_flush("SYNC")

    async def pause_store(self) -> None:
        """The store stands still."""
        self.server.pause()
        await anyio.sleep(self.dice.uniform(0.1, BRISK.ttl))
        self.server.resume()

    async def kill_store(self) -> None:
        """The store dies, and comes back empty."""
        self.server.kill()
        await anyio.sleep(self.dice.uniform(0.0, 1.0))
        await anyio.to_thread.run_sync(self.server.start)

    async def kill_daemon(self) -> None:
        """The daemon dies; another one takes over its record."""
        self.daemon.process.kill()
        await self.daemon.ended()
        await anyio.sleep(self.dice.uniform(0.0, 1.0))
        arguments = ("--redis", self.server.url, "--listen", self._listen)
        if self.daemon.process.stdout is not None:
            self.daemon.process.stdout.close()
        self.daemon.process = start_daemon(self.base, *arguments, config=SETTINGS, simulate=2)

    def replace_the_lost(self) -> None:
        """The guard ends programs that were stopped for too long: others come, so that there is always a crowd."""
        while len(self.living) < PROGRAMS:
            self.start(f"w{self._next}")
            self._next += 1

    def served(self) -> bool:
        """Whether every program that lives has been on a card since the evil was over."""
        return all((note := worker.find("use")) and note.at_ns > self.over_ns for worker in self.living)

    def is_empty(self) -> bool:
        """Whether nobody holds or waits."""
        with suppress(AssertionError, GpuLockError):
            found = snapshot(self.server, self.daemon.pool)
            return not found.leases and not found.queued
        return False


@asynccontextmanager
async def arena(folder: Path, seed: int, most_hold_s: float) -> AsyncIterator[Nemesis]:
    """Store, daemon, programs, nemesis; all are gone at the end."""
    with own_store() as server:
        async with daemon_folder() as base, running_daemon("--redis", server.url, config=SETTINGS, base=base) as daemon:
            await until(lambda: not snapshot(server, daemon.pool).frozen_ms)
            with Crew(folder, server.url, daemon.pool, BRISK, GPULOCKD_SOCKET=daemon.socket) as crew:
                nemesis = Nemesis(folder, server, crew, base, daemon, seed, most_hold_s)
                for number in range(PROGRAMS):
                    nemesis.start(f"w{number}")
                try:
                    yield nemesis
                finally:
                    if nemesis.daemon.process.poll() is None:
                        nemesis.daemon.process.send_signal(signal.SIGTERM)
                        await nemesis.daemon.ended(60)
                    if nemesis.daemon.process.stdout is not None:
                        nemesis.daemon.process.stdout.close()


async def play(folder: Path, seed: int, evil_s: float, most_hold_s: float = LONG_S) -> Round:
    """Break things for `evil_s` (in seconds), see that everybody is served afterwards, and judge the story."""
    async with arena(folder, seed, most_hold_s) as nemesis:
        until_s = time.monotonic() + evil_s
        while time.monotonic() < until_s:
            await anyio.sleep(nemesis.dice.uniform(0.2, 2.0))
            await nemesis.strike()
            nemesis.replace_the_lost()
        nemesis.diary.note("over")
        nemesis.over_ns = time.monotonic_ns()
        await until(nemesis.served, SERVED_S)
        for worker in nemesis.living:
            nemesis.end(worker)
        await until(nemesis.is_empty, SERVED_S)
        left = [key for key in keys_left(nemesis.server, nemesis.daemon.pool) if key.partition(":")[0] not in DAEMONS]
        ended = {name: worker.process.returncode for name, worker in nemesis.crew.workers.items()}
        notes = nemesis.crew.notes()
        (folder / "daemon.log").write_text(nemesis.daemon.log)
    story = Story(notes=with_ends(notes, ended), keys_left=left, bounds=Bounds(served_s=SERVED_S))
    wrong = strangers(notes, ended) + judged(story)
    return Round(sum(note.what == "use" for note in notes), nemesis.done, wrong)


def strangers(notes: list[Note], ended: dict[str, int]) -> list[str]:
    """C9 where the ledger's events are lost with its data: the guard ends nobody who never had a lease to lose."""
    killed = {note.key for note in notes if note.who == NEMESIS and note.what == "killed"}
    entered = {note.who for note in notes if note.what == "enter"}
    return [f"{who} ended by {code}" for who, code in ended.items() if who not in killed and who not in entered]


def with_ends(notes: list[Note], ended: dict[str, int]) -> list[Note]:
    """The notes, and the ends of those whom the guard has ended: the kernel's locks say when they were off a card.

    Nobody is dead who still wrote.
    """
    last = {note.who: note.at_ns for note in notes}
    killed = [note for note in notes if note.who == NEMESIS and note.what == "killed"]
    deaths = [replace(note, at_ns=max(note.at_ns, last.get(note.key, 0) + 1)) for note in killed]
    known = {note.key for note in killed}
    ends = [
        Note(at_ns=last[who] + 1, who=NEMESIS, what="killed", key=who)
        for who in ended
        if who not in known and who in last
    ]
    others = (note for note in notes if note not in killed)
    return sorted([*others, *deaths, *ends], key=lambda note: note.at_ns)


def main() -> int:
    """Round after round, until the time is over or there were grants enough; 1 if a rule was broken."""
    asked = argparse.ArgumentParser(prog="python -m tests.faults.evil", description=__doc__)
    asked.add_argument("--seconds", type=float, default=ROUND_S, help="begin no round after this time")
    asked.add_argument("--grants", type=int, help="go on until there were so many, instead")
    asked.add_argument("--seed", type=int, help="only the round of this seed")
    asked.add_argument("--keep", type=Path, help="where the diaries of a broken round are left")
    said = asked.parse_args()
    seed = secrets.randbelow(1 << 30) if said.seed is None else said.seed
    began_s, rounds, grants, faults, wrong = time.monotonic(), 0, 0, 0, 0
    while rounds == 0 or (said.seed is None and _goes_on(said, grants, time.monotonic() - began_s)):
        with tempfile.TemporaryDirectory() as folder:
            found = asyncio.run(play(Path(folder), seed, ROUND_S, SHORT_S))
            if found.wrong and said.keep is not None:
                shutil.copytree(folder, said.keep / str(seed))
        rounds, grants, faults = rounds + 1, grants + found.grants, faults + len(found.faults)
        if found.wrong:
            wrong += 1
            print(f"seed {seed}: {found.wrong[:5]}\n  {found.faults}", flush=True)
            print(f"  REPRO: python -m tests.faults.evil --seed {seed}", flush=True)
        seed += 1
    me = psutil.Process()
    took_s = time.monotonic() - began_s
    print(
        f"{rounds} rounds, {wrong} broken; {grants} grants under {faults} faults in {took_s:.0f} s; "
        f"left here: {me.num_fds()} descriptors, {len(me.children())} processes"
    )
    return 1 if wrong else 0


def _goes_on(said: argparse.Namespace, grants: int, took_s: float) -> bool:
    return bool(grants < said.grants if said.grants else took_s < said.seconds)


if __name__ == "__main__":
    sys.exit(main())
