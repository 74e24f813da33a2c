"""Many of everything on one Valkey: waiters before one gpu, pools of gpus, requests that are cancelled again.

What is measured is the time of the server for an operation: it must not grow with what stands around, and nothing may
be left when all have gone. Hosts and programs are simulated by the verbs that they would send.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from bench.ground import Ground, script_words
from bench.tables import Aim, percentile, show_aims, table
from gpulockd.client.whoami import this_process
from gpulockd.ledger import verbs
from gpulockd.ledger.keys import PoolKeys
from gpulockd.ledger.subscription import Subscription
from gpulockd.ledger.verbs import Call, Terms
from gpulockd.model import Gpu, Job, Wants
from gpulockd.settings import QueueBlock, SessionBlock, SettleBlock
from tests.servers import keys_left

FEW, MANY = 10, 10_000
HAND_OFFS = 500
POOLS, GPUS, SESSIONS_EACH = 1_000, 8, 10
FEW_POOLS = 30
"""Few enough, and so many that no pool is asked twice in a millisecond of its clock."""

VISITS = 10_000
CHURN = 50_000
BATCH = 200
TERMS = Terms.of(SessionBlock(ttl=3600.0), QueueBlock(), SettleBlock())
"""A session outlives the measurement: who is measured is not who keeps 10,000 programs alive."""

FLAT = 2.0
"""How many times as long an operation may take among many as among few."""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """An operation among few and among many (in µs of the server's CPU each)."""

    what: str
    among: str
    few_us: float
    many_us: float


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured."""

    rows: list[Row]
    keys_left: list[str]
    store_mib: float
    aims: list[Aim]


class Crowded:
    """A pool of simulated gpus on the ground's server, and the sessions in it."""

    def __init__(self, ground: Ground, name: str, gpus: int) -> None:
        self.ground = ground
        self.name = name
        self.keys = PoolKeys(name)
        self.gpus = gpus

    def open(self, sessions: int) -> None:
        """A host offers its gpus, and so many programs begin."""
        process, host = this_process(), f"{self.name}-host"
        cards = [
            Gpu(key=f"gpu_lock:{n}", index=n, uuid=f"{self.name}-{n}", name="simulated", memory_mib=24_576)
            for n in range(self.gpus)
        ]
        run_id = str(self.ground.control.info("server")["run_id"])
        ids = [host, *(self.session(n) for n in range(sessions))]
        calls: list[Call[Any]] = [
            verbs.open(self.keys, session=id, process=process, terms=TERMS, known_pool=False) for id in ids
        ]
        calls.append(
            verbs.offer(
                self.keys, session=host, process=process, machine=self.name, terms=TERMS, defaults={}, gpus=cards,
                complete_run_id=run_id, fresh=True, known_pool=False,
            )
        )  # fmt: skip
        assert send(self.ground, calls)[-1][0] == b"offered"

    def session(self, number: int) -> str:
        """The id of a program's session."""
        return f"{self.name}-s{number}"

    def request(self, session: str, id: str, wants: Wants) -> Call[Any]:
        """A program asks."""
        return verbs.request(
            self.keys, session=session, id=id, wants=wants, priority=0, wait=True, job=Job(task="scale"),
            lock_timeout_ms=3_600_000, asked_ms=None,
        )  # fmt: skip

    def end(self, session: str, id: str) -> Call[Any]:
        """A program releases, or gives up."""
        return verbs.end(self.keys, session=session, id=id, token=None, reason="released")

    def close(self, sessions: int) -> None:
        """All programs say goodbye, and the host too."""
        ids = [*(self.session(n) for n in range(sessions)), f"{self.name}-host"]
        send(
            self.ground,
            [verbs.end(self.keys, session="", id=id, token=None, reason="released", what="session") for id in ids],
        )


def send(ground: Ground, calls: Sequence[Call[Any]]) -> list[Any]:
    """Send calls, some at a time, and return their answers."""
    answers: list[Any] = []
    for at in range(0, len(calls), BATCH):
        with ground.control.pipeline(transaction=False) as pipe:
            for call in calls[at : at + BATCH]:
                pipe.execute_command("FCALL", call.script.function, *script_words(call))
            answers += pipe.execute()
    return answers


def cost_us(ground: Ground, calls: Sequence[Call[Any]]) -> float:
    """The server's CPU time for each of these calls (in µs): the quiet quarter, where neighbours disturb it least."""
    costs = []
    for at in range(0, len(calls), BATCH):
        some = calls[at : at + BATCH]
        before = ground.cpu_ns()
        send(ground, some)
        costs.append((ground.cpu_ns() - before) / 1000 / len(some))
    return percentile(costs, 0.25)


class Listening:
    """Somebody who hears the doorbells of a session, so that its claims stand."""

    def __init__(self, ground: Ground, channel: str) -> None:
        self._ground, self._channel = ground, channel
        self._begun, self._over = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._listen()), daemon=True)

    def __enter__(self) -> None:
        self._thread.start()
        self._begun.wait()

    def __exit__(self, *about: object) -> None:
        self._over.set()
        self._thread.join()

    async def _listen(self) -> None:
        doorbell = await Subscription.open(self._ground.url, (self._channel,), deadline_s=5.0)
        self._begun.set()
        await asyncio.to_thread(self._over.wait)
        await doorbell.aclose()


