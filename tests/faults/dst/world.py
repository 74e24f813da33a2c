"""Virtual time, and processes whose threads are greenlets: one runs at a time, until it waits for something."""

from __future__ import annotations

import asyncio
import random
import traceback
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any

from greenlet import getcurrent, greenlet  # type: ignore[import-untyped] # it has no stubs of its own

from gpulockd.client import blocking
from gpulockd.client import process as belongings
from tests.system.history import Note

if TYPE_CHECKING:
    from tests.faults.dst.loop import Loop

WOKEN_S = 0.0002
"""A thread that something has happened to runs within so long (in seconds)."""

BUSY_S = 0.002
JUST_WOKEN_S = 0.05
"""Within so long after a stop, a body learns that it is over (in seconds)."""

LOOKED_S = 0.25
"""And one that blocks its thread, and looks now and then."""


class Killed(BaseException):
    """SIGKILL: nothing of this process runs any more."""


class World:
    """The clock that nobody sees, the dice, and the notes."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.now = 0.0
        self.notes: list[Note] = []
        self.wrong: list[str] = []
        self.processes: list[Process] = []
        self.acting: Process | None = None
        self.over = False
        self.hub = getcurrent()
        self._events: list[tuple[float, int, Callable[..., Any], tuple[Any, ...]]] = []
        self._count = 0

    def at(self, when_s: float, call: Callable[..., Any], *args: Any) -> None:
        """Let something happen at that time (in true seconds)."""
        self._count += 1
        heappush(self._events, (max(when_s, self.now), self._count, call, args))

    def after(self, delay_s: float, call: Callable[..., Any], *args: Any) -> None:
        """Let something happen in `delay_s` (in true seconds)."""
        self.at(self.now + delay_s, call, *args)

    def run(self, until_s: float, done: Callable[[], bool]) -> int:
        """Let everything happen, until all is done or the time is over. Returns how many events that were."""
        events, count = self._events, 0
        while events and not done():
            if events[0][0] > until_s:
                self.now = until_s
                break
            self.now, _, call, args = heappop(events)
            call(*args)
            count += 1
        return count

    def note(
        self,
        who: str,
        what: str,
        key: str = "",
        *,
        token: int = 0,
        gpus: Sequence[str] = (),
        lease: str = "",
        text: str = "",
        at_s: float | None = None,
    ) -> None:
        """Write a line of the story."""
        if not self.over:
            at_ns = round((self.now if at_s is None else at_s) * 1e9)
            self.notes.append(
                Note(at_ns=at_ns, who=who, what=what, key=key, token=token, gpus=tuple(gpus), lease=lease, text=text)
            )


class Process:
    """One process: its clock, its threads, its event loops, and what the client keeps in its module's variables."""

    def __init__(self, world: World, name: str, pid: int, rate: float) -> None:
        """:param rate: seconds of its clock in a true second"""
        self.world = world
        self.name = name
        self.pid = pid
        self.rate = rate
        self.alive = True
        self.stopped = False
        self.stopped_at = self.went_on_at = -1e9
        self.trapped_s = 0.0
        """How long it will be stopped right after it has sent something (in seconds)."""
        self.must_wait = False
        self.threads: list[Thread] = []
        self.loops: list[Loop] = []
        self.mine: Any = None
        self.portal: Any = None
        world.processes.append(self)

    def __repr__(self) -> str:
        return self.name

    def clock(self) -> float:
        """Seconds of its own clock, the same for CLOCK_BOOTTIME and CLOCK_MONOTONIC."""
        return 1000.0 + self.rate * self.world.now

    def when(self, clock_s: float) -> float:
        """The true time at which its clock says so."""
        return (clock_s - 1000.0) / self.rate

    def begin(self, main: Callable[[], None]) -> None:
        """Start, with one thread; when that has ended the process has."""

        def run() -> None:
            main()
            self.alive = False

        Thread(self, run).start()

    def stop(self) -> None:
        """SIGSTOP."""
        self.must_wait = False
        if self.alive and not self.stopped:
            self.stopped = True
            if self.world.now - self.went_on_at >= LOOKED_S:
                self.stopped_at = self.world.now

    def go_on(self) -> None:
        """SIGCONT: its threads go on in any order."""
        if self.stopped and self.alive:
            self.stopped, self.went_on_at = False, self.world.now
            due = [thread for thread in self.threads if thread.is_due]
            self.world.dice.shuffle(due)
            for thread in due:
                thread.is_due = False
                thread.wake()

    def kill(self) -> None:
        """SIGKILL: its threads are where they are, for ever."""
        self.alive = False

    def trap(self) -> None:
        """It has sent something: perhaps it is stopped before it can read the answer."""
        if self.trapped_s:
            stopped_s, self.trapped_s, self.must_wait = self.trapped_s, 0.0, True
            self.world.after(0.0, self.stop)
            self.world.after(stopped_s, self.go_on)

    def body_ended(self, began_s: float, *, believed: bool, blocks: bool) -> float | None:
        """When a body that ends now was over, if that was before: who holds no belief was stopped in it."""
        just_woken = self.world.now - self.went_on_at < (LOOKED_S if blocks else JUST_WOKEN_S)
        return max(began_s, self.stopped_at) if just_woken and not believed else None


