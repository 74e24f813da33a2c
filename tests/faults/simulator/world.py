"""Virtual time: what happens when, and processes that can be stopped and killed. No real clock is waited for."""

from __future__ import annotations

import random
from collections.abc import Callable, Generator
from heapq import heappop, heappush
from typing import Any

from tests.system.history import Note

LOOK_EVERY = 16
"""Events between two looks whether all is done."""

Coroutine = Generator[Any, Any, Any]


class Away(Exception):
    """No answer came in time; nobody knows whether what was asked has happened."""


class World:
    """The clock that nobody sees, the dice, and the notes."""

    def __init__(self, seed: int, bug: str = "") -> None:
        """:param bug: the planted bug, empty: the protocol as it is"""
        self.dice = random.Random(seed)
        self.bug = bug
        self.now = 0.0
        self.notes: list[Note] = []
        self.wrong: list[str] = []
        self.acting: Actor
        self._events: list[tuple[float, int, Callable[..., Any], tuple[Any, ...]]] = []
        self._count = 0

    def after(self, delay_s: float, call: Callable[..., Any], *args: Any) -> None:
        """Let something happen in `delay_s` (in seconds)."""
        self._count += 1
        heappush(self._events, (self.now + delay_s, self._count, call, args))

    def run(self, until_s: float, done: Callable[[], bool]) -> int:
        """Let everything happen, until all is done or the time is over. Returns how many events that were."""
        events, count = self._events, 0
        while events and (count % LOOK_EVERY or not done()):
            self.now, _, call, args = heappop(events)
            if self.now > until_s:
                break
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
        gpus: tuple[str, ...] = (),
        at_s: float | None = None,
    ) -> None:
        """Write a line of the story."""
        at_ns = round((self.now if at_s is None else at_s) * 1e9)
        self.notes.append(Note(at_ns=at_ns, who=who, what=what, key=key, token=token, gpus=gpus))


class Host:
    """A machine: its clock, its way to the store, the processes on its cards. All times of it are true seconds."""

    def __init__(self, world: World, name: str, rate: float) -> None:
        """:param rate: seconds of its clock in a true second"""
        self.world = world
        self.name = name
        self.rate = rate
        self.cut_to = self.cut_from = 0.0
        """Until when nothing reaches the store, and nothing comes from it."""
        self.slow_until = 0.0
        self.occupied: dict[str, float] = {}
        """gpu -> until when the driver still shows a dead process on it"""

    def boottime_s(self) -> float:
        """CLOCK_BOOTTIME of this host."""
        return 1000.0 + self.rate * self.world.now


class Actor:
    """One process. What happens to it while it is stopped happens when it goes on."""

    def __init__(self, host: Host, name: str) -> None:
        self.world = host.world
        self.host = host
        self.name = name
        self.alive = True
        self.stopped = False
        self.stopped_at = 0.0
        self.cut_until = 0.0
        """Until when this process alone does not reach the store."""
        self.trapped_s = 0.0
        self.arrivals = [0.0, 0.0, 0.0]
        """When the last message arrives: to the store, from it, by its doorbell."""
        """How long it will be stopped right after it has asked for something."""
        self._backlog: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    def clock(self) -> float:
        """Seconds of its own clock."""
        return 1000.0 + self.host.rate * self.world.now

    def after(self, delay_s: float, call: Callable[..., Any], *args: Any) -> None:
        """A timer of this process, by its own clock (in seconds)."""
        world = self.world
        world._count += 1
        heappush(world._events, (world.now + delay_s / self.host.rate, world._count, self.hear, (call, *args)))

    def hear(self, call: Callable[..., Any], *args: Any) -> None:
        """Something reaches this process."""
        if self.stopped:
            self._backlog.append((call, args))
        elif self.alive:
            self.world.acting = self
            call(*args)

    def stop(self) -> None:
        """SIGSTOP."""
        if self.alive and not self.stopped:
            self.stopped, self.stopped_at = True, self.world.now

    def go_on(self) -> None:
        """SIGCONT."""
        if self.stopped and self.alive:
            self.stopped = False
            backlog, self._backlog = self._backlog, []
            for call, args in backlog:
                self.hear(call, *args)

    def kill(self) -> None:
        """SIGKILL."""
        self.alive = False
        self._backlog = []

    def take(self, session: str, message: str) -> None:
        """A message on the channel of its session."""

    def deafened(self, session: str) -> None:
        """The subscription of its session has broken."""

    def spawn(self, work: Coroutine) -> Task:
        """Run `work` as a task of this process."""
        task = Task(self, work)
        self.world.after(0.0, self.hear, task.wake, 0, None, None)
        return task


class Task:
    """A generator that yields what it waits for: a function that is given the task, and wakes it once."""

    def __init__(self, actor: Actor, work: Coroutine) -> None:
        self.actor = actor
        self.turn = 0
        self.done = False
        self._work = work

    def wake(self, turn: int, value: Any = None, error: Exception | None = None) -> None:
        """Go on, unless somebody else has woken it in this turn."""
        if turn != self.turn or self.done:
            return
        self.turn += 1
        try:
            wait = self._work.throw(error) if error is not None else self._work.send(value)
        except StopIteration:
            self.done = True
            return
        wait(self)


def sleep(seconds: float) -> Callable[[Task], None]:
    """Wait for so long, by the process's own clock."""

    def wait(task: Task) -> None:
        task.actor.after(seconds, task.wake, task.turn)

    return wait


class Signal:
    """Wakes the one task that waits for it; a kick before it waits counts too."""

    def __init__(self) -> None:
        self._set = False
        self._waiting: tuple[Task, int] | None = None

    def kick(self) -> None:
        """Wake whoever waits."""
        self._set = True
        if self._waiting is not None:
            task, turn = self._waiting
            self._waiting = None
            task.wake(turn)

    def clear(self) -> None:
        """Forget a kick that nobody has waited for."""
        self._set = False

    def within(self, seconds: float) -> Callable[[Task], None]:
        """Wait for a kick, or for so long."""

        def wait(task: Task) -> None:
            self._waiting = task, task.turn
            task.actor.after(0.0 if self._set else max(0.0, seconds), task.wake, task.turn)

        return wait
