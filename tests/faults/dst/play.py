"""One schedule from one seed, played and judged."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator
from typing import NamedTuple

from gpulockd.ledger import verbs
from gpulockd.ledger.keys import PoolKeys
from gpulockd.ledger.store import BlockingStore
from tests.faults.dst.bugs import planted
from tests.faults.dst.nemesis import FAULTS_S, NARROW, Nemesis
from tests.faults.dst.network import Network
from tests.faults.dst.site import Site
from tests.faults.dst.store import Backend, Store
from tests.faults.dst.threads import in_virtual_time
from tests.faults.dst.world import World
from tests.faults.judge import Bounds, Story, judged
from tests.servers import keys_left
from tests.system.history import Note, read_events

POOL = "sim"
URL = "redis://store.example:6379"
SERVED_S = 360.0
"""Who still waits when nothing is broken any more is served within this (in seconds)."""

IDLE_S = 80.0
"""And all gpus together stand idle beside a waiter no longer than this: a dead session, and then a settling."""

GONE_S = 60.0
"""When all programs have ended, the ledger has ended what they left within this (in seconds of its clock)."""

STEP_S = 5.0
NOBODY = -1


class Outcome(NamedTuple):
    """What became of a schedule: what is wrong, what was broken when, and what was noted."""

    seed: int
    wrong: list[str]
    plan: list[str]
    notes: list[Note]
    events: int
    commands: int
    grants: int
    lasted_s: float


def play(backend: Backend, seed: int, bug: str = "") -> Outcome:
    """Play the schedule of a seed."""
    world = World(seed)
    dice = world.dice
    rates = dice.choice((0.0, NARROW, 0.1))
    store = Store(world, backend, dice.uniform(1 - rates, 1 + rates))
    network = Network(store)
    site = Site(world, store, network, POOL, rates)
    if site.is_offered:
        site.offer()
    for number in range(dice.choice((2, 3, 3, 4))):
        rounds = [dice.randint(1, 4) for _ in range(dice.choice((1, 1, 2)))]
        world.after(dice.uniform(0.0, 2.0), site.join, f"c{number}", rounds)
    with _environment(), _silence(world), in_virtual_time(world, network), planted(bug):
        nemesis = Nemesis(site, may_jump=rates <= NARROW)
        events = world.run(FAULTS_S + SERVED_S + 30.0, lambda: nemesis.over and site.is_done)
        lasted_s = world.now
        world.over = True
        _discard(world)
    store.end()
    told = [] if store.forgot else read_events(backend.server, POOL)
    left = _left(store) if site.is_done else []
    if not site.is_done:
        world.wrong.append("C8: some programs have not ended")
    notes = sorted(world.notes, key=lambda note: note.at_ns)
    story = Story(notes=notes, told=told, keys_left=left, bounds=Bounds(served_s=SERVED_S))
    grants = sum(note.what == "use" for note in notes)
    wrong = [*dict.fromkeys(world.wrong), *judged(story), *_idle(notes)]
    return Outcome(seed, wrong, nemesis.plan, notes, events, store.commands, grants, lasted_s)


def _idle(notes: list[Note]) -> Iterator[str]:
    """C8: how long nobody uses anything when nothing is broken any more, and somebody waits."""
    is_over, since_s = False, 0.0
    waiting: set[str] = set()
    using: set[str] = set()
    for note in notes:
        if is_over and waiting and not using and note.at_s - since_s > IDLE_S:
            yield f"C8: nobody used a gpu for {note.at_s - since_s:.1f} s, and {min(waiting)} waited"
        if note.what == "ask":
            waiting.add(note.key)
        elif note.what == "use":
            using.add(note.key)
        is_over = is_over or note.what == "over"
        if note.what in ("use", "cancelled", "refused"):
            waiting.discard(note.key)
        elif note.what in ("left", "lost"):
            using.discard(note.key)
        elif note.what == "killed":
            waiting = {key for key in waiting if key.rpartition(".")[0] != note.key}
            using = {key for key in using if key.rpartition(".")[0] != note.key}
        if note.what != "ask" or len(waiting) == 1:
            since_s = note.at_s


def _left(store: Store) -> list[str]:
    """C10: what is left in the store when the ledger has had time to end it."""
    reader = BlockingStore(store.backend.server.url, deadline_s=20.0)
    for _ in range(round(GONE_S / STEP_S)):
        store.world.now += STEP_S
        store.set_clock()
        reader.ask(verbs.snapshot(PoolKeys(POOL)))
    reader.close()
    return keys_left(store.backend.server, POOL)


def _discard(world: World) -> None:
    """Unwind what nobody goes on with."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for process in world.processes:
            process.alive = False
            for session in process.mine.sessions.values() if process.mine is not None else ():
                session.pid = NOBODY  # as in a forked child, where leases end nothing and say nothing
            for thread in process.threads:
                thread.discard()
            for loop in process.loops:
                loop.discard()


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    """What the programs are told; nothing else of gpulockd's is in their environment."""
    before = {name: value for name, value in os.environ.items() if name.startswith(("GPULOCKD_", "GPU_LOCK_"))}
    for name in before:
        del os.environ[name]
    os.environ["GPULOCKD_REDIS_URL"] = URL
    try:
        yield
    finally:
        del os.environ["GPULOCKD_REDIS_URL"]
        os.environ.update(before)


class _Listener(logging.Handler):
    """Hears what the client says of its own failures."""

    def __init__(self, world: World) -> None:
        super().__init__(logging.ERROR)
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        """What no fault explains is wrong."""
        said = record.getMessage()
        if said.startswith("gpulockd: keepalive failed") and not self._world.over:
            self._world.wrong.append(said)


@contextlib.contextmanager
def _silence(world: World) -> Iterator[None]:
    """Nobody reads the logs of a thousand programs."""
    log = logging.getLogger("gpulockd")
    handlers, propagates = log.handlers, log.propagate
    log.handlers, log.propagate = [_Listener(world)], False
    try:
        yield
    finally:
        log.handlers, log.propagate = handlers, propagates
