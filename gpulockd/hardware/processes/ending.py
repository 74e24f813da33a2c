"""Ending a run: asked first (SIGTERM), given its time, then killed (SIGKILL). Nothing but its members is signalled."""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable, Collection

import anyio
import msgspec

from gpulockd.hardware.processes.identity import Process, alive, identify, send, stat_of
from gpulockd.hardware.processes.watch import Watch

RESCAN_S = 0.2
"""How often a run that is being ended is looked through for new members, in seconds."""

FREEZE_S = 1.0
"""How long members may take to stop before they are killed all the same, in seconds."""

KILL_S = 5.0
"""How long killed members may take to be gone, in seconds; a driver call that cannot be interrupted takes longer."""

Members = Callable[[], Awaitable[Collection[Process]]]
"""Looks anew and returns the living members of a run."""


class Ended(msgspec.Struct, frozen=True):
    """What became of a run: who was asked, who was killed, who lives still, and who of those was not ours to signal.

    `left` without `forbidden` means uninterruptible sleep, mostly in a driver.
    """

    asked: frozenset[Process]
    killed: frozenset[Process]
    left: frozenset[Process]
    forbidden: frozenset[Process]

    @property
    def is_over(self) -> bool:
        """Whether nothing of the run is left."""
        return not self.left


async def end_run(members: Members, grace_s: float, last: Collection[Process] = (), *, kill_s: float = KILL_S) -> Ended:
    """End a run and wait until it is over.

    :param members: asked again and again, so that children born meanwhile are ended too and a holder that leaves
        within the grace is not killed
    :param grace_s: how long those that were asked have, in seconds; with 0 nobody is asked
    :param last: members that hold another living lease: asked and killed only when no other is left
    :param kill_s: how long to wait for those that were killed, in seconds
    """
    ending = _Ending(members, frozenset(last))
    with ending.watch:
        for _ in range(2 if last else 1):
            await ending.ask(grace_s)
            await ending.kill(kill_s)
            ending.those_before_have_ended()
        left = await ending.living(all_of_it=True)
    return Ended(frozenset(ending.asked), frozenset(ending.killed), left, left & ending.forbidden)


class _Ending:
    def __init__(self, members: Members, last: frozenset[Process]) -> None:
        self._members = members
        self._not_yet = last
        self._given_up: frozenset[Process] = frozenset()
        self._myself = identify(os.getpid())
        self.watch = Watch()
        self.asked: set[Process] = set()
        self.killed: set[Process] = set()
        self.forbidden: set[Process] = set()

    async def living(self, all_of_it: bool = False) -> frozenset[Process]:
        """The members whose turn it is; never this process."""
        found = frozenset(await self._members()) - {self._myself}
        if not all_of_it:
            found -= self._not_yet | self._given_up
        return frozenset(process for process in found if alive(process))

    def those_before_have_ended(self) -> None:
        """It is the turn of the last ones; what did not end before them will not end with them either."""
        self._not_yet = frozenset()
        self._given_up = frozenset(self.killed | self.forbidden)

    async def ask(self, grace_s: float) -> None:
        """Send SIGTERM once to each member, and to those that appear within the grace, a few times a second at most."""
        deadline = anyio.current_time() + grace_s
        next_at = 0.0
        while anyio.current_time() < deadline and (found := await self.living()):
            early_s = min(next_at, deadline) - anyio.current_time()
            if early_s > 0 and found - self.asked:
                # One that answers by a new child and ends would be chased through the table of processes without rest.
                await anyio.sleep(early_s)
                continue
            next_at = anyio.current_time() + RESCAN_S
            for process in found - self.asked:
                self.asked.add(process)
                # One that is stopped can obey only when it goes on; the signal comes first.
                if self._send(process, signal.SIGTERM):
                    self._send(process, signal.SIGCONT)
            await self._wait(found, min(RESCAN_S, deadline - anyio.current_time()))

    async def kill(self, kill_s: float) -> None:
        """Kill all members, those too that are born while this goes on."""
        deadline = anyio.current_time() + kill_s
        # Cancelled half-way, it would leave processes stopped that nobody continues.
        with anyio.CancelScope(shield=True):
            found = await self._frozen()
            self._kill(found)
        while found and anyio.current_time() < deadline:
            await self._wait(found, min(RESCAN_S, deadline - anyio.current_time()))
            found = await self.living()
            self._kill(found - self.killed)

    async def _frozen(self) -> frozenset[Process]:
        """Stop all members until no new one appears: a process that is killed while it forks loses its child to us."""
        deadline = anyio.current_time() + FREEZE_S
        stopped: frozenset[Process] = frozenset()
        found = stopped
        try:
            while (found := await self.living()) - stopped or not _stand_still(found):
                for process in found - stopped:
                    self._send(process, signal.SIGSTOP)
                stopped |= found
                if anyio.current_time() >= deadline:
                    break
                await anyio.sleep(0.01)
        except BaseException:
            found = frozenset()
            raise
        finally:
            # Who is no member any more, or will not be killed now, must not stay stopped.
            for process in stopped - found:
                self._send(process, signal.SIGCONT)
        return found

    def _kill(self, processes: Collection[Process]) -> None:
        for process in processes:
            if self._send(process, signal.SIGKILL):
                self.killed.add(process)

    def _send(self, process: Process, number: int) -> bool:
        try:
            return send(process, number)
        except PermissionError:
            self.forbidden.add(process)
            return False

    async def _wait(self, processes: Collection[Process], seconds: float) -> None:
        with anyio.move_on_after(max(0.0, seconds)):
            try:
                for process in processes:
                    self.watch.add(process)
            except OSError:  # no descriptor left: the time alone ends the wait
                await anyio.sleep_forever()
            await self.watch.wait(processes)


def _stand_still(processes: Collection[Process]) -> bool:
    """Whether none of them forks now: stopped, dead, or in a sleep that cannot be interrupted."""
    return all((stat := stat_of(process.pid)) is None or stat.is_dead or stat.state in "TtD" for process in processes)
