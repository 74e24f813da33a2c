"""Alerts on a real store: raised once, told once, taken up again by the next daemon, and few messages in a storm."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import secrets
from collections.abc import AsyncIterator
from typing import Any

import anyio
import msgspec
import pytest
import redis

from gpulockd.alerting.judging import Alert, acknowledged
from gpulockd.alerting.messages import notice_of
from gpulockd.alerting.records import book_of, history_of
from gpulockd.alerting.rules import rules_of
from gpulockd.client.whoami import this_process
from gpulockd.daemon import dispatching
from gpulockd.daemon.alerts import Alerts
from gpulockd.daemon.channels.made import channels_of
from gpulockd.daemon.judging import Reading
from gpulockd.errors import ConfigError
from gpulockd.events import Event, decode
from gpulockd.ledger import verbs
from gpulockd.ledger.alerts import Change, alert_read, alert_write, silence_mark
from gpulockd.ledger.keys import PoolKeys
from gpulockd.ledger.store import Store
from gpulockd.settings import QueueBlock, SessionBlock, Settings, SettleBlock, settings_from
from gpulockd.web.alert_views import alerts_view
from tests.daemons import eventually
from tests.pools import offer, simulated
from tests.receivers import MailReceiver, WebReceiver, mail_receiver, web_receiver
from tests.servers import Server, wipe
from tests.states import WITHIN_S, until

LASTING = SessionBlock(ttl=600.0)
"""Nothing keeps the sessions of these tests alive: they end when a test says so."""

TERMS = verbs.Terms.of(LASTING, QueueBlock(), SettleBlock())
SECRET = "whsec_" + base64.b64encode(b"a key of the test").decode()


@pytest.fixture(autouse=True)
def _empty_fleet(valkey_server: Server) -> Any:
    """Alerts are the fleet's, which all tests share."""
    wipe(valkey_server, "fleet")
    yield
    wipe(valkey_server, "fleet")


class Pool:
    """A pool with one daemon's session in it, and the alerts that run for it."""

    def __init__(self, server: Server, name: str) -> None:
        self.server = server
        self.keys = PoolKeys(name)
        self.session = secrets.token_hex(8)
        self.monitor_works = True
        self.changed: Settings | None = None
        self.readings: dict[str, Reading] = {}
        self.store = Store(server.url, deadline_s=30)

    async def open(self) -> None:
        """Offer a gpu and be alive."""
        offer(self.server, self.keys.pool, simulated(1), session=LASTING)
        await self.live()

    async def live(self) -> None:
        """Open the session."""
        process = this_process()
        call = verbs.open(self.keys, session=self.session, process=process, terms=TERMS, known_pool=True)
        await self.store.ask(call)

    async def die(self) -> None:
        """End the session as the ledger does with that of a dead process."""
        call = verbs.end(self.keys, session="", id=self.session, token=None, reason="died", what="session")
        await self.store.ask(call)

    def alerts(self, settings: Settings) -> Alerts:
        """The service, not started."""
        return Alerts(
            self.keys,
            self.store.ask,
            settings=lambda: self.changed or settings,
            session=lambda: self.session,
            host="testhost",
            monitor=lambda: self.monitor_works,
            readings=lambda: self.readings,
        )

    @contextlib.asynccontextmanager
    async def running(self, settings: Settings) -> AsyncIterator[Alerts]:
        """The service, killed at the end of the block."""
        async with anyio.create_task_group() as tasks:
            service = self.alerts(settings)
            await tasks.start(service.run)
            yield service
            tasks.cancel_scope.cancel()

    async def standing(self) -> dict[str, Alert]:
        """All alerts."""
        return dict(book_of(await self.store.ask(alert_read())).alerts)

    async def until_state(self, id: str, state: str | None) -> Alert | None:
        """Wait until an alert is in that state; None: gone."""
        with anyio.fail_after(WITHIN_S):
            while True:
                found = (await self.standing()).get(id)
                if (found.state if found else None) == state:
                    return found
                await anyio.sleep(0.02)

    async def until_all_is_told(self) -> None:
        """Wait until every channel has taken what it was to tell: a later notice takes the place of one that waits."""

        async def is_told() -> bool:
            return (await self.store.ask(alert_read())).outbox == 0

        await eventually(is_told)

    def events(self, kind: str) -> list[Event]:
        """The events of that kind in the pool's stream."""
        with redis.Redis.from_url(self.server.url) as raw:
            rows = raw.xrange(self.keys.events_channel)
        found = [decode(fields[b"e"]) for _, fields in rows]
        return [event for event in found if event is not None and event.kind == kind]

    async def aclose(self) -> None:
        """End the session and hang up."""
        with contextlib.suppress(Exception):
            call = verbs.end(self.keys, session="", id=self.session, token=None, reason="released", what="session")
            await self.store.ask(call)
        await self.store.aclose()


