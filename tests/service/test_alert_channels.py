"""Each way of telling, to a real receiver: over TLS, in its time, and with nothing of its secrets in what it says."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
from pathlib import Path
from typing import Any

import anyio
import pytest

from gpulockd.alerting.messages import Message, Notice, message_of
from gpulockd.daemon.channels.apprise import AppriseChannel
from gpulockd.daemon.channels.email import EmailChannel
from gpulockd.daemon.channels.made import channels_of
from gpulockd.daemon.channels.telling import ChannelError, redacted, shown_url
from gpulockd.daemon.channels.webhook import WebhookChannel, may_be_asked
from gpulockd.errors import ConfigError
from gpulockd.settings.alerting import AppriseBlock, EmailBlock, NotifyBlock, WebhookBlock
from tests.receivers import certificate, mail_receiver, web_receiver

PASSWORD = "correct-horse-battery"


def message(text: str = "GPU锁超时率过高") -> Message:
    """Something to tell."""
    return message_of([Notice(id="n", kind="raised", at_ms=0, pool="p", rule="R", level="warning", message=text)])


def webhook(url: str, **more: Any) -> WebhookChannel:
    """A channel to that URL."""
    return WebhookChannel("ops", WebhookBlock(url=url, **more), 0)


def mail(port: int, **more: Any) -> EmailChannel:
    """A channel to the mail server on that port."""
    facts: dict[str, Any] = {
        "host": "127.0.0.1",
        "port": port,
        "sender": "gpulockd@x.test",
        "to": ("admin@x.test",),
    } | more
    return EmailChannel("admins", EmailBlock(**facts), 0)


async def test_a_webhook_over_tls_is_sent_only_to_who_proves_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who sits in between would read and forge every alert."""
    tls, trusted = certificate(tmp_path)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    async with web_receiver(tls) as web:
        with pytest.raises(ChannelError, match="cannot be reached"):
            await webhook(web.url).send(message())
        assert not web.deliveries
        monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
        await webhook(web.url).send(message())
        assert web.deliveries[0].json["notices"][0]["message"] == "GPU锁超时率过高"


async def test_mail_logs_in_only_after_starttls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A password in the clear is everybody's."""
    tls, trusted = certificate(tmp_path)
    async with mail_receiver(tls) as server:
        with pytest.raises(ChannelError, match="was not sent"):
            await mail(server.port, username="u", password=PASSWORD).send(message())
        assert not server.logins
        monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
        await mail(server.port, username="u", password=PASSWORD).send(message())
        assert server.in_tls and len(server.logins) == 1
        assert "GPU锁超时率过高" in server.mails[0].get_content()


async def test_a_mail_server_that_offers_no_tls_gets_no_mail() -> None:
    """Who strips STARTTLS from the greeting must not get the password for it."""
    async with mail_receiver() as server:
        with pytest.raises(ChannelError):
            await mail(server.port, username="u", password=PASSWORD).send(message())
        assert not server.logins and not server.mails


async def test_a_refusal_is_told_without_the_secrets() -> None:
    """Logs are read by more people than channels."""
    async with mail_receiver() as server, web_receiver() as web:
        server.refuses = True
        with pytest.raises(ChannelError) as refused:
            await mail(server.port, tls="none", username="u", password=PASSWORD).send(message())
        assert "451 not now" in refused.value.message and PASSWORD not in refused.value.message
        web.answers = [500]
        channel = webhook(web.url, secret=PASSWORD)
        with pytest.raises(ChannelError) as failed:
            await channel.send(message())
        for text in (failed.value.message, repr(channel)):
            assert "s3cr3t-path" not in text and PASSWORD not in text
        assert f"http://127.0.0.1:{web.port} answered 500" in failed.value.message


async def test_a_receiver_that_does_not_answer_costs_its_own_time_only() -> None:
    """One slow receiver must not hold up the others, or the daemon."""
    async with web_receiver() as web:
        web.waits = asyncio.Event()
        with anyio.move_on_after(0.3) as limit:
            await webhook(web.url).send(message())
        assert limit.cancelled_caught
        web.waits.set()


