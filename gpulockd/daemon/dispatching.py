"""Telling of alerts: takes what is due from the outbox in the store, one worker a channel, and marks what was told.

Its law: a notice leaves the outbox when its channel has taken it, not before; so a daemon that is killed tells what is
left when it is back. What was sent and could not be marked any more comes again with the same ids.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import anyio
import anyio.abc
import msgspec
import structlog

from gpulockd.alerting.messages import Message, Notice, message_of, trial_notice
from gpulockd.clock import wall_ms
from gpulockd.daemon.channels.telling import Channel
from gpulockd.errors import GpuLockError, StoreUnavailable
from gpulockd.ledger.alerts import Claimed, Due, alert_claim, alert_event, alert_sent
from gpulockd.ledger.keys import PoolKeys
from gpulockd.ledger.recorded import Ask

LOOK_S = 300.0
RETRY_S = 2.0
MOST_RETRY_S = 300.0
CLAIM_MARGIN_S = 10.0
GOODBYE_S = 3.0
"""How long a message that is under way may take when the daemon stops (in seconds)."""

AT_ONCE = 2000
EVENT = "event"

_log = structlog.get_logger(__name__)


class Known(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is known of a channel: when it last took a message and when not (wall clock, ms), and why not."""

    kind: str
    ok_ms: int | None = None
    failed_ms: int | None = None
    error: str = ""


REMOVED = msgspec.json.encode(Known(kind="removed"))
"""What stands in the store for a channel that the configuration has no more."""


class StreamChannel:
    """The pool's own stream of events, told like any channel."""

    name = EVENT
    kind = EVENT
    timeout_s = 10.0
    apart_s = 0.0

    def __init__(self, ask: Ask) -> None:
        self._ask = ask

    def takes(self, notice: Notice) -> bool:
        """What was raised and what is over."""
        return notice.kind != "escalated"

    async def send(self, message: Message) -> None:
        """Tell of each notice in the stream of its pool. A pool that is gone has no stream."""
        for notice in message.notices:
            await self._ask(
                alert_event(
                    PoolKeys(notice.pool),
                    kind="alert_resolved" if notice.kind == "resolved" else "alert_raised",
                    notice=notice.id,
                    rule=notice.rule,
                    level=notice.level,
                    message=notice.message,
                    detail=notice.detail,
                )
            )


