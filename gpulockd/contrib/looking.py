"""A look at the pool without a session: how it is, how long a refused client should wait, how many GPUs there are."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

import anyio
import anyio.to_thread
import msgspec

from gpulockd.client.finding import find_store
from gpulockd.client.process import DEFAULT_POOL
from gpulockd.client.whoami import boot_id
from gpulockd.client.wishes import session_block
from gpulockd.errors import GpuLockError, StoreUnavailable
from gpulockd.ledger import answers as a
from gpulockd.ledger import verbs
from gpulockd.ledger.forecast import Expected, expected_starts
from gpulockd.ledger.keys import PoolKeys
from gpulockd.ledger.recorded import UnreadableError
from gpulockd.ledger.statistics import Statistics
from gpulockd.ledger.store import Store
from gpulockd.model import Job, Snapshot, TicketRecord, Wants

FRESH_S = 1.0
"""How long one look serves all who ask (in seconds)."""

LONGEST_PAGE = 256
NEWCOMER = "newcomer"


class View(msgspec.Struct, frozen=True, kw_only=True):
    """A pool at one moment, and the last holds of each task (ms), by which forecasts are made."""

    snapshot: Snapshot
    holds_ms: Mapping[str, tuple[int, ...]]

    def expected_start(self, wants: Wants, task: str) -> Expected | None:
        """Return when a request that comes now would begin; None where it cannot be said."""
        snapshot = self.snapshot
        if snapshot.queued > len(snapshot.queue):
            return None
        place = snapshot.queued + 1
        newcomer = TicketRecord(
            id=NEWCOMER,
            state="waiting",
            session="",
            wants=wants.text,
            priority=0,
            job=Job(task=task),
            process=None,
            waited_ms=0,
            place=place,
        )
        longer = msgspec.structs.replace(snapshot, queue=(*snapshot.queue, newcomer), queued=place)
        return expected_starts(longer, self.holds_ms)[NEWCOMER]


class Looks:
    """Looks at one pool, at most once a second."""

    def __init__(self, pool: str | None) -> None:
        """:param pool: the pool's name, None for the local one"""
        self._pool = pool
        self._view: View | None = None
        self._seen_at_s = float("-inf")

    def __repr__(self) -> str:
        return f"<Looks {self._pool or 'local pool'}>"

    async def view(self) -> View:
        """Return the pool as it was within the last second.

        :raises GpuLockError: if the store cannot be found or read
        """
        now_s = anyio.current_time()
        view = self._view
        if view is None or not 0 <= now_s - self._seen_at_s < FRESH_S:
            view = await self._look()
            self._view, self._seen_at_s = view, now_s
        return view

    async def _look(self) -> View:
        found = await anyio.to_thread.run_sync(find_store, self._pool)
        store = Store(found.url, deadline_s=session_block().rpc_deadline, name="gpulockd-look")
        try:
            keys = PoolKeys(found.pool or await store.pool_of_host(boot_id()) or DEFAULT_POOL)
            answer = await store.ask(verbs.snapshot(keys, length=LONGEST_PAGE))
            if not isinstance(answer, a.Pictured):
                raise StoreUnavailable(f"pool {keys.pool} has not been opened yet: start `gpulockd serve`")
            holds_ms: dict[str, tuple[int, ...]] = {}
            with suppress(UnreadableError):
                statistics = await Statistics.read(store.ask, keys, since_s=0)
                holds_ms = {name: task.recent_holds_ms for name, task in statistics.tasks.items()}
            return View(snapshot=answer.snapshot, holds_ms=holds_ms)
        finally:
            await store.aclose()

    async def expected_start(self, wants: Wants, task: str) -> tuple[int | None, Expected | None]:
        """Return the place that a request would have now, and when it would begin; None for what cannot be said."""
        try:
            view = await self.view()
        except GpuLockError:
            return None, None
        return view.snapshot.queued + 1, view.expected_start(wants, task)


def offered_gpus(pool: str | None = None) -> int | None:
    """Return how many GPUs the pool offers; None if it cannot be seen. For threads without an event loop."""
    try:
        view = anyio.run(Looks(pool).view)
    except GpuLockError:
        return None
    return sum(record.offered for record in view.snapshot.gpus)