@pytest.mark.parametrize(
    ("address", "may"),
    [
        ("127.0.0.1", True),
        ("10.1.2.3", True),
        ("93.184.216.34", True),
        ("169.254.169.254", False),
        ("::ffff:169.254.169.254", False),
        ("fe80::1%eth0", False),
        ("fd00:ec2::254", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
    ],
)
def test_no_address_where_clouds_keep_credentials_is_asked(address: str, may: bool) -> None:
    """A webhook's address must not become a way into the host's own services."""
    assert may_be_asked(address) is may


async def test_a_webhook_to_the_link_is_refused_before_anything_is_sent() -> None:
    """By its number too, in any notation that resolves."""
    for url in ("http://169.254.169.254/latest", "http://2852039166/x", "http://[::ffff:a9fe:a9fe]/"):
        with pytest.raises(ChannelError, match=r"never asked|cannot be reached"):
            await webhook(url).send(message())


@pytest.mark.parametrize("url", ["", "https://", "ftp://x/y", "http://x y/", "http://x:99999/", "http://é/", "//x"])
def test_what_is_no_url_is_refused_at_the_start(url: str) -> None:
    """Not on the day of the first alert."""
    with pytest.raises(ConfigError, match=r"notify\.webhooks\.ops\.url"):
        webhook(url)


async def test_a_secret_may_stand_in_a_file_of_its_own(tmp_path: Path) -> None:
    """A configuration file is shown around, and credentials of systemd are files."""
    async with web_receiver() as web:
        (tmp_path / "url").write_text(web.url + "\n")
        (tmp_path / "secret").write_text(PASSWORD + "\n")
        files: dict[str, Any] = {"url_file": str(tmp_path / "url"), "secret_file": str(tmp_path / "secret")}
        await WebhookChannel("ops", WebhookBlock(**files), 0).send(message())
        assert web.deliveries and "webhook-signature" in web.deliveries[0].headers
        with pytest.raises(ConfigError, match="cannot be read"):
            WebhookChannel("ops", WebhookBlock(url=web.url, secret_file=str(tmp_path / "none")), 0)


@pytest.mark.parametrize(
    ("block", "says"),
    [
        ({"password": PASSWORD}, "username and password go together"),
        ({"username": "u", "password": PASSWORD, "tls": "none", "host": "mail.test"}, "in the clear"),
        ({"host": None}, "name the mail server"),
        ({"to": ()}, "list at least one"),
    ],
)
def test_mail_that_cannot_work_is_refused_at_the_start(block: dict[str, Any], says: str) -> None:
    """Not on the day of the first alert."""
    with pytest.raises(ConfigError, match=says) as refused:
        mail(25, **block)
    assert PASSWORD not in refused.value.message


def test_two_channels_of_one_name_are_refused() -> None:
    """What is still to be told is kept by the channel's name."""
    hook, phone = WebhookBlock(url="http://x/"), AppriseBlock(urls=("json://x",))
    with pytest.raises(ConfigError, match="two channels are called a"):
        channels_of(NotifyBlock(webhooks={"a": hook}, apprise={"a": phone}))


@pytest.mark.skipif(importlib.util.find_spec("apprise") is None, reason="apprise is not installed (extra 'notify')")
@pytest.mark.filterwarnings("ignore")
async def test_apprise_tells_all_of_its_addresses() -> None:
    """Chats and SMS come by it."""
    async with web_receiver() as web:
        patient = f"json://127.0.0.1:{web.port}/x?cto=60&rto=60"  # its own limits are four seconds
        await AppriseChannel("phone", AppriseBlock(urls=(patient,)), 0).send(message())
        assert web.deliveries[0].json["title"].startswith("[gpulockd] warning: R in p")
        web.answers = [500]
        with pytest.raises(ChannelError, match="could not tell all 1 addresses"):
            await AppriseChannel("phone", AppriseBlock(urls=(patient,)), 0).send(message())
        with pytest.raises(ChannelError, match="does not know one of the addresses"):
            await AppriseChannel("phone", AppriseBlock(urls=("nonsense://x",)), 0).send(message())


def test_what_is_shown_has_no_secret_and_no_control_character() -> None:
    """Also of what a stranger's server has answered."""
    assert redacted(f"no {PASSWORD}\r\nX: \x1b[31m", [PASSWORD, None]) == "no ***  X:  [31m"
    assert shown_url("https://user:pw@chat.test:8/hooks/T0K3N?k=v") == "https://chat.test:8"