class Dispatcher:
    """The channels of one daemon, and what is known of them."""

    def __init__(self, pool: str, ask: Ask, *, give_up_s: Callable[[], float]) -> None:
        """:param give_up_s: how long a notice is tried (in seconds)"""
        self.known: dict[str, Known] = {}
        self._gone: tuple[str, ...] = ()
        self._pool = pool
        self._ask = ask
        self._give_up_s = give_up_s
        self._claim = secrets.token_hex(8)
        self._channels: tuple[Channel, ...] = (StreamChannel(ask),)
        self._changed = anyio.Event()
        self._news = anyio.Event()

    def __repr__(self) -> str:
        return f"<Dispatcher {self._pool} {', '.join(channel.name for channel in self._channels)}>"

    def use(self, channels: Sequence[Channel]) -> None:
        """Tell over these channels from now on; what is under way is ended first."""
        self._channels = (StreamChannel(self._ask), *channels)
        self._changed.set()

    @property
    def names(self) -> frozenset[str]:
        """The names of all channels."""
        return frozenset(channel.name for channel in self._channels)

    @property
    def kinds(self) -> dict[str, str]:
        """The kinds of the channels that tell people, by their names; the stream of events is none of them."""
        return {channel.name: channel.kind for channel in self._channels if channel.name != EVENT}

    async def forget(self, name: str) -> None:
        """Know nothing of a channel any more, here and in the store.

        :raises StoreUnavailable: if the store is away
        """
        self.known.pop(name, None)
        claim = self._claim
        await self._ask(alert_sent(by=self._pool, channel=name, claim=claim, how="told", due=(), known=REMOVED))

    def channels_for(self, notice: Notice, *, people: bool) -> tuple[str, ...]:
        """Return the names of the channels that are to tell of a notice.

        :param people: False: it stands in the stream, and nobody is to be woken
        """
        return tuple(c.name for c in self._channels if (people or c.name == EVENT) and c.takes(notice))

    def tell_for(self, gone: tuple[str, ...]) -> None:
        """Tell also what the daemons of these pools had to tell: they are gone."""
        if gone != self._gone:
            self._gone = gone
            self.wake()

    def wake(self) -> None:
        """There is something to tell."""
        self._news.set()
        self._news = anyio.Event()

    def answered(self) -> bool:
        """Whether a channel has taken a message: one of those that users name, if there is any; else the log."""
        named = [channel.name for channel in self._channels if channel.kind not in (EVENT, "log")]
        asked = named or [channel.name for channel in self._channels if channel.kind == "log"]
        found = [self.known[name] for name in asked if name in self.known]
        return any(one.ok_ms is not None and not one.error for one in found)

    async def test(self, name: str | None = None) -> dict[str, Known]:
        """Send a test message over one channel (None: over all), and return what is known of each now.

        :raises KeyError: if there is no such channel
        """
        chosen = [c for c in self._channels if c.kind != EVENT and name in (None, c.name)]
        if name is not None and not chosen:
            raise KeyError(name)
        async with anyio.create_task_group() as tasks:
            for channel in chosen:
                tasks.start_soon(self._test, channel)
        return {channel.name: self.known[channel.name] for channel in chosen}

    async def _test(self, channel: Channel) -> None:
        await self._send(channel, message_of([trial_notice(self._pool, wall_ms())]))
        with suppress(StoreUnavailable):
            await self._mark(channel, "told", ())

    async def work(self) -> None:
        """Tell until cancelled."""
        while True:
            self._changed = anyio.Event()
            async with anyio.create_task_group() as tasks:
                for channel in self._channels:
                    tasks.start_soon(self._serve, channel)
                await self._changed.wait()
                tasks.cancel_scope.cancel()

    async def _serve(self, channel: Channel) -> None:
        pause_s = RETRY_S
        while True:
            news = self._news
            try:
                wait_s = await self._tell(channel, pause_s)
            except GpuLockError as trouble:
                if not isinstance(trouble, StoreUnavailable):
                    _log.error("alerts.outbox", channel=channel.name, message=trouble.message)
                wait_s = None
            if wait_s is None:
                await anyio.sleep(pause_s)
                pause_s = min(2 * pause_s, MOST_RETRY_S)
                continue
            pause_s = RETRY_S
            with anyio.move_on_after(min(wait_s, LOOK_S)):
                await news.wait()

    async def _tell(self, channel: Channel, rest_s: float) -> float | None:
        """Tell what is due. Returns how long to wait for more (in seconds), None if the channel has failed."""
        claimed = await self._ask(
            alert_claim(
                by=self._pool,
                channel=channel.name,
                claim=self._claim,
                claim_ms=round((channel.timeout_s + CLAIM_MARGIN_S) * 1000),
                apart_ms=round(channel.apart_s * 1000),
                most=AT_ONCE,
                gone=self._gone,
            )
        )
        if not isinstance(claimed, Claimed):
            return LOOK_S if claimed.wait_s is None else claimed.wait_s
        old, young = self._sorted(claimed.due)
        if old:
            _log.error("alerts.undelivered", channel=channel.name, count=len(old), message="given up after long trying")
            await self._mark(channel, "dropped", old)
        if not young:
            return 0.0
        told = await self._deliver(channel, young, rest_ms=round(rest_s * 1000))
        return 0.0 if told else None

    async def _deliver(self, channel: Channel, young: Sequence[tuple[Due, Notice]], *, rest_ms: int) -> bool:
        """Send what was claimed and mark it. When the daemon stops, what is under way has a moment to arrive."""
        over, kept, told = anyio.Event(), anyio.CancelScope(shield=True), False
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_cut, kept, over)
            with kept:
                told = await self._send(channel, message_of([notice for _, notice in young]))
                due = [one for one, _ in young]
                await self._mark(channel, "told" if told else "failed", due, rest_ms=rest_ms)
            over.set()
        return told

    async def _send(self, channel: Channel, message: Message) -> bool:
        """Send one message in its time, and know of the channel what came of it."""
        before = self.known.get(channel.name, Known(kind=channel.kind))
        why = ""
        try:
            with anyio.fail_after(channel.timeout_s):
                await channel.send(message)
        except TimeoutError:
            why = f"no answer within {channel.timeout_s:g} s"
        except GpuLockError as trouble:
            why = trouble.message
        now_ms = wall_ms()
        if why:
            self.known[channel.name] = msgspec.structs.replace(before, failed_ms=now_ms, error=why)
            if why != before.error:
                _log.error("alerts.channel_failed", channel=channel.name, kind=channel.kind, message=why)
            return False
        if before.error:
            _log.info("alerts.channel_back", channel=channel.name, kind=channel.kind, message="it takes messages again")
        self.known[channel.name] = msgspec.structs.replace(before, ok_ms=now_ms, error="")
        return True

    async def _mark(self, channel: Channel, how: Any, due: Sequence[Due], *, rest_ms: int = 0) -> None:
        known = msgspec.json.encode(self.known.get(channel.name, Known(kind=channel.kind)))
        await self._ask(
            alert_sent(
                by=self._pool, channel=channel.name, claim=self._claim, how=how, due=due, known=known, rest_ms=rest_ms
            )
        )

    def _sorted(self, due: Sequence[Due]) -> tuple[list[Due], list[tuple[Due, Notice]]]:
        """Return what is too old to be told or cannot be read, and the rest."""
        old: list[Due] = []
        young: list[tuple[Due, Notice]] = []
        oldest_ms = wall_ms() - self._give_up_s() * 1000
        for one in due:
            try:
                notice = msgspec.json.decode(one.json, type=Notice)
            except msgspec.MsgspecError:
                old.append(one)  # another version's
                continue
            if notice.at_ms < oldest_ms:
                old.append(one)
            else:
                young.append((one, notice))
        return old, young


async def _cut(kept: anyio.CancelScope, over: anyio.Event) -> None:
    """When this is cancelled, wait a moment for what is `kept` from it, and then end that."""
    try:
        await over.wait()
    except anyio.get_cancelled_exc_class():
        with anyio.move_on_after(GOODBYE_S, shield=True):
            await over.wait()
        if not over.is_set():
            kept.cancel()
        raise
