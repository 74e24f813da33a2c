"""One schedule from one seed, played and judged."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from tests.faults.judge import Bounds, Story, judged
from tests.faults.simulator.client import Client
from tests.faults.simulator.kernel import Record, in_virtual_time
from tests.faults.simulator.nemesis import FAULTS_S, NARROW, Ground, Nemesis
from tests.faults.simulator.site import Site
from tests.faults.simulator.store import Store
from tests.faults.simulator.world import World

BUGS = {
    "no_confirm": "enters at the doorbell without asking whether its claim stands",
    "no_guard_check": "begins in a guarded pool without being let in",
    "blind_release": "releases the gpu by name, whoever holds it by now",
    "request_twice": "a repeated request takes another place",
    "token_reset": "the tokens begin anew when the store has lost its data",
    "no_wait_for_death": "a lost lease's gpu is handed on before its processes have gone",
    "no_poll": "waits for doorbells alone: no polling, no repair by echoes",
    "belief_from_answer": "belief is counted from the answer, not from the question",
    "no_freeze": "grants at once whatever the store has lost",
    "no_belief": "without a guard, goes on for as long as nobody objects",
}
"""The planted bugs. Each must be found, or the simulator sees nothing."""

SERVED_S = 240.0
"""Who still waits when nothing is broken any more is served within this (in seconds), a guard that is waited for and
a settling that runs out included."""


class Outcome(NamedTuple):
    """What became of a schedule: what is wrong, what was broken when, how many events and grants there were."""

    seed: int
    wrong: list[str]
    plan: list[str]
    events: int
    grants: int
    lasted_s: float


def play(seed: int, bug: str = "", *, rates: float | None = None) -> Outcome:
    """Play the schedule of a seed.

    :param rates: how far the clocks are from true seconds, such as 0.1; None: the dice say
    """
    world = World(seed, bug)
    ground = _ground(world, rates)
    rounds = [client.rounds for site in ground.sites for client in site.clients.values()]
    with in_virtual_time(world):
        nemesis = Nemesis(world, ground.store, ground.sites, may_jump=ground.may_jump)
        for site in ground.sites:
            if site.is_guarded:
                nemesis.start_daemon(site)
            for client in list(site.clients.values()):
                world.after(world.dice.uniform(0.0, 2.0), site.join, client)

        def done() -> bool:
            return not any(any(one) for one in rounds)

        events = world.run(FAULTS_S + SERVED_S + 30.0, done)
        nemesis.end()
        world.run(world.now + 200.0, lambda: not any(_left(ground)))
    wrong = [*dict.fromkeys(world.wrong), *_judged(world), *_left(ground)]
    grants = sum(note.what == "use" for note in world.notes)
    return Outcome(seed, wrong, nemesis.plan, events, grants, world.now)


def _ground(world: World, rates: float | None) -> Ground:
    """Make one pool or two, with or without a guard."""
    dice = world.dice
    wide = rates if rates is not None else dice.choice((0.0, NARROW, 0.1))
    may_jump = wide <= NARROW

    def rate() -> float:
        return dice.choice((1 - wide, 1 + wide)) if rates is not None else dice.uniform(1 - wide, 1 + wide)

    store = Store(world, dice.choice((1, 1, 1, 1, 1, 2)), rate())
    sites = []
    for number in range(len(store.pools)):
        site = Site(world, store, number, rate(), dice.choice((1, 1, 2)))
        site.record = Record() if dice.random() < 0.6 else None
        sites.append(site)
        for which in range(dice.choice((2, 3, 3, 4))):
            tasks = [dice.randint(1, 4) for _ in range(dice.choice((1, 1, 2)))]
            client = Client(site, f"p{number}c{which}", tasks)
            site.clients[client.name] = client
    return Ground(world, store, sites, may_jump)


def _judged(world: World) -> list[str]:
    """What the judge says, pool by pool."""
    wrong = []
    for pool in {note.who[:2] for note in world.notes if note.who.startswith("p")}:
        notes = [note for note in world.notes if (note.key if note.who == "nemesis" else note.who)[:2] in (pool, "")]
        notes.sort(key=lambda note: note.at_ns)
        wrong += judged(Story(notes=notes, bounds=Bounds(served_s=SERVED_S)))
    return wrong


def _left(ground: Ground) -> Iterator[str]:
    """C10: when all have what they wanted, nobody is in a queue, on a gpu or in a fence.

    The ledger does what is due when somebody asks; where all are dead its keys end by their TTL.
    """
    for site in ground.sites:
        if not any(process.alive for process in (*site.clients.values(), site.daemon) if process is not None):
            continue
        for ticket in ground.store.pools[site.pool].tickets.values():
            yield f"C10: {ticket.id} is still {ticket.state} in pool {site.pool}"
        for lease in site.daemon.guard.fence.leases.values() if site.daemon is not None else ():
            yield f"C10: {lease.id} is still in the fence of pool {site.pool}"
