"""A program: some tasks that ask for gpus with the real `gpu_lock`, use them for a while and give them back."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from gpulockd import gpu_lock
from gpulockd.client import process as belongings
from gpulockd.client.lease import Lease, LeaseFacts, for_tasks
from gpulockd.errors import GpuLockError, GpuLockTimeout, LeaseLost, StoreUnavailable
from tests.faults.dst.loop import Loop
from tests.faults.dst.world import Process, this_thread

if TYPE_CHECKING:
    from tests.faults.dst.site import Site

HOLDS_S = (0.05, 2.0, 5.0, 15.0, 30.0, 30.0)
WAITS_S = (None, None, None, None, None, None, 0.0, 3.0, 20.0)
RESTS_S = (0.05, 0.05, 4.0)
PAUSE_S = 1.0
SLICE_S = 4.0
BLOCKS, TELLS, JOINS = 0.1, 0.1, 0.1
"""How often a body blocks its loop, tells its progress, or asks again for what it has."""

BY_HAND = 0.2
"""How often a task acquires and releases instead of writing a block."""

MOST_BLOCKED_S = 8.0
LOOKS_EVERY_S = 0.1


class Turn:
    """One wait and one use: what is asked for, and what of it is noted."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._world = program.site.world
        dice = self._world.dice
        self._key = program.next_key()
        self._wait_s = dice.choice(WAITS_S)
        self._served = self._blocks = False
        self.hold_s = dice.choice(HOLDS_S) * dice.uniform(0.5, 1.0)
        self.lock = gpu_lock(pool=program.site.pool, max_wait_time=self._wait_s, **program.site.wish())
        self._world.note(program.name, "ask", self._key)

    def enter(self, lease: LeaseFacts) -> None:
        """The body begins."""
        self._served = True
        gpus = [gpu.key for gpu in lease.gpus]
        for what in ("enter", "use"):
            self._world.note(self._program.name, what, self._key, token=lease.token, gpus=gpus, lease=lease.id)
        self._program.in_body[self._key] = self._world.now

    def leave(self, lease: LeaseFacts) -> None:
        """The body is over. One that was stopped beyond its belief was over when it was stopped."""
        began_s = self._program.in_body.pop(self._key, None)
        if began_s is not None:
            what = "lost" if lease.lost.is_set() else "left"
            stands = for_tasks(lease).stands
            at_s = self._program.process.body_ended(began_s, believed=stands, blocks=self._blocks)
            self._world.note(self._program.name, what, self._key, token=lease.token, at_s=at_s)

    def block(self, lease: LeaseFacts, seconds: float) -> None:
        """Use the gpu without giving anybody else the thread (in seconds); no longer than the lease stands."""
        self._blocks = True
        me = this_thread()
        until_s = me.within(seconds)
        assert until_s is not None
        while self._world.now < until_s and not lease.lost.is_set():
            me.pause(min(until_s, self._world.now + LOOKS_EVERY_S))
        self._blocks = lease.lost.is_set()

    def cancelled(self) -> None:
        """Somebody has torn it."""
        if not self._served:
            self._world.note(self._program.name, "cancelled", self._key)

    def is_over(self, error: GpuLockError) -> bool:
        """Whether this error ends the turn; else it is tried again. What nothing explains is wrong."""
        if isinstance(error, LeaseLost):
            return True
        patient = self._wait_s is None
        if isinstance(error, StoreUnavailable) or (isinstance(error, GpuLockTimeout) and not patient):
            if not self._served:
                self._world.note(self._program.name, "refused", self._key, text=type(error).__name__)
            return not patient
        self._world.wrong.append(f"{self._key}: {type(error).__name__}: {error}")
        return True