@contextlib.asynccontextmanager
async def opened(server: Server, name: str) -> AsyncIterator[Pool]:
    """A pool for the time of the block."""
    pool = Pool(server, name)
    await pool.open()
    try:
        yield pool
    finally:
        await pool.aclose()


def configured(*, web: WebReceiver | None = None, mail: MailReceiver | None = None, **more: Any) -> Settings:
    """Settings under which everything is quick."""
    alerts = {"resolve_after": 0, "escalate_after": 0} | more.pop("alerts", {})
    notify: dict[str, Any] = {"aggregate": 0} | more.pop("notify", {})
    if web is not None:
        notify["webhooks"] = {"ops": {"url": web.url, "secret": SECRET, "timeout": 60} | more.pop("hook", {})}
    if mail is not None:
        block = {"host": "127.0.0.1", "port": mail.port, "tls": "none", "sender": "g@x.test", "to": ["admin@x.test"]}
        block |= {"timeout": 60}
        notify["emails"] = {"admins": block | {"username": "u", "password": "p4ssw0rd"}}
    quick = {"gpu_lock_monitor": {"monitor_interval": 0.1}}
    return settings_from(quick | {"alerts": alerts, "notify": notify} | more)


DOWN = "MONITOR_SERVICE_DOWN"


async def test_an_alert_is_told_once_over_each_channel_and_once_when_it_is_over(
    valkey_server: Server, pool: str
) -> None:
    """People act on the first message and stop reading after the third."""
    async with web_receiver() as web, mail_receiver() as mail, opened(valkey_server, pool) as own:
        async with own.running(configured(web=web, mail=mail)):
            own.monitor_works = False
            await until(lambda: web.deliveries and mail.mails)
            await own.until_state(f"{pool}:{DOWN}", "active")
            await own.until_all_is_told()
            own.monitor_works = True
            await until(lambda: len(web.deliveries) == 2 and len(mail.mails) == 2)
            await until(lambda: len(own.events("alert_resolved")) == 1)
            await own.until_all_is_told()
        assert web.rules() == [("raised", DOWN), ("resolved", DOWN)]
        assert "GPU锁监控服务异常" in mail.mails[0].get_content() and DOWN in mail.mails[0]["Subject"]
        assert mail.mails[1]["Subject"].startswith("[gpulockd] resolved")
        raised = own.events("alert_raised")
        assert [(event.rule, event.level) for event in raised] == [(DOWN, "critical")]  # type: ignore[attr-defined]
        stored = await own.store.ask(alert_read(history=10))
        assert [line.what for line in history_of(stored)] == ["resolved", "raised"] and stored.outbox == 0


async def test_a_webhook_is_signed_so_that_its_receiver_can_tell_it_from_another(
    valkey_server: Server, pool: str
) -> None:
    """A receiver that acts on alerts must know that they are ours and new."""
    async with web_receiver() as web, opened(valkey_server, pool) as own:
        async with own.running(configured(web=web)):
            own.monitor_works = False
            await until(lambda: web.deliveries)
        sent = web.deliveries[0]
        signed = f"{sent.headers['webhook-id']}.{sent.headers['webhook-timestamp']}.".encode() + sent.body
        expected = base64.b64encode(hmac.new(b"a key of the test", signed, hashlib.sha256).digest()).decode()
        assert sent.headers["webhook-signature"] == f"v1,{expected}"


