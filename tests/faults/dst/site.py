"""A pool: the programs that want its gpus, and what they want."""

from __future__ import annotations

from typing import Any

from gpulockd.ledger import answers as a
from gpulockd.ledger import verbs
from gpulockd.ledger.keys import PoolKeys
from gpulockd.model import Process as Identity
from gpulockd.settings import QueueBlock, SessionBlock, SettleBlock
from tests.faults.dst.network import Network
from tests.faults.dst.program import Program
from tests.faults.dst.store import Store
from tests.faults.dst.threaded import ThreadedProgram
from tests.faults.dst.world import World
from tests.faults.judge import NEMESIS
from tests.pools import simulated

LOOKS_EVERY_S = 2.0
"""How often it is seen to that the gpus are offered (in seconds)."""


class Site:
    """One pool, which nobody guards. Its gpus are offered, or its slots are made by the first request for them."""

    def __init__(self, world: World, store: Store, network: Network, pool: str, rates: float) -> None:
        """:param rates: how far the clocks of its programs are from true seconds, such as 0.03"""
        self.world = world
        self.store = store
        self.network = network
        self.pool = pool
        self.gpus = world.dice.choice((1, 1, 2))
        self.is_offered = world.dice.random() < 0.5
        self.programs: dict[str, Program] = {}
        self._rates = rates
        self._pids = 1000
        self._offers = 0

    def next_pid(self) -> int:
        """A process id that was never used."""
        self._pids += 1
        return self._pids

    def rate(self) -> float:
        """Seconds of a process's clock in a true second."""
        return self.world.dice.uniform(1 - self._rates, 1 + self._rates)

    def wish(self) -> dict[str, Any]:
        """What somebody asks for, and with which priority."""
        dice = self.world.dice
        if self.is_offered and dice.random() < 0.5:
            return {"count": dice.randint(1, self.gpus), "priority": dice.choice((0, 0, 1))}
        if self.gpus > 1 and dice.random() < 0.3:
            return {"gpus": list(range(self.gpus)), "priority": dice.choice((0, 0, 1))}
        return {"lock_key": f"gpu_lock:{dice.randrange(self.gpus)}", "priority": dice.choice((0, 0, 1))}

    def offer(self) -> None:
        """Put the gpus at the pool's disposal, and again when the store has forgotten it."""
        store, keys = self.store, PoolKeys(self.pool)
        self.world.after(LOOKS_EVERY_S, self.offer)
        if not store.up or store.ask("EXISTS", keys.base + "offered"):
            return
        is_first = self._offers == 0
        self._offers += 1
        me = Identity(pid=1, host="host", boot_id="boot", user="user", program="offers", started_ticks=1)
        terms = verbs.Terms.of(SessionBlock(), QueueBlock(), SettleBlock())
        session = f"{self._offers:032x}"
        store.call(verbs.open(keys, session=session, process=me, terms=terms, known_pool=not is_first))
        offered = store.call(
            verbs.offer(
                keys,
                session=session,
                process=me,
                machine="machine",
                terms=terms,
                defaults={},
                gpus=simulated(self.gpus),
                complete_run_id=store.run_id() if is_first else None,
                fresh=is_first,
                known_pool=not is_first,
            )
        )
        assert isinstance(offered, a.Offered), offered
        store.call(verbs.end(keys, session="", id=session, token=None, reason="released", what="session"))

    def join(self, name: str, rounds: list[int]) -> None:
        """A process begins."""
        kind = self.world.dice.choice((Program, Program, ThreadedProgram))
        program = kind(self, name, rounds)
        self.programs[name] = program
        program.begin()

    def kill(self, program: Program) -> None:
        """SIGKILL; somebody starts it again."""
        if not program.process.alive:
            return
        program.kill()
        self.world.note(NEMESIS, "killed", program.name)
        name, _, number = program.name.partition("/")
        del self.programs[program.name]
        self.world.after(self.world.dice.uniform(0.2, 8.0), self.join, f"{name}/{int(number or 0) + 1}", program.rounds)

    @property
    def is_done(self) -> bool:
        """Whether everybody has had what he wanted, and all processes have ended."""
        programs = self.programs.values()
        return not any(any(one.rounds) for one in programs) and not any(one.process.alive for one in programs)