class Thread:
    """A thread of a process. It runs until it waits for something, and then everything else does."""

    def __init__(self, process: Process, target: Callable[[], None]) -> None:
        self.process = process
        self.is_due = False
        self.ended = False
        self.started = False
        self._target = target
        self._turn = 0
        self._woken = False
        self._interrupt: Exception | None = None
        self._joined: list[Thread] = []
        self._greenlet = greenlet(self._run, process.world.hub)
        self._loop: Any = None
        process.threads.append(self)

    def start(self) -> None:
        """Begin soon."""
        self.started = True
        self.wake()

    def wake(self) -> None:
        """Something has happened that it may wait for."""
        if not self._woken:
            self._woken = True
            world = self.process.world
            world.after(world.dice.random() * WOKEN_S, self._go, self._turn)

    def pause(self, until_s: float | None = None) -> None:
        """Wait until it is woken, or until that time (in true seconds); also for no reason, as threads do."""
        world = self.process.world
        if until_s is not None:
            world.at(until_s, self._go, self._turn)
        self._loop = asyncio._get_running_loop()
        world.hub.switch()
        if self._interrupt is not None:
            interrupt, self._interrupt = self._interrupt, None
            raise interrupt

    def interrupt(self, error: Exception) -> None:
        """A signal handler raises this in it, wherever it waits."""
        self._interrupt = error
        self.wake()

    def within(self, seconds: float | None) -> float | None:
        """The true time at which so much of the process's own time has passed (in seconds)."""
        process = self.process
        return None if seconds is None else process.when(process.clock() + max(0.0, seconds))

    def join(self, timeout_s: float | None) -> None:
        """Wait, in another thread, for its end."""
        me = this_thread()
        until_s = me.within(timeout_s)
        self._joined.append(me)
        while not self.ended and (until_s is None or me.process.world.now < until_s):
            me.pause(until_s)

    def _go(self, turn: int) -> None:
        if turn != self._turn or self.ended:
            return
        process = self.process
        if not process.alive:
            return
        if process.stopped:
            self.is_due, self._woken = True, False
            return
        self._turn += 1
        self._woken = False
        process.world.acting = process
        belongings._mine, blocking._portal = process.mine, process.portal
        asyncio._set_running_loop(self._loop)
        _running[0] = self
        self._greenlet.switch()
        process.mine, process.portal = belongings._mine, blocking._portal
        belongings._mine = blocking._portal = process.world.acting = None
        asyncio._set_running_loop(None)

    def _run(self) -> None:
        try:
            self._target()
        except Killed:
            pass
        except Exception:  # noqa: BLE001 # whatever a program dies of is told
            if not self.process.world.over:
                self.process.world.wrong.append(f"{self.process} has crashed: {traceback.format_exc()}")
        self.ended = True
        for thread in self._joined:
            thread.wake()

    def discard(self) -> None:
        """The world is over: unwind what waits here."""
        if self.started and not self.ended:
            self._greenlet.parent = getcurrent()
            self._greenlet.throw(Killed)


_running: dict[int, Thread] = {}


def this_thread() -> Thread:
    """The thread that runs now."""
    return _running[0]
