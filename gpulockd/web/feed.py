"""The pool's events for all streams of this daemon: one subscription, and the latest events in memory.

A reader asks for what came after the seq it has; what memory no longer has is read from the store's stream. So no
reader can slow another, and a lost connection leaves no gap.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import anyio
import anyio.abc
import msgspec
import structlog

from gpulockd.client.watching import seq_before
from gpulockd.errors import StoreUnavailable
from gpulockd.ledger.keys import PoolKeys
from gpulockd.ledger.store import Store
from gpulockd.ledger.subscription import Subscription

KEPT = 1024
PAGE = 128
PAUSE = 4.0
"""After a page of the past nobody reads another for so many times as long as it took: at most a fifth of the daemon's
time goes to history, however many ask for it."""

RETRY_S = 0.2
MOST_RETRY_S = 5.0

_log = structlog.get_logger(__name__)


class Happened(msgspec.Struct, frozen=True):
    """One event as it came: its number, its tag, its JSON, and how all readers are sent it."""

    seq: int
    kind: str
    json: bytes
    sse: bytes = b""


class _Head(msgspec.Struct):
    seq: int
    type: str = "event"


_head = msgspec.json.Decoder(_Head)


class Feed:
    """What happens in one pool."""

    def __init__(self, store: Store, keys: PoolKeys) -> None:
        """:param store: the daemon's command connection, for what memory does not have"""
        self._store = store
        self._keys = keys
        self._latest: deque[Happened] = deque(maxlen=KEPT)
        self._news = anyio.Event()
        self._listeners: list[Callable[[Happened], None]] = []
        self._past = anyio.Lock()
        self._past_from_s = 0.0
        self.last = 0
        self.readers = 0

    @contextlib.contextmanager
    def reader(self) -> Iterator[None]:
        """Count one more who follows the feed."""
        self.readers += 1
        try:
            yield
        finally:
            self.readers -= 1

    def tell(self, listener: Callable[[Happened], None]) -> None:
        """Call `listener` for each event from now on, once."""
        self._listeners.append(listener)

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Listen until cancelled; where the subscription breaks, read what was missed and go on."""
        task_status.started()
        pause_s = RETRY_S
        while True:
            try:
                subscription = await Subscription.open(
                    self._store.url, (self._keys.events_channel,), deadline_s=self._store.deadline_s, sharded=False
                )
                try:
                    await self._catch_up()
                    pause_s = RETRY_S
                    while True:
                        self._hear(await subscription.next())
                finally:
                    with anyio.CancelScope(shield=True):
                        await subscription.aclose()
            except StoreUnavailable as away:
                _log.debug("feed.interrupted", message=away.message)
                await anyio.sleep(pause_s)
                pause_s = min(2 * pause_s, MOST_RETRY_S)

    async def _catch_up(self) -> None:
        if not self.last:
            newest = await self._store.latest_events(self._keys.events_channel, 1)
            self.last = _read(newest[0]).seq if newest else 0
            self._news.set()  # who came before us waits for it
            self._news = anyio.Event()
            return
        while True:
            rows = await self._store.read_events(self._keys.events_channel, f"{self.last}-1", PAGE)
            for row in rows:
                self._take(row)
            if len(rows) < PAGE:
                return

    def _hear(self, json: bytes) -> None:
        """Take what the channel says; others may write to it too, and what is no event is passed over."""
        try:
            _read(json)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return
        self._take(json)

    def _take(self, json: bytes) -> None:
        event = _read(json)
        if event.seq > self.last:
            self.last = event.seq
            self._latest.append(event)
            for listener in self._listeners:
                listener(event)
            self._news.set()
            self._news = anyio.Event()

    async def changed(self, seen: int) -> None:
        """Return as soon as something has happened after `seen` (a seq)."""
        while self.last <= seen:
            await self._news.wait()

    async def after(self, seq: int) -> Sequence[Happened]:
        """Return up to a page of the events after `seq`; none if there is none or it was lost.

        :raises StoreUnavailable: if they must be read from the store and it is away
        """
        if self._latest and self._latest[0].seq <= seq + 1:
            return self._latest_after(seq)[:PAGE]
        # Numbers may have holes: what the stream no longer has is passed over.
        return await self._page(seq) or self._latest_after(seq)[:PAGE]

    def _latest_after(self, seq: int) -> list[Happened]:
        """What memory has after `seq`, from its end: most readers lack only the newest."""
        found: list[Happened] = []
        for event in reversed(self._latest):
            if event.seq <= seq:
                break
            found.append(event)
        found.reverse()
        return found

    async def _page(self, seq: int) -> Sequence[Happened]:
        async with self._past:
            await anyio.sleep(max(0.0, self._past_from_s - anyio.current_time()))
            began_s = anyio.current_time()
            rows = await self._store.read_events(self._keys.events_channel, f"{seq}-1", PAGE)
            page = [_read(row) for row in rows]
            now_s = anyio.current_time()
            self._past_from_s = now_s + PAUSE * (now_s - began_s)
            return page

    async def oldest(self) -> int:
        """Return the seq of the oldest event that there still is, 0 if there is none.

        :raises StoreUnavailable: if the store is away
        """
        rows = await self._store.read_events(self._keys.events_channel, "0", 1)
        return _read(rows[0]).seq if rows else 0

    async def newest(self) -> int:
        """Return the seq of the newest event, 0 if there is none.

        :raises StoreUnavailable: if the store is away
        """
        rows = await self._store.latest_events(self._keys.events_channel, 1)
        return _read(rows[0]).seq if rows else 0

    async def seq_before(self, since: str) -> int:
        """Return the seq after which the events of the last `since` ("10m", or seconds) begin.

        :raises ConfigError: if that is no duration
        :raises StoreUnavailable: if the store is away
        """
        return await seq_before(self._store, self._keys, since)


def _read(json: bytes) -> Happened:
    head = _head.decode(json)
    sse = b"id: %d\nevent: %s\ndata: %s\n\n" % (head.seq, head.type.encode(), json)
    return Happened(head.seq, head.type, json, sse)