class Program:
    """One process; `rounds` are what each of its tasks still has to do, and outlive it."""

    def __init__(self, site: Site, name: str, rounds: list[int]) -> None:
        world = site.world
        self.site = site
        self.rounds = rounds
        self.process = Process(world, name, site.next_pid(), site.rate())
        self.in_body: dict[str, float] = {}
        """The bodies that run, and since when."""
        self.at_work: list[asyncio.Task[Any]] = []
        self._asked = 0
        self._per_loop = world.dice.choice((0, 0, 1, 2))
        self._rests_s = world.dice.choice(RESTS_S)

    @property
    def name(self) -> str:
        """Its name in the story."""
        return self.process.name

    def begin(self) -> None:
        """Start."""
        self.process.begin(self._main)

    def _main(self) -> None:
        while any(self.rounds):
            loop = Loop(this_thread(), self.site.network)
            loop.run(self._work())
        self._exit()

    def _exit(self) -> None:
        """As the interpreter and then the kernel do it."""
        belongings.say_goodbye()
        self.site.network.died(self.process)

    async def _work(self) -> None:
        """What is done in one event loop: all that is left, or a part of it."""
        loop = asyncio.get_running_loop()
        self.at_work = [loop.create_task(self._task(number)) for number in range(len(self.rounds))]
        await asyncio.gather(*self.at_work)

    async def _task(self, number: int) -> None:
        dice, done = self.site.world.dice, 0
        while self.rounds[number] and not (self._per_loop and done >= self._per_loop):
            try:
                await asyncio.sleep(dice.uniform(0.0, self._rests_s))
                if await self._turn():
                    self.rounds[number] -= 1
                    done += 1
            except asyncio.CancelledError:
                task = asyncio.current_task()
                assert task is not None
                task.uncancel()

    async def _turn(self) -> bool:
        """One wait and one use. Returns whether it is done with."""
        turn = Turn(self)
        try:
            await (self._by_hand(turn) if self.site.world.dice.random() < BY_HAND else self._in_block(turn))
        except asyncio.CancelledError:
            turn.cancelled()
            raise
        except GpuLockError as error:
            if not turn.is_over(error):
                await asyncio.sleep(PAUSE_S)
                return False
        return True

    async def _in_block(self, turn: Turn) -> None:
        async with turn.lock as lease:
            turn.enter(lease)
            try:
                await self._body(turn, lease)
            finally:
                turn.leave(lease)

    async def _by_hand(self, turn: Turn) -> None:
        """Without a block nobody ends the body but itself: it waits for the loss of its lease."""
        lease = await turn.lock.acquire()
        try:
            turn.enter(lease)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(turn.hold_s):
                    await lease.lost.wait()
        finally:
            turn.leave(lease)
            await lease.release()

    async def _body(self, turn: Turn, lease: Lease) -> None:
        """Use the gpu; sometimes as code does that blocks its event loop, and looks at its lease now and then."""
        dice, loop = self.site.world.dice, asyncio.get_running_loop()
        until_s = loop.time() + turn.hold_s
        while (left_s := until_s - loop.time()) > 0 and not lease.lost.is_set():
            if dice.random() < BLOCKS:
                turn.block(lease, min(left_s, MOST_BLOCKED_S))
            else:
                await asyncio.sleep(min(left_s, SLICE_S))
            if dice.random() < TELLS:
                with contextlib.suppress(StoreUnavailable):
                    await lease.progress(50.0)
            if dice.random() < JOINS:
                await self._join(lease)

    async def _join(self, lease: Lease) -> None:
        """Ask again for what it holds."""
        numbers = [int(gpu.key.rpartition(":")[2]) for gpu in lease.gpus]
        async with gpu_lock(pool=self.site.pool, gpus=numbers) as same:
            if same.token != lease.token and not lease.lost.is_set():
                self.site.world.wrong.append(f"{self.name} asked for what it has, and got another lease")

    def next_key(self) -> str:
        """The name of a turn."""
        self._asked += 1
        return f"{self.name}.{self._asked}"

    def cancel_one(self) -> None:
        """Somebody cancels one of its tasks."""
        living = [task for task in self.at_work if not task.done()]
        if living:
            task = self.site.world.dice.choice(living)
            task.get_loop().call_soon_threadsafe(task.cancel)

    def kill(self) -> None:
        """SIGKILL."""
        process, world = self.process, self.site.world
        for key, began_s in self.in_body.items() if process.stopped else ():
            world.note(self.name, "lost", key, at_s=max(began_s, process.stopped_at))
        process.kill()
        self.site.network.died(process)
