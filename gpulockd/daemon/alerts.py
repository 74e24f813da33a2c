"""Alerts: judges the rules on what is true, writes what becomes of them, and has people told.

Its law: state stands in the store before anybody is told, so a daemon that is killed at any moment goes on where it
was. It watches the next daemons of the fleet too, since one that is gone cannot say so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import anyio
import anyio.abc
import msgspec
import structlog

from gpulockd.alerting.facts import Seen
from gpulockd.alerting.judging import Alert, Book, Patience, Step, book_after, due_in_s, judge
from gpulockd.alerting.messages import notice_of
from gpulockd.alerting.records import book_of, line_of
from gpulockd.alerting.rules import Rule, rules_of
from gpulockd.daemon.channels.made import usable
from gpulockd.daemon.dispatching import REMOVED, Dispatcher, Known
from gpulockd.daemon.factfinding import FactFinder, Sees
from gpulockd.daemon.judging import Reading
from gpulockd.daemon.neighbouring import WATCHED, DaemonMark, around, marks_of
from gpulockd.errors import ConfigError, GpuLockError, StoreUnavailable
from gpulockd.ledger.alerts import AT_ONCE, Change, Looked, Stored, alert_look, alert_read, alert_write, daemon_mark
from gpulockd.ledger.keys import PoolKeys
from gpulockd.ledger.recorded import Ask
from gpulockd.settings import AlertsBlock, Settings

PAUSE_S = 2.0
"""Nothing is judged more often (in seconds); the recorder needs one second to count what was heard."""

RETRY_S = 1.0
MOST_RETRY_S = 30.0
GOODBYE_S = 2.0

CALM = frozenset(
    {"lock_requested", "lock_acquired", "lock_released", "session_opened", "alert_raised", "alert_resolved", "away"}
)
"""News that makes no alert by itself; the rest is judged soon after it happened."""

_log = structlog.get_logger(__name__)


class Alerts:
    """The alerts of one pool, and those of the neighbours that this daemon watches.

    :param ask: sends a script to any pool, without looking at its epoch
    :param settings: those in force at this moment
    :param session: the id of this daemon's session
    :param monitor: whether the monitor does its work
    :param readings: what is known of the runs, by lease id
    :param evidence: what is seen of leases' runs and cards; None: only the readings say
    """

    def __init__(
        self,
        keys: PoolKeys,
        ask: Ask,
        *,
        settings: Callable[[], Settings],
        session: Callable[[], str],
        host: str,
        monitor: Callable[[], bool],
        readings: Callable[[], Mapping[str, Reading]],
        evidence: Sees | None = None,
    ) -> None:
        self._keys = keys
        self._ask = ask
        self._settings = settings
        self._session = session
        self._host = host
        self._finder = FactFinder(keys, ask, monitor=monitor, readings=readings, evidence=evidence)
        self._marked: DaemonMark | None = None
        self._marking = anyio.Lock()
        self._signed_off = False
        self._due_s: float | None = None
        self._news = anyio.Event()
        self._used = settings()
        self._rules: tuple[Rule, ...] = rules_of(AlertsBlock())
        self._take_rules(self._used)
        self.dispatcher = Dispatcher(keys.pool, ask, give_up_s=lambda: self._used.notify.give_up)
        self.dispatcher.use(usable(self._used.notify))

    def __repr__(self) -> str:
        return f"<Alerts {self._keys.pool} {len(self._rules)} rules>"

    def hear(self, kind: str) -> None:
        """Take the kind of an event."""
        if kind not in CALM:
            self._news.set()

    def reconsider(self) -> None:
        """Judge soon: the settings have changed."""
        self._news.set()

    def answered(self) -> bool:
        """Whether an alert channel has taken a message."""
        return self.dispatcher.answered()

    def channels(self) -> Mapping[str, str]:
        """The channels that tell people, by name with their kinds."""
        return self.dispatcher.kinds

    async def test_channel(self, name: str | None = None) -> dict[str, Known]:
        """Send a test message over one channel, or over all.

        :raises KeyError: if there is no such channel
        """
        self._take_settings()
        return await self.dispatcher.test(name)

    async def sign_off(self) -> None:
        """Say that this daemon ends of its own will, so that nobody takes it for dead. Nothing is marked after it."""
        self._signed_off = True
        with anyio.move_on_after(GOODBYE_S, shield=True):
            try:
                await self._mark()
            except GpuLockError as trouble:
                _log.debug("alerts.not_signed_off", message=trouble.message)

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Judge and tell until cancelled."""
        task_status.started()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.dispatcher.work)
            await self._judge_on()

    async def _judge_on(self) -> None:
        pause_s = RETRY_S
        while True:
            self._news = anyio.Event()
            try:
                await self.look()
                pause_s = RETRY_S
            except GpuLockError as trouble:
                if not isinstance(trouble, StoreUnavailable):
                    _log.error("alerts.failed", message=trouble.message)
                await anyio.sleep(pause_s)
                pause_s = min(2 * pause_s, MOST_RETRY_S)
                continue
            interval_s = self._settings().gpu_lock_monitor.monitor_interval
            with anyio.move_on_after(interval_s if self._due_s is None else min(self._due_s, interval_s)):
                await self._news.wait()
            await anyio.sleep(min(PAUSE_S, interval_s))

    async def look(self) -> None:
        """Judge everything once.

        :raises StoreUnavailable: if the store is away
        """
        self._take_settings()
        await self._mark()
        stored: Stored = await self._ask(alert_read())
        self._remember(stored)
        await self._forget_channels(stored)
        book, patience = book_of(stored), self._patience()
        seen = await self._finder.look(stored, self._used)
        if seen is not None:
            steps = judge(self._keys.pool, self._rules, seen, book, stored.wall_ms, patience)
            await self._write(steps, stored)
            book = book_after(book, steps)
        await self._look_around(stored, book, patience)
        self._due_s = due_in_s(book, self._rules, stored.wall_ms, patience)

    def _patience(self) -> Patience:
        block = self._used.alerts
        return Patience(resolve_after_s=block.resolve_after, escalate_after_s=block.escalate_after)

    def _take_settings(self) -> None:
        """Use what is in force now."""
        now = self._settings()
        if now is self._used:
            return
        before, self._used = self._used, now
        if now.alerts != before.alerts:
            self._take_rules(now)
        if now.notify != before.notify:
            self.dispatcher.use(usable(now.notify))

    def _take_rules(self, settings: Settings) -> None:
        """Wrong rules are refused where they are set; if they come here all the same, the former ones stay."""
        try:
            self._rules = rules_of(settings.alerts)
        except ConfigError as wrong:
            _log.error("alerts.rules_refused", message=f"{wrong.message}; the rules before, or the defaults, stand")

    async def _mark(self) -> None:
        async with self._marking:  # one under way must not arrive after the goodbye
            mark = DaemonMark(session=self._session(), host=self._host, stopped=self._signed_off)
            if mark != self._marked:
                await self._ask(daemon_mark(pool=self._keys.pool, daemon=msgspec.json.encode(mark)))
                self._marked = mark

    def _remember(self, stored: Stored) -> None:
        """Know of each channel what the daemon before this one knew."""
        for name, kept in stored.channels.items():
            pool, _, channel = name.partition("|")
            new = channel in self.dispatcher.names - set(self.dispatcher.known)
            if pool == self._keys.pool and new and kept.json != REMOVED:
                try:
                    self.dispatcher.known[channel] = msgspec.json.decode(kept.json, type=Known)
                except msgspec.MsgspecError:
                    continue

    async def _forget_channels(self, stored: Stored) -> None:
        """Say of channels that the configuration has no more that they are gone: what they lacked is no trouble now."""
        for name, kept in stored.channels.items():
            pool, _, channel = name.partition("|")
            if pool == self._keys.pool and channel not in self.dispatcher.names and kept.json != REMOVED:
                await self.dispatcher.forget(channel)

    async def _look_around(self, stored: Stored, book: Book, patience: Patience) -> None:
        """Judge whether the next daemons of the fleet live, and tell what those that do not had to tell."""
        rules = [rule for rule in self._rules if set(rule.condition.names) == {"monitor_health"}]
        marks = marks_of({pool: kept.json for pool, kept in stored.daemons.items()})
        gone, living = [], 0
        names, own = {rule.name for rule in rules}, self._keys.pool
        for pool in {one.pool for one in book.alerts.values() if one.rule in names and one.state == "active"} - {own}:
            if pool not in marks or marks[pool].stopped:
                # It has said goodbye since, or a person has said that it is gone for good.
                up = Seen(values={"monitor_health": True})
                await self._write(judge(pool, rules, up, book, stored.wall_ms, patience, whole=False), stored)
        for pool, mark in around(own, marks):
            answer = await self._ask(alert_look(PoolKeys(pool), session=mark.session))
            if not isinstance(answer, Looked):
                continue  # a pool whose books are gone says nothing of its daemon
            if answer.alive:
                living += 1
            else:
                gone.append(pool)
            about = f"the daemon of pool {pool} on {mark.host or 'an unknown host'} is gone"
            seen = Seen(values={"monitor_health": answer.alive}, about={"monitor_health": about})
            await self._write(judge(pool, rules, seen, book, stored.wall_ms, patience, whole=False), stored)
            if living == WATCHED:
                break
        self.dispatcher.tell_for(tuple(gone))

    async def _write(self, steps: Sequence[Step], stored: Stored) -> None:
        """Write what becomes of alerts; those that another has changed meanwhile are judged again at the next look."""
        changes = [self._change(step, stored) for step in steps]
        for first in range(0, len(changes), AT_ONCE):
            await self._ask(alert_write(by=self._keys.pool, changes=changes[first : first + AT_ONCE]))
        if any(step.tell for step in steps):
            self.dispatcher.wake()

    def _change(self, step: Step, stored: Stored) -> Change:
        kept, now = stored.alerts.get(step.id), step.now
        fields: dict[str, Any] = {"id": step.id, "version": kept.number if kept else None}
        if now is None:
            return Change(alert=b"", channels=("*",) if _was_resolved(kept.json if kept else b"") else (), **fields)
        json = msgspec.json.encode(now)
        if step.tell is None:
            return Change(alert=json, **fields)
        notice = notice_of(now, step.tell, stored.wall_ms)
        return Change(
            alert=json,
            line=line_of(now, step.tell, stored.wall_ms),
            notice=(notice.id, msgspec.json.encode(notice)),
            channels=self.dispatcher.channels_for(notice, people=step.told_to_people),
            **fields,
        )


def _was_resolved(json: bytes) -> bool:
    try:
        return msgspec.json.decode(json, type=Alert).state == "resolved"
    except msgspec.MsgspecError:
        return True
