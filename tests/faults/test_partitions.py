"""Rows of the matrix about lines, on real ones: programs without a guard, each on a machine of its own."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import anyio
import pytest

from gpulockd.model import Snapshot
from gpulockd.settings import SessionBlock
from tests.faults.judge import Story, judged
from tests.faults.partitions import Fate, Network, started
from tests.faults.scene import asks_again, hands_over, holds, noted
from tests.pools import offer, simulated, snapshot
from tests.servers import Server
from tests.states import until
from tests.system.history import read_events
from tests.system.workers_started import Crew, Started

Record = Callable[[str, object], None]

CARDS = 4

CURT = SessionBlock(ttl=40.0, keepalive=0.5, rpc_deadline=0.5, margin=0.2, claim_window=0.6)
"""What was lost is soon asked again, and a machine that stands still costs nobody a session (in seconds)."""

FAR_APART = SessionBlock(ttl=10.0, keepalive=0.4, rpc_deadline=0.4, margin=6.0, claim_window=2.0)
"""From the end of belief to the end of the session are six seconds, in which a machine may stand still."""

AT_LEAST_S = 1.2
"""Two deadlines of a command: what was lost has been asked again by then (in seconds)."""

LOST_PERCENT = 30

BREAKING: tuple[dict[str, Fate], ...] = ({"requests": "reset"}, {"replies": "reset"})
"""One end hears of it; the other's connection stays half open."""


class Bare:
    """A pool without a guard, and programs before its gpus."""

    def __init__(self, store: Server, folder: Path, url: str, gpus: int, session: SessionBlock) -> None:
        self.store = store
        self.pool = f"t-{secrets.token_hex(6)}"
        offer(store, self.pool, simulated(gpus), session=session)
        folder.mkdir(exist_ok=True)
        self.crew = Crew(folder, url, self.pool, session)

    def __enter__(self) -> Bare:
        self.crew.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.crew.__exit__(None, None, None)

    @property
    def picture(self) -> Snapshot:
        """All of the pool now."""
        return snapshot(self.store, self.pool)

    def story(self) -> Story:
        """All that is known."""
        return Story(notes=self.crew.notes(), told=read_events(self.store, self.pool))


@pytest.fixture(scope="module")
def crossing(machines: Network, far_store: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bare]:
    """A pool, with a program on the first machine and two on the second and third."""
    folder = tmp_path_factory.mktemp("crossing")
    with Bare(far_store, folder, machines.url, CARDS, CURT) as bare:
        for host, name in zip(machines.hosts, ("near", "far", "third"), strict=True):
            started(bare.crew, host, name)
        asyncio.run(_each_has_been_served(bare))
        yield bare


async def _each_has_been_served(bare: Bare) -> None:
    """So that no first answer of the store is waited for later, with less patience."""
    for worker in bare.crew.workers.values():
        await noted(worker, "ready")
        await holds(worker, "warm")
        worker.tell("leave", "warm")
        await noted(worker, "left", "warm")


async def test_whoever_is_cut_off_is_out_before_another_is_in(
    network: Network, far_store: Server, tmp_path: Path, record_property: Record
) -> None:
    """Without a guard belief ends before the session does, also after a line that was bad before it was cut."""
    cut, clear, _ = network.hosts
    with Bare(far_store, tmp_path, network.url, 1, FAR_APART) as bare:
        (near,), (far,) = started(bare.crew, cut, "near"), started(bare.crew, clear, "far")
        await holds(near)
        far.tell("ask", "0")
        again = asks_again(far, "0")
        await until(lambda: again() or bare.picture.queued == 1)
        cut.line(requests=LOST_PERCENT, replies=LOST_PERCENT)
        await anyio.sleep(AT_LEAST_S)
        cut.cut_off()
        cut_at_s = time.monotonic()
        began, lost = await noted(far, "use"), await noted(near, "lost")
        assert "cut off" in lost.text
        assert lost.at_s < began.at_s
        cut.restored()
        near.tell("ask", "again")
        await hands_over(far, near, "0", "again")
        near.tell("leave", "again")
        await until(lambda: not bare.picture.leases)
        assert not judged(bare.story())
    after_s = (lost.at_s - cut_at_s, began.at_s - cut_at_s)
    record_property("measured", "out {:.1f} s after the cut, the next in after {:.1f} s".format(*after_s))


async def test_lost_replies_take_one_place_and_one_token(crossing: Bare, network: Network) -> None:
    """The store has done what it was asked, and nobody was told so: of request, wait and release."""
    cut, clear, _ = network.hosts
    near, far = crossing.crew.workers["near"], crossing.crew.workers["far"]
    before = crossing.picture.counters
    cut.line(replies="lost")
    near.tell("ask", "lost", gpus=[0])
    await until(lambda: crossing.picture.leases)
    token = crossing.picture.leases[0].token
    await anyio.sleep(AT_LEAST_S)
    assert not near.find("enter", "lost")
    cut.restored()
    assert (await noted(near, "use", "lost")).token == token
    clear.line(replies="lost")
    far.tell("ask", "lost", gpus=[0])
    await until(lambda: crossing.picture.queued)
    await anyio.sleep(AT_LEAST_S)
    clear.restored()
    assert crossing.picture.queued == 1
    cut.line(replies="lost")
    await hands_over(near, far, "lost", "lost")
    await anyio.sleep(AT_LEAST_S)
    cut.restored()
    await noted(near, "left", "lost")
    far.tell("leave", "lost")
    await until(lambda: not crossing.picture.leases)
    after = crossing.picture.counters
    assert [after[name] - before.get(name, 0) for name in ("lock_acquired", "lock_released")] == [2, 2]
    assert not judged(crossing.story())