def hand_off_us(ground: Ground, waiters: int, hand_offs: int) -> float:
    """A release, and the confirm of the next one, with so many before the gpu (in µs of the server)."""
    pool = Crowded(ground, f"scale-waiters-{waiters}", 2)
    pool.open(1)
    session, wants = pool.session(0), Wants(keys=("gpu_lock:0",))
    with Listening(ground, pool.keys.session_channel(session)):
        send(ground, [pool.request(session, f"t{n}", wants) for n in range(waiters + 1)])
        calls: list[Call[Any]] = []
        for n in range(hand_offs):
            # Who has released asks again, at the end of the queue, so that it stays as long as it is.
            calls += [pool.end(session, f"t{n}"), pool.request(session, f"t{n + 1}", wants)]
            calls.append(pool.request(session, f"t{n + waiters + 1}", wants))
        found = 3 * cost_us(ground, calls)
        holders = ground.control.zcard(f"gpulockd:{{{pool.name}}}:queue")
        assert holders == waiters, f"{holders} wait, not {waiters}"
    pool.close(1)
    return found


def in_pools_us(ground: Ground, pools: Sequence[Crowded], round: str) -> tuple[float, float]:
    """A keepalive, and a lease taken and given back, by turns in each of these pools (in µs of the server)."""
    visits = [(pools[n % len(pools)], n // len(pools) % SESSIONS_EACH) for n in range(VISITS)]
    alive = [verbs.keepalive(pool.keys, session=pool.session(n), echo=1, leases=()) for pool, n in visits]
    taken = [pool.request(pool.session(n), f"{round}-{at}", Wants()) for at, (pool, n) in enumerate(visits)]
    given = [pool.end(pool.session(n), f"{round}-{at}") for at, (pool, n) in enumerate(visits)]
    turns = [call for both in zip(taken, given, strict=True) for call in both]
    return cost_us(ground, alive), 2 * cost_us(ground, turns)


def churn_us(ground: Ground, count: int) -> tuple[float, float, list[str]]:
    """Requests that are cancelled again while somebody holds: the first tenth, the last, and the keys left."""
    pool = Crowded(ground, "scale-churn", 1)
    pool.open(1)
    session, wants = pool.session(0), Wants(keys=("gpu_lock:0",))
    send(ground, [pool.request(session, "holder", wants)])
    tenths = [range(at, at + count // 10) for at in range(0, count, count // 10)]
    costs = []
    for tenth in tenths:
        pairs: Iterable[list[Call[Any]]] = (
            [pool.request(session, f"c{n}", wants), pool.end(session, f"c{n}")] for n in tenth
        )
        costs.append(2 * cost_us(ground, [call for pair in pairs for call in pair]))
    send(ground, [pool.end(session, "holder")])
    pool.close(1)
    return costs[0], costs[-1], keys_left(ground.server, pool.name)


def measure(ground: Ground, *, quick: bool) -> Result:
    """Measure; `quick` is a tenth of everything."""
    share = 10 if quick else 1
    many, pools, churn = MANY // share, POOLS // share, CHURN // share
    began_s = time.monotonic()
    rows = [
        Row(
            what="hand-off: release, confirm, ask again",
            among=f"{FEW} and {many:,} waiters for the gpu",
            few_us=hand_off_us(ground, FEW, HAND_OFFS),
            many_us=hand_off_us(ground, many, HAND_OFFS),
        )
    ]
    all_pools = [Crowded(ground, f"scale-pool-{n}", GPUS) for n in range(pools)]
    for pool in all_pools[:FEW_POOLS]:
        pool.open(SESSIONS_EACH)
    in_pools_us(ground, all_pools[:FEW_POOLS], "first")  # every program has spoken before it is measured
    few = in_pools_us(ground, all_pools[:FEW_POOLS], "few")
    for pool in all_pools[FEW_POOLS:]:
        pool.open(SESSIONS_EACH)
    in_pools_us(ground, all_pools, "second")
    lots = in_pools_us(ground, all_pools, "many")
    store_mib = ground.control.info("memory")["used_memory"] / (1 << 20)
    among = f"{FEW_POOLS} and {pools:,} pools of {GPUS} gpus and {SESSIONS_EACH} programs"
    rows.append(Row(what="keepalive", among=among, few_us=few[0], many_us=lots[0]))
    rows.append(Row(what="lease taken and given back", among=among, few_us=few[1], many_us=lots[1]))
    left = []
    for pool in all_pools:
        pool.close(SESSIONS_EACH)
        left += keys_left(ground.server, pool.name) if pool is all_pools[-1] or pool is all_pools[0] else []
    first, last, churned = churn_us(ground, churn)
    rows.append(Row(what="request and cancel", among=f"first and last tenth of {churn:,}", few_us=first, many_us=last))
    aims = [
        Aim(text=f"{row.what}: times as long among many", value=row.many_us / row.few_us, limit=FLAT) for row in rows
    ]
    aims.append(Aim(text="keys left when all have gone", value=len(left) + len(churned), limit=0))
    aims.append(Aim(text="the whole measurement, s", value=time.monotonic() - began_s, limit=900))
    return Result(rows=rows, keys_left=[*left, *churned], store_mib=round(store_mib, 1), aims=aims)


def show(result: Result) -> str:
    """The numbers as Markdown."""
    rows = [("operation (server CPU, µs)", "among", "few", "many")]
    rows += [(row.what, row.among, f"{row.few_us:.0f}", f"{row.many_us:.0f}") for row in result.rows]
    told = f"the store had {result.store_mib:g} MiB with all pools in it"
    return "\n\n".join([table(rows), told, show_aims(result.aims), *result.keys_left]) + "\n"
