"""The pool's events for all streams of this daemon, as the news tell them: the latest are in memory.

A reader asks for what came after the seq it has; what memory no longer has is read from the store's stream. So no
reader can slow another, and a lost connection leaves no gap. What comes gathers for a moment before those who wait for
it are woken, so that a hand-off does not compete with the telling of it; who asks has all that has come.
"""

from __future__ import annotations

import asyncio
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

KEPT = 1024
GATHER_S = 0.01
"""How long events gather before those who wait are woken (in seconds)."""

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
        self._heard: deque[bytes] = deque()
        self._gathering: asyncio.TimerHandle | None = None
        self._whole = False
        self._broken = anyio.Event()
        self._news = anyio.Event()
        self._listeners: list[Callable[[Happened], None]] = []
        self._past = anyio.Lock()
        self._past_from_s = 0.0
        self._last = 0
        self.readers = 0

    @property
    def last(self) -> int:
        """The seq of the last event that has come; 0 while nothing is known."""
        self._take_heard()
        return self._last

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
        """Read what was missed, after each break, until cancelled."""
        task_status.started()
        pause_s = RETRY_S
        while True:
            await self._broken.wait()
            self._broken = anyio.Event()
            try:
                await self._catch_up()
                pause_s = RETRY_S
            except StoreUnavailable as away:
                _log.debug("feed.interrupted", message=away.message)
                self._broken.set()
                await anyio.sleep(pause_s)
                pause_s = min(2 * pause_s, MOST_RETRY_S)
            if not self._broken.is_set():
                self._whole = True
                self._take_heard()

    def missed(self) -> None:
        """The subscription stands, anew or for the first time: what was before has not been heard."""
        self._whole = False
        self._broken.set()

    def hear(self, json: bytes) -> None:
        """Take what the channel says."""
        self._heard.append(json)
        if self._gathering is None:
            self._gathering = asyncio.get_running_loop().call_later(GATHER_S, self._take_heard)

    def _take_heard(self) -> None:
        """Take what was heard, in order: not before that which was missed."""
        if self._gathering is not None:
            self._gathering.cancel()
            self._gathering = None
        if not self._whole or not self._heard:
            return
        before = self._last
        while self._heard:
            self._take(self._heard.popleft())
        if self._last > before:
            self._wake()

    def _wake(self) -> None:
        self._news.set()
        self._news = anyio.Event()

    async def _catch_up(self) -> None:
        if not self._last:
            newest = await self._store.latest_events(self._keys.events_channel, 1)
            event = _read(newest[0]) if newest else None
            self._last = event.seq if event is not None else 0
            self._wake()  # who came before us waits for it
            return
        while True:
            before = self._last
            rows = await self._store.read_events(self._keys.events_channel, f"{before}-1", PAGE)
            for row in rows:
                self._take(row)
            self._wake()
            if len(rows) < PAGE or self._last == before:
                return

    def _take(self, json: bytes) -> None:
        """Others may write to the channel too, and what is no event is passed over."""
        try:
            event = _read(json)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return
        if event.seq > self._last:
            self._last = event.seq
            self._latest.append(event)
            for listener in self._listeners:
                listener(event)

    async def changed(self, seen: int) -> None:
        """Return as soon as something has happened after `seen` (a seq)."""
        while self.last <= seen:
            await self._news.wait()

    async def after(self, seq: int) -> Sequence[Happened]:
        """Return up to a page of the events after `seq`; none if there is none or it was lost.

        :raises StoreUnavailable: if they must be read from the store and it is away
        """
        self._take_heard()
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
