"""The store of all pools: the model of the ledger behind a network, a server that restarts, forgets and stalls."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

from gpulockd.ledger.verbs import Terms
from gpulockd.settings import QueueBlock, SessionBlock, SettleBlock
from tests.faults.simulator.world import Actor, Away, Task, World
from tests.lua.model import HOLDS, Pool, Said, Server

TIMES = SessionBlock()
TERMS = Terms.of(TIMES, QueueBlock(), SettleBlock())
BEGAN_MS = 1_700_000_000_000


class Facts(NamedTuple):
    """What every answer says of its pool."""

    guarded: bool
    epoch: tuple[str, int]
    now_ms: int


Answer = tuple[Said, Facts]


class Quick(Pool):
    """The model without looks that find nothing: here all want whole gpus, so nobody begins where none is free."""

    def place(self) -> None:
        """Grant whatever can begin."""
        taken = {key for t in self.tickets.values() if t.state in HOLDS for key in t.gpus}
        ready = (key for key, card in self.cards.items() if card.state == "ready" and key not in taken)
        if not self.cards or next(ready, None) is not None:
            super().place()


class Forgetful(Quick):
    """Planted: begins to count anew when the store has lost its data."""

    def _open_epoch(self, *, missing: bool, known: bool | None) -> None:
        super()._open_epoch(missing=missing, known=known)
        self.token = 0 if missing else self.token


class Hasty(Quick):
    """Planted: grants at once whatever the store has lost."""

    def _freeze(self, length_ms: int, why: str) -> None:
        super()._freeze(0, why)


class Doubling(Quick):
    """Planted: a repeated request takes another place."""

    def request(self, session: str, id: str, *args: Any, **more: Any) -> Said:
        while id in self.tickets and self.tickets[id].state == "waiting":
            id += "'"
        return super().request(session, id, *args, **more)


POOLS: dict[str, type[Pool]] = {"token_reset": Forgetful, "no_freeze": Hasty, "request_twice": Doubling}


class Store:
    """One server with the pools of all sites. `name` of a pool is its number."""

    def __init__(self, world: World, pools: int, rate: float) -> None:
        """:param rate: seconds of its clock in a true second"""
        self.world = world
        self.rate = rate
        self.up = True
        self.stalled_until = 0.0
        self.jumped_ms = 0
        self.slow_bells_until = 0.0
        self.forgot = False
        self.subscribed: dict[str, Actor] = {}
        self.fleet: set[int] = set()
        self._started_at = -1000.0
        self._runs = 0
        self.server = Server(wall_ms=BEGAN_MS, run_id="run0")
        made = POOLS.get(world.bug, Quick)
        self.pools = [made(self.server, self.subscribed.__contains__) for _ in range(pools)]
        self.unguarded_at = [0.0] * pools
        """When each pool was last seen without a guard."""

    # The network

    def ask(self, actor: Actor, pool: int, verb: str, *args: Any, deadline_s: float = 2.0) -> Callable[[Task], None]:
        """Send a verb, and wait for its answer; raises `Away` in the task when none comes in time."""

        def wait(task: Task) -> None:
            turn = task.turn
            actor.after(deadline_s, task.wake, turn, None, Away())
            if actor.trapped_s and verb in ("request", "confirm"):
                self.world.after(0.0001, actor.stop)
                self.world.after(actor.trapped_s, actor.go_on)
                actor.trapped_s = 0.0
            delay_s = self._way(actor, actor.host.cut_to, 0)
            if delay_s is not None:
                self.world.after(delay_s, self._arrive, actor, pool, verb, args, task, turn)

        return wait

    def _way(self, actor: Actor, cut_until: float, direction: int) -> float | None:
        """How long a message is under way, None: for ever. What TCP holds back may come when the way is free again."""
        dice, now = self.world.dice, self.world.now
        delay_s = 0.0002 + 0.0018 * dice.random()
        if now < actor.host.slow_until:
            delay_s += dice.choice((0.0, 0.3, 1.2, 3.0))
            return delay_s
        cut_until = max(cut_until, actor.cut_until)
        if now < cut_until:
            return None if dice.random() < 0.5 else cut_until - now + delay_s
        # One connection does not reorder.
        arrival = actor.arrivals[direction] = max(now + delay_s, actor.arrivals[direction])
        return arrival - now

    def _arrive(self, actor: Actor, pool: int, verb: str, args: tuple[Any, ...], task: Task, turn: int) -> None:
        if self.world.now < self.stalled_until:
            self.world.after(self.stalled_until - self.world.now, self._arrive, actor, pool, verb, args, task, turn)
            return
        if not self.up:
            self.world.after(0.001, actor.hear, task.wake, turn, None, Away())
            return
        answer = self.run(actor, pool, verb, args)
        delay_s = self._way(actor, actor.host.cut_from, 1)
        if delay_s is not None:
            self.world.after(delay_s, actor.hear, task.wake, turn, answer)

    def _ring(self, session: str, message: str) -> None:
        actor = self.subscribed.get(session)
        if actor is None:
            return
        delay_s = self._way(actor, actor.host.cut_from, 2)
        if delay_s is not None:
            if self.world.now < self.slow_bells_until:
                delay_s += self.world.dice.choice((0.0, 0.5, 2.0, 5.0))
            self.world.after(delay_s, actor.hear, actor.take, session, message)

    # The server

    def _tick(self) -> None:
        self.server.wall_ms = BEGAN_MS + self.jumped_ms + int(self.rate * self.world.now * 1000)
        self.server.uptime_s = int(self.world.now - self._started_at)

    def run(self, actor: Actor, number: int, verb: str, args: tuple[Any, ...]) -> Answer:
        """Run one verb in one step, and ring whom it concerns."""
        self._tick()
        pool = self.pools[number]
        said: Said
        if verb == "subscribe":
            self.subscribed[args[0]] = actor
            said = ("subscribed",)
        elif verb == "fleet":
            said = ("fleet", number in self.fleet)
        elif verb == "enlist":
            self.fleet.add(number)
            said = ("enlisted",)
        elif verb == "picture":
            said = self._picture(pool)
        elif verb == "end_blindly":
            said = self._end_blindly(pool, *args)
        elif verb == "offer":
            said = pool.make_offer(args[0], **args[1])
        elif verb == "request":
            said = pool.request(*args[:5], asked_ms=args[5])
        else:
            said = getattr(pool, verb)(*args)
        if not pool.guarded:
            self.unguarded_at[number] = self.world.now
        rung, pool.rung = pool.rung, []
        for session, message in rung:
            if not message.startswith("echo "):  # the answer says the same
                self._ring(session, message)
        if verb == "request" and not self.forgot:
            self._count(pool, args[0])
        return said, Facts(pool.guarded, pool.epoch, pool.now)

    def _count(self, pool: Pool, session: str) -> None:
        """No retry takes a second place."""
        ids = [t.id.rstrip("'") for t in pool.tickets.values() if t.session == session]
        if len(ids) != len(set(ids)):
            self.world.wrong.append(f"C5: a request of {session} has two places")

    def _picture(self, pool: Pool) -> Said:
        said = pool.look()
        if said[0] != "snapshot":
            return said
        leases = {t.id: t for t in pool.tickets.values() if t.state in ("claim", "held", "member")}
        states = {key: card.state for key, card in pool.cards.items()}
        return ("snapshot", max(0, pool.frozen_until - pool.now), leases, states)

    def _end_blindly(self, pool: Pool, gpus: tuple[str, ...]) -> Said:
        """Planted: a release by name, whoever holds it by now."""
        if pool.look()[0] == "snapshot" and not pool.frozen_until:
            for t in [t for key in gpus for t in pool.holders(key)]:
                if t.id in pool.tickets:
                    pool._end_ticket(t, "released")
            pool.place()
        return ("ended", "released")

    # Its faults

    def saved(self) -> list[dict[str, Any]]:
        """All that is on the disk now."""
        kept = ("server", "listens", "rung")
        return [copy.deepcopy({n: v for n, v in vars(p).items() if n not in kept}) for p in self.pools]

    def crash(self, down_s: float, state: list[dict[str, Any]] | None = None, *, empty: bool = False) -> None:
        """The server dies, and comes back as it was, as it was at `state`, or empty."""
        self.up = False
        self.forgot = self.forgot or empty or state is not None
        for session in list(self.subscribed):
            self.hang_up(session)
        self.world.after(down_s, self._start, state, empty)

    def _start(self, state: list[dict[str, Any]] | None, empty: bool) -> None:
        self._runs += 1
        self.up, self._started_at = True, self.world.now
        self.server.run_id, self.server.flushed = f"run{self._runs}", False
        for number, pool in enumerate(self.pools):
            if empty:
                pool.lose_all()
            elif state is not None:
                vars(pool).update(copy.deepcopy(state[number]))
        if empty:
            self.fleet.clear()

    def flush(self) -> None:
        """FLUSHALL."""
        for pool in self.pools:
            pool.lose_all()
        self.fleet.clear()
        self.server.flushed = self.forgot = True

    def hang_up(self, session: str, *, silently: bool = False) -> None:
        """A subscription breaks. `silently`: its peer does not hear of it."""
        actor = self.subscribed.pop(session, None)
        if actor is not None and not silently and self.world.now >= max(actor.host.cut_from, actor.cut_until):
            self.world.after(0.001, actor.hear, actor.deafened, session)
