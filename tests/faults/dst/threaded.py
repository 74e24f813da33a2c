"""A program of threads: it asks with plain `with gpu_lock()`, and the real portal serves its threads."""

from __future__ import annotations

import contextlib
from typing import Any

from gpulockd.client.lease import BlockingLease
from gpulockd.errors import GpuLockError, StoreUnavailable
from tests.faults.dst.program import PAUSE_S, TELLS, Program, Turn
from tests.faults.dst.world import Thread, this_thread


class Interrupted(Exception):
    """What a signal handler raises: Ctrl-C, a soft time limit."""


class ThreadedProgram(Program):
    """One process without an event loop of its own; each of its tasks is a thread."""

    def __init__(self, *about: Any) -> None:
        super().__init__(*about)
        self._workers: list[Thread] = []

    def _main(self) -> None:
        self._workers = [
            Thread(self.process, lambda number=number: self._thread(number))  # type: ignore[misc] # mypy sees no default
            for number in range(len(self.rounds))
        ]
        for worker in self._workers:
            worker.start()
        for worker in self._workers:
            worker.join(None)
        self._exit()

    def _thread(self, number: int) -> None:
        while self.rounds[number]:
            try:
                self._sleep(self.site.world.dice.uniform(0.0, self._rests_s))
                if self._turn_blocking():
                    self.rounds[number] -= 1
            except Interrupted:
                continue

    def _turn_blocking(self) -> bool:
        """One wait and one use. Returns whether it is done with."""
        turn = Turn(self)
        try:
            with turn.lock as lease:
                turn.enter(lease)
                try:
                    self._body_blocking(turn, lease)
                finally:
                    turn.leave(lease)
        except Interrupted:
            turn.cancelled()
            raise
        except GpuLockError as error:
            if not turn.is_over(error):
                self._sleep(PAUSE_S)
                return False
        return True

    def _body_blocking(self, turn: Turn, lease: BlockingLease) -> None:
        dice = self.site.world.dice
        first_s = turn.hold_s * dice.random()
        turn.block(lease, first_s)
        if dice.random() < TELLS and not lease.lost.is_set():
            with contextlib.suppress(StoreUnavailable):
                lease.progress(50.0)
        turn.block(lease, turn.hold_s - first_s)

    def _sleep(self, seconds: float) -> None:
        me = this_thread()
        until_s = me.within(seconds)
        assert until_s is not None
        while me.process.world.now < until_s:
            me.pause(until_s)

    def cancel_one(self) -> None:
        """A signal handler raises in one of its threads."""
        living = [worker for worker in self._workers if not worker.ended]
        if living:
            self.site.world.dice.choice(living).interrupt(Interrupted())
