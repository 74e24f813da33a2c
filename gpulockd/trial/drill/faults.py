"""The faults: each is really done, and measured to the moment in which the next program is on the card."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from gpulockd.trial.drill.site import OTHER, Holder, Site
from gpulockd.trial.drill.terms import Terms
from gpulockd.trial.party import PartyLost

PATIENCE_S = 20.0
"""How much longer than promised is waited, to say how late it was."""

REACHED = "gpu_lock.max_wait_time"


class Fault(NamedTuple):
    """A fault: what is done, what is promised, by when (in seconds, without slack), and how it is done.

    `do` returns how long the recovery took.
    """

    name: str
    promise: str
    limit_s: float
    do: Callable[[], Awaitable[float]]


class Faults:
    """All faults of a drill, on one site."""

    def __init__(self, site: Site, terms: Terms, *, plant: bool = False) -> None:
        """:param plant: the daemon is stopped during the first measure, so that its promise cannot be kept"""
        self._site = site
        self._terms = terms
        self._plant = plant

    def all(self) -> tuple[Fault, ...]:
        """Every fault, in the order in which they are done."""
        t = self._terms
        return (
            Fault("a holder is killed", "the next begins at once", 0.0, self._holder_killed),
            Fault(
                "a holder is stopped beyond its hard limit",
                "it is ended, then the next begins",
                t.seen_out,
                self._stopped,
            ),
            Fault(
                "the daemon is killed under a holder",
                "the holder goes on, the next follows it",
                0.0,
                self._daemon_killed,
            ),
            Fault(
                "the daemon is killed, and then a holder", "it is found when the daemon is back", 0.0, self._both_killed
            ),
            Fault(
                "the store is killed",
                "the holder goes on; grants after its restart",
                t.rpc_deadline,
                self._store_killed,
            ),
            Fault("the store cannot be reached", "the holder goes on; the next is woken", t.woken, self._cut),
            Fault("the store is emptied", "the holder goes on; grants go on", t.told_anew, self._emptied),
            Fault("a configuration is rolled back", "the last stable one, verified", 0.0, self._rolled_back),
        )

    async def _pair(self, limits: dict[str, float] | None = None) -> tuple[Holder, Holder, float]:
        """A holder in its body (since when), and a waiter behind it."""
        holder, waiter = await asyncio.gather(self._site.holder(), self._site.holder())
        await holder.ask(limits=limits)
        since_s = await holder.entered(PATIENCE_S)
        await waiter.ask()
        await self._site.queued()
        return holder, waiter, since_s

    async def _follows(self, holder: Holder, waiter: Holder) -> float:
        """Let the holder leave; when the waiter began."""
        await holder.leave()
        await holder.left(self._within(self._terms.woken))
        began_s = await waiter.entered(self._within(self._terms.woken))
        await self._free(waiter)
        self._site.give_back(holder)
        return began_s

    async def _free(self, holder: Holder) -> None:
        await holder.leave()
        await holder.left(PATIENCE_S)
        self._site.give_back(holder)

    def _within(self, limit_s: float) -> float:
        return limit_s + self._terms.slack + PATIENCE_S

    async def _goes_on(self, holder: Holder, for_s: float) -> None:
        if not await holder.silent(for_s):
            raise PartyLost("the holder lost its lease, or ended")

    async def _holder_killed(self) -> float:
        holder, waiter, _ = await self._pair()
        if self._plant:
            self._site.signal_daemon(signal.SIGSTOP)
        killed_s = time.monotonic()
        holder.send(signal.SIGKILL)
        if self._plant:
            await waiter.silent(self._terms.slack + 1.0)
            self._site.signal_daemon(signal.SIGCONT)
        began_s = await waiter.entered(self._within(self._terms.ttl))
        await self._free(waiter)
        return began_s - killed_s

    async def _stopped(self) -> float:
        hard_s = self._terms.hard
        limits = {"warning": hard_s / 3, "soft_timeout": hard_s / 2, "hard_timeout": hard_s}
        holder, waiter, since_s = await self._pair(limits)
        holder.send(signal.SIGSTOP)
        began_s = await waiter.entered(self._within(self._terms.seen_out))
        await self._free(waiter)
        return began_s - since_s

    async def _daemon_killed(self) -> float:
        holder, waiter, _ = await self._pair()
        await self._site.kill_daemon()
        await self._goes_on(holder, 1.0)
        ready_s = await self._site.start_daemon()
        await self._goes_on(holder, 0.5)
        left_s = max(ready_s, time.monotonic())
        return await self._follows(holder, waiter) - left_s

    async def _both_killed(self) -> float:
        holder, waiter, _ = await self._pair()
        await self._site.kill_daemon()
        holder.send(signal.SIGKILL)
        await self._goes_on(waiter, 0.5)
        ready_s = await self._site.start_daemon()
        began_s = await waiter.entered(self._within(self._terms.ttl))
        await self._free(waiter)
        return max(0.0, began_s - ready_s)

    async def _store_killed(self) -> float:
        holder, waiter, _ = await self._pair()
        killed_s = time.monotonic()
        self._site.kill_store()
        await self._goes_on(holder, 0.2)
        return await self._follows(holder, waiter) - killed_s

    async def _cut(self) -> float:
        holder, waiter, _ = await self._pair()
        self._site.cut()
        await self._goes_on(holder, self._terms.cut)
        await holder.leave()
        self._site.mend()
        mended_s = time.monotonic()
        await holder.left(self._within(self._terms.woken))
        began_s = await waiter.entered(self._within(self._terms.woken))
        await self._free(waiter)
        self._site.give_back(holder)
        return began_s - mended_s

    async def _emptied(self) -> float:
        holder, waiter, _ = await self._pair()
        third = await self._site.holder()
        emptied_s = time.monotonic()
        self._site.empty_store()
        await third.ask(OTHER)
        granted_s = await third.entered(self._within(self._terms.ttl))
        await self._goes_on(holder, 0.2)
        await self._free(third)
        await self._follows(holder, waiter)
        return granted_s - emptied_s

    async def _rolled_back(self) -> float:
        before = await self._value()
        await self._site.change("/api/v1/config", {"set": {REACHED: 77}, "reason": "a drill"})
        began_s = time.monotonic()
        said = await self._site.change("/api/v1/config/rollback", {"reason": "a drill"})
        took_s = time.monotonic() - began_s
        after = await self._value()
        if not said["verified"] or after != before or before == 77:
            raise PartyLost(f"{REACHED} is {after}, and was {before}; verified: {said['verified']}")
        return took_s

    async def _value(self) -> object:
        shown = await asyncio.to_thread(self._site.ask, "/api/v1/config")
        return shown["settings"]["gpu_lock"]["max_wait_time"]