async def test_what_a_killed_daemon_could_not_tell_its_successor_tells_once(valkey_server: Server, pool: str) -> None:
    """The moment at which daemons die is the moment at which alerts are raised."""
    async with web_receiver() as web, opened(valkey_server, pool) as own:
        web.answers = [503] * 100
        settings = configured(web=web)
        async with own.running(settings):
            own.monitor_works = False
            await until(lambda: web.tries)
        assert not web.deliveries
        web.answers = []
        async with own.running(settings):
            await until(lambda: web.deliveries)
            await own.until_state(f"{pool}:{DOWN}", "active")
            await own.until_all_is_told()
        async with own.running(settings):
            own.monitor_works = True
            await until(lambda: ("resolved", DOWN) in web.rules())
        assert web.rules() == [("raised", DOWN), ("resolved", DOWN)]
        assert len(own.events("alert_raised")) == 1


async def test_a_message_that_is_under_way_when_the_daemon_stops_still_arrives_once(
    valkey_server: Server, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restart must not double what a slow receiver is about to take."""
    monkeypatch.setattr(dispatching, "GOODBYE_S", 60.0)  # the receiver's 0.3 s may be many on a slow machine
    async with web_receiver() as web, opened(valkey_server, pool) as own:
        web.waits = asyncio.Event()
        settings = configured(web=web)
        async with anyio.create_task_group() as tasks:
            async with own.running(settings):
                own.monitor_works = False
                await until(lambda: web.tries)
                tasks.start_soon(_set_soon, web.waits)
        assert len(web.deliveries) == 1
        async with own.running(settings) as service:
            await service.look()
            stored = await own.store.ask(alert_read())
        assert len(web.deliveries) == 1 and stored.outbox == 0


async def _set_soon(event: asyncio.Event) -> None:
    await anyio.sleep(0.3)
    event.set()


async def test_what_a_gone_daemon_had_to_tell_another_tells(valkey_server: Server, pool: str) -> None:
    """Its host has burnt down, and with it the way to tell of it."""
    other_pool = f"{pool}-b"
    async with web_receiver() as web, opened(valkey_server, pool) as own, opened(valkey_server, other_pool) as other:
        web.answers = [503] * 100
        async with other.running(configured(web=web)):
            other.monitor_works = False
            await until(lambda: web.tries)
        await other.die()
        web.answers = []
        async with own.running(configured(web=web)):
            await until(lambda: web.deliveries)
        assert web.rules() == [("raised", DOWN)]
        assert web.deliveries[0].json["notices"][0]["pool"] == other_pool
    wipe(valkey_server, other_pool)


async def test_a_storm_of_a_thousand_alerts_is_a_handful_of_messages(valkey_server: Server, pool: str) -> None:
    """Nobody reads a thousand mails, and the one that matters is among them."""
    async with web_receiver() as web, mail_receiver() as mail, opened(valkey_server, pool) as own:
        with redis.Redis.from_url(valkey_server.url) as raw:
            settings = configured(web=web, mail=mail, notify={"aggregate": 3600})
            async with own.running(settings) as service:
                own.monitor_works = False
                await until(lambda: web.deliveries and mail.mails)
                await own.until_all_is_told()
                await _raise_many(own, service, 1000)
                key = "gpulockd:{fleet}:alerts_channels"
                for channel in ("ops", "admins"):  # the hour is over
                    raw.hset(key, f"{pool}|{channel}", "1 {}")
                await until(lambda: sum(d.json["total"] for d in web.deliveries) >= 1001, within_s=60)
                await until(lambda: len(mail.mails) >= 2)
        assert len(web.deliveries) <= 3 and len(mail.mails) <= 3
        assert sum(delivery.json["total"] for delivery in web.deliveries) == 1001
        assert max(len(delivery.body) for delivery in web.deliveries) < 100_000
        assert max(len(mail.get_content()) for mail in mail.mails) < 20_000


async def _raise_many(own: Pool, service: Alerts, count: int) -> None:
    """Write `count` alerts of other pools as this daemon would."""
    now_ms, changes = (await own.store.ask(alert_read())).wall_ms, []
    for n in range(count):
        alert = Alert(pool=f"p{n}", rule="STORM", level="warning", message="m", state="active", since_ms=1, raised_ms=1)
        notice = notice_of(alert, "raised", now_ms)
        changes.append(
            Change(
                id=alert.id,
                version=None,
                alert=msgspec.json.encode(alert),
                notice=(notice.id, msgspec.json.encode(notice)),
                channels=("ops", "admins"),
            )
        )
    for first in range(0, count, 32):
        await own.store.ask(alert_write(by=own.keys.pool, changes=changes[first : first + 32]))
    service.dispatcher.wake()


async def test_an_alert_that_nobody_acknowledges_is_escalated_once(valkey_server: Server, pool: str) -> None:
    """Somebody who does not read mail still has a phone."""
    async with web_receiver() as web, web_receiver() as phone, opened(valkey_server, pool) as own:
        hooks = {"ops": {"url": web.url}, "phone": {"url": phone.url, "escalated": True}}
        async with own.running(configured(notify={"webhooks": hooks})):
            own.monitor_works = False
            await until(lambda: web.deliveries)
            await own.until_all_is_told()
            own.changed = configured(alerts={"escalate_after": 0.05}, notify={"webhooks": hooks})
            await until(lambda: phone.deliveries and len(web.deliveries) == 2)
            await own.until_state(f"{pool}:{DOWN}", "active")
            await own.until_all_is_told()
            own.monitor_works = True
            await until(lambda: ("resolved", DOWN) in phone.rules() and ("resolved", DOWN) in web.rules())
        assert phone.rules() == [("escalated", DOWN), ("resolved", DOWN)]
        assert web.rules() == [("raised", DOWN), ("escalated", DOWN), ("resolved", DOWN)]


async def test_who_acknowledges_an_alert_ends_its_escalation(valkey_server: Server, pool: str) -> None:
    """The one who works on it must not be called away from it."""
    async with web_receiver() as web, opened(valkey_server, pool) as own:
        async with own.running(configured(web=web)):
            own.monitor_works = False
            await until(lambda: web.deliveries)
            await own.until_all_is_told()
        stored = await own.store.ask(alert_read())
        id = f"{pool}:{DOWN}"
        taken = acknowledged(book_of(stored).alerts[id], "ada", "on it", stored.wall_ms)
        change = Change(id=id, version=stored.alerts[id].number, alert=msgspec.json.encode(taken))
        assert not (await own.store.ask(alert_write(by=pool, changes=[change]))).left
        async with own.running(configured(web=web, alerts={"escalate_after": 0.05})) as service:
            await service.look()
            await anyio.sleep(0.3)
            await service.look()
        assert web.rules() == [("raised", DOWN)]
        assert (await own.standing())[id].acknowledged_by == "ada"


async def test_a_silenced_rule_is_told_when_the_silence_is_over_and_it_still_stands(
    valkey_server: Server, pool: str
) -> None:
    """A silence must postpone an alert, not lose it."""
    async with web_receiver() as web, opened(valkey_server, pool) as own:
        silence = b'{"rule":"%s","pool":"*"}' % DOWN.encode()
        await own.store.ask(silence_mark(id=f"*:{DOWN}", silence=silence, for_ms=600_000))
        async with own.running(configured(web=web)):
            own.monitor_works = False
            await own.until_state(f"{pool}:{DOWN}", "active")
            assert not web.deliveries
            await own.store.ask(silence_mark(id=f"*:{DOWN}", silence=silence, for_ms=100))
            await until(lambda: web.deliveries)
        assert web.rules() == [("raised", DOWN)]
        assert len(own.events("alert_raised")) == 1


async def test_the_daemon_of_another_pool_tells_of_one_that_is_gone(valkey_server: Server, pool: str) -> None:
    """A daemon that is gone cannot say so."""
    other_pool = f"{pool}-b"
    async with web_receiver() as web, opened(valkey_server, pool) as own, opened(valkey_server, other_pool) as other:
        async with own.running(configured(web=web)):
            async with other.running(configured()):
                await until(lambda: _marked(valkey_server, other_pool))
            await other.die()
            await until(lambda: web.deliveries)
            assert web.deliveries[0].json["notices"][0]["pool"] == other_pool
            await other.live()
            async with other.running(configured()):
                await other.until_state(f"{other_pool}:{DOWN}", "resolved")
        assert web.rules()[0] == ("raised", DOWN)
        assert [event.pool for event in other.events("alert_raised")] == [other_pool]
    wipe(valkey_server, other_pool)


async def test_a_daemon_that_says_goodbye_is_not_down(valkey_server: Server, pool: str) -> None:
    """Maintenance at night must wake nobody."""
    other_pool = f"{pool}-b"
    async with web_receiver() as web, opened(valkey_server, pool) as own, opened(valkey_server, other_pool) as other:
        async with other.running(configured()) as leaving:
            await until(lambda: _marked(valkey_server, other_pool))
            await leaving.sign_off()
            await leaving.look()  # the last one of those under way
        await other.die()
        async with own.running(configured(web=web)) as service:
            for _ in range(3):
                await service.look()
        assert not web.deliveries and not await own.standing()
    wipe(valkey_server, other_pool)


def _marked(server: Server, pool: str) -> bool:
    with redis.Redis.from_url(server.url) as raw:
        return bool(raw.hexists("gpulockd:{fleet}:alerts_daemons", pool))


async def test_a_test_message_answers_over_every_channel_and_shows_no_secret(
    valkey_server: Server, pool: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Alerts that nobody has tried do not work on the day they are needed, and logs are read by many."""
    async with web_receiver() as web, mail_receiver() as mail, opened(valkey_server, pool) as own:
        async with own.running(configured(web=web, mail=mail)) as service:
            assert not service.answered()
            known = await service.test_channel()
            assert {name: bool(one.ok_ms) for name, one in known.items()} == {"log": True, "ops": True, "admins": True}
            assert service.answered()
            web.answers = [302]
            failed = (await service.test_channel("ops"))["ops"]
            assert "302" in failed.error and "redirects are not followed" in failed.error
            with pytest.raises(KeyError):
                await service.test_channel("nobody")
            own.changed = configured(mail=mail)
            assert set(await service.test_channel()) == {"log", "admins"}
            await service.look()
            shown = {one.name: one.error for one in alerts_view(pool, await own.store.ask(alert_read())).channels}
            assert shown == {"log": "", "admins": ""}
        assert "s3cr3t-path" not in failed.error + caplog.text and "p4ssw0rd" not in caplog.text
        assert mail.logins and len(mail.mails) == 2


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (
            {"alerts": [{"name": "X", "condition": "timeout_rat > 1"}]},
            "rule X: condition .*did you mean 'timeout_rate'",
        ),
        ({"notify": {"webhooks": {"w": {"url": "ftp://x"}}}}, "notify.webhooks.w.url"),
        ({"notify": {"emails": {"e": {"host": "h", "sender": "a@b", "to": ["nobody"]}}}}, "notify.emails.e.to"),
        ({"notify": {"apprise": {"a": {}}}}, "notify.apprise.a.urls"),
        ({"notify": {"webhooks": {"log": {"url": "http://x"}}}}, "cannot be called 'log'"),
    ],
)
def test_settings_that_cannot_alert_are_named(wrong: dict[str, Any], says: str) -> None:
    """An alert that is not sent because of a slip of the hand is found on the worst day."""
    settings = settings_from(wrong)
    with pytest.raises(ConfigError, match=says):
        assert rules_of(settings.alerts) and channels_of(settings.notify) is None


async def test_a_channel_that_cannot_work_says_so_and_the_others_do(valkey_server: Server, pool: str) -> None:
    """A password file that is gone is no reason to guard no GPUs, nor to be silent about it."""
    async with web_receiver() as web, opened(valkey_server, pool) as own:
        settings = configured(
            alerts={"rules": [{"name": "X", "condition": "nonsense"}]},
            notify={
                "webhooks": {"ops": {"url": web.url}, "lost": {"url": "http://x/", "secret_file": "/nowhere/secret"}}
            },
        )
        async with own.running(settings) as service:
            own.monitor_works = False  # the rules are wrong, so the defaults stand
            await until(lambda: web.rules() == [("raised", DOWN)])
            known = await service.test_channel("lost")
            assert "/nowhere/secret cannot be read" in known["lost"].error
