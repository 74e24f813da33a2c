"""A host with its gpus, its programs and its daemon, in a pool of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpulockd.hardware.processes.identity import Process
from gpulockd.model import Gpu, Wants
from tests.faults.judge import NEMESIS
from tests.faults.simulator.store import Store
from tests.faults.simulator.world import Host, World

if TYPE_CHECKING:
    from tests.faults.simulator.client import Client
    from tests.faults.simulator.daemon import Daemon
    from tests.faults.simulator.kernel import Record

CARD_MIB = 24_576
DRAIN_S = 2.0
"""How long the driver may still show a dead process on a card, at most."""


class Site:
    """What belongs to one pool. `hosts` are several only where nobody guards."""

    def __init__(self, world: World, store: Store, pool: int, rate: float, gpus: int) -> None:
        """:param rate: seconds of the host's clock in a true second"""
        self.world = world
        self.store = store
        self.pool = pool
        self.host = Host(world, f"host{pool}", rate)
        self.gpus = [Gpu(key=f"gpu_lock:{n}", index=n, memory_mib=CARD_MIB) for n in range(gpus)]
        self.clients: dict[str, Client] = {}
        self.daemon: Daemon | None = None
        self.record: Record | None = None
        self.processes: dict[str, Process] = {}
        self.pids = 1000 * (pool + 1)

    @property
    def is_guarded(self) -> bool:
        """Whether a daemon belongs to it, running or not."""
        return self.record is not None

    def wish(self) -> tuple[Wants, int]:
        """What somebody asks for, and with which priority."""
        dice = self.world.dice
        if not self.is_guarded:
            return Wants(keys=("gpu_lock:0",)), dice.choice((0, 0, 1))
        one = Wants(keys=(dice.choice(self.gpus).key,))
        wants = dice.choice((Wants(), Wants(), one, Wants(count=len(self.gpus))))
        return wants, dice.choice((0, 0, 1))

    def join(self, client: Client) -> None:
        """A process begins."""
        self.pids += 1
        self.clients[client.name] = client
        self.processes[client.name] = Process(self.pids, 1)
        client.begin()

    def process_of(self, client: Client) -> Process:
        """The process as the kernel shows it."""
        return self.processes[client.name]

    def client_of(self, process: Process) -> Client | None:
        """The living program of that process."""
        for name, known in self.processes.items():
            if known == process and self.clients[name].alive:
                return self.clients[name]
        return None

    def kill(self, client: Client) -> None:
        """SIGKILL: its connections close, the kernel tells the guard, and somebody starts it again."""
        if not client.alive:
            return
        drain_s = self.world.dice.uniform(0.0, DRAIN_S) if self.is_guarded and client.in_body else 0.0
        for entry in client.in_body.values():
            for gpu in entry.gpus:
                self.host.occupied[gpu] = self.world.now + drain_s
        client.kill()
        self.world.note(NEMESIS, "killed", client.name, at_s=self.world.now + drain_s)
        self.store.hang_up(client.listens_as, silently=True)
        daemon = self.daemon
        if daemon is not None and daemon.alive:
            self.world.after(0.001, daemon.hear, daemon.client_died, client, self.processes[client.name])
        self.world.after(self.world.dice.uniform(0.2, 8.0), self._again, client)

    def _again(self, dead: Client) -> None:
        name, _, number = dead.name.partition("/")
        self.join(type(dead)(self, f"{name}/{int(number or 0) + 1}", dead.rounds))

    def fenced_since(self, at_s: float) -> bool:
        """Whether the guard has stood between the card and everybody else since then."""
        return self.daemon is not None and self.daemon.alive and self.store.unguarded_at[self.pool] < at_s