async def test_lost_requests_take_nothing_and_keep_nothing_from_others(crossing: Bare, network: Network) -> None:
    """Doorbells come through to who cannot answer them: its claim goes to the next one, and its turn is not lost."""
    cut, _, _ = network.hosts
    near, far, third = (crossing.crew.workers[name] for name in ("near", "far", "third"))
    before = crossing.picture.counters
    cut.line(requests="lost")
    near.tell("ask", "unheard", gpus=[1])
    await anyio.sleep(AT_LEAST_S)
    picture = crossing.picture
    assert (picture.leases, picture.queued) == ((), 0)
    cut.restored()
    await noted(near, "use", "unheard")
    near.tell("leave", "unheard")
    await noted(near, "left", "unheard")
    tokens = [await holds(far, "inway", gpus=[0])]
    near.tell("ask", "away", gpus=[0])
    await until(lambda: crossing.picture.queued == 1)
    third.tell("ask", "next", gpus=[0])
    await until(lambda: crossing.picture.queued == 2)
    cut.line(requests="lost")
    await hands_over(far, third, "inway", "next")
    assert not near.find("enter", "away")
    cut.restored()
    await hands_over(third, near, "next", "away")
    tokens += [note.token for note in (third.find("use", "next"), near.find("use", "away")) if note]
    assert sorted(tokens) == tokens
    near.tell("leave", "away")
    await until(lambda: not crossing.picture.leases)
    after = crossing.picture.counters
    assert after["lock_acquired"] - before.get("lock_acquired", 0) == 4
    assert after["claim_lapsed"] > before.get("claim_lapsed", 0)
    assert not judged(crossing.story())


class Turns:
    """Two programs take turns on every gpu, with a task for each gpu in either, until `over` is set."""

    def __init__(self, bare: Bare, name: str) -> None:
        self.workers = [bare.crew.workers["near"], bare.crew.workers["far"]]
        self.name = name
        self.taken = dict.fromkeys((worker.name for worker in self.workers), 0)
        self.over = False

    async def take(self, worker: Started, gpu: int) -> None:
        """Ask, be on the gpu that was asked for, leave, again and again."""
        number = 0
        while not self.over:
            key, number = f"{self.name}/{gpu}/{number}", number + 1
            worker.tell("ask", key, gpus=[gpu])
            assert (await noted(worker, "use", key, 90)).gpus == (f"gpu_lock:{gpu}",)
            worker.tell("leave", key)
            await noted(worker, "left", key, 90)
            self.taken[worker.name] += 1

    @contextlib.asynccontextmanager
    async def meanwhile(self) -> AsyncIterator[None]:
        """For the time of the block."""
        async with anyio.create_task_group() as tasks:
            for worker in self.workers:
                for gpu in range(CARDS):
                    tasks.start_soon(self.take, worker, gpu)
            try:
                yield
            finally:
                self.over = True


async def test_resets_and_half_open_connections_cross_no_replies(
    crossing: Bare, network: Network, record_property: Record
) -> None:
    """Tasks share a connection: a reply that goes to the wrong one would put it on a gpu that it has not asked for."""
    cut, turns, resets = network.hosts[0], Turns(crossing, "reset"), 0
    async with turns.meanwhile():
        for _ in range(4):
            for fates in BREAKING:
                cut.line(**fates)
                await anyio.sleep(0.1)
                cut.restored()
                await anyio.sleep(0.2)
            cut.breaks()
            await anyio.sleep(0.2)
            cut.cut_off()
            cut.breaks()  # nobody hears of it: the store believes in connections that are gone
            cut.restored()
            await anyio.sleep(0.2)
            resets += 4
        served = dict(turns.taken)
        await until(lambda: all(turns.taken[name] > served[name] for name in served), 60)
    await until(lambda: not crossing.picture.leases)
    assert not judged(crossing.story())
    record_property("measured", f"{resets} breaks among {sum(turns.taken.values())} grants")


async def test_a_line_that_loses_a_third_is_slower_and_never_wrong(
    crossing: Bare, network: Network, record_property: Record
) -> None:
    """What is lost is sent again by the kernels, or asked again by us: late, and never twice."""
    cut, turns = network.hosts[0], Turns(crossing, "thin")
    cut.line(requests=LOST_PERCENT, replies=LOST_PERCENT)
    began_s = time.monotonic()
    async with turns.meanwhile():
        await until(lambda: turns.taken["near"] >= 5 * CARDS, 90)
    took_s = time.monotonic() - began_s
    cut.restored()
    await until(lambda: not crossing.picture.leases, 60)
    assert not judged(crossing.story())
    words = f"{turns.taken['near']} turns over the bad line and {turns.taken['far']} beside it in {took_s:.0f} s"
    record_property("measured", words)
