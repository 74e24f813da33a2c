"""What surrounds a guard: its record on the disk, the kernel that tells it of deaths, and the clock it lives by."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from gpulockd.daemon import guarding
from gpulockd.daemon.fence import Fence, Lease
from gpulockd.daemon.journal import Line, _checked, _row, _take
from gpulockd.hardware.processes.identity import Process
from tests.faults.simulator.world import World

if TYPE_CHECKING:
    from tests.faults.simulator.daemon import Daemon


class Record:
    """The guard's record, which outlives its daemon; rows as they are on the disk."""

    def __init__(self) -> None:
        self.rows: list[bytes] = []
        self.was_read = False

    def read(self) -> Fence:
        """The fence of before."""
        fence = Fence()
        for row in self.rows:
            line = _checked(row.rstrip(b"\n"))
            assert line is not None
            _take(fence, line)
        return fence

    def entered(self, lease: Lease) -> None:
        """A lease is in, or has changed."""
        self.rows.append(_row(Line(is_=lease)))

    def over(self, lease: Lease, *, never: bool = False) -> None:
        """A lease is over."""
        self.rows.append(_row(Line(over=lease.id, never=never)))


class Followed:
    """What the guard tells of runs: here every run is its holder."""

    def hold(self, *about: object, **more: object) -> None:
        """A process is in."""

    drop = let_go = hold

    def members(self, lease: str) -> frozenset[Process]:
        """Nobody joins here."""
        return frozenset()


class Watched:
    """Tells deaths, also of those that died while nobody watched."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._known: set[Process] = set()

    def __contains__(self, process: object) -> bool:
        return process in self._known

    def add(self, process: Process, pidfd: int | None = None) -> None:
        """Watch a process."""
        daemon = self._daemon
        self._known.add(process)
        if daemon.site.client_of(process) is None:
            daemon.world.after(0.0, daemon.hear, daemon.guard.died, process)


@contextmanager
def in_virtual_time(world: World) -> Iterator[None]:
    """Let the product's guard live by this world's clock."""

    def clock() -> float:
        return world.acting.clock()

    silent = SimpleNamespace(info=_nothing, warning=_nothing, error=_nothing)
    loop = SimpleNamespace(call_soon=lambda call, *args: world.after(0.0, call, *args))
    instead: dict[str, Any] = {
        "boottime_s": clock,
        "_log": silent,
        "asyncio": SimpleNamespace(get_running_loop=lambda: loop),
    }
    before = {name: getattr(guarding, name) for name in instead}
    vars(guarding).update(instead)
    try:
        yield
    finally:
        vars(guarding).update(before)


def _nothing(*words: object, **more: object) -> None:
    """Nobody reads the logs of a thousand daemons."""
