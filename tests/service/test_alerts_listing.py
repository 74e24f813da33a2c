"""`gpulockd alerts` after a storm, and what is left untold by a channel that is not there any more."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from gpulockd.alerting.judging import Alert
from gpulockd.ledger.alerts import Change, alert_read, alert_write
from gpulockd.ledger.store import BlockingStore
from gpulockd.web.alert_views import alerts_view
from tests.servers import Server, wipe
from tests.system.commands import call


@pytest.fixture
def store(valkey_server: Server) -> Iterator[BlockingStore]:
    """A store with twelve alerts that are over and two notices, one for a channel that is gone."""
    wipe(valkey_server, "fleet")
    made = BlockingStore(valkey_server.url, deadline_s=5.0)
    changes = []
    for number in range(12):
        alert = Alert(
            pool="p",
            rule=f"RULE_{number:02}",
            level="warning",
            message="it was",
            state="resolved",
            since_ms=1000,
            raised_ms=1000,
            resolved_ms=2000 + number,
        )
        channel = {0: ("ops",), 1: ("gone",)}.get(number, ())
        notice = ("n", b"{}") if channel else None
        json = msgspec.json.encode(alert)
        changes.append(Change(id=alert.id, version=None, alert=json, notice=notice, channels=channel))
    made.ask(alert_write(by="p", changes=changes))
    yield made
    made.close()
    wipe(valkey_server, "fleet")


def test_a_storm_that_is_over_does_not_fill_the_screen(store: BlockingStore, valkey_server: Server) -> None:
    """The last few, and how many more there are."""
    env: dict[str, Any] = {
        "GPULOCKD_SOCKET": "/nowhere/api.sock",
        "GPULOCKD_REDIS_URL": valkey_server.url,
        "GPULOCKD_POOL": "p",
    }
    lines = call(None, "alerts", **env).stdout.splitlines()
    assert lines[0] == "no alerts" and lines[-1] == "… and 7 more (--all)"
    assert [line.split(":")[-1].split()[0] for line in lines[1:6]] == [f"RULE_{n:02}" for n in (11, 10, 9, 8, 7)]
    assert len(lines) == 7
    assert len(call(None, "alerts", "--all", **env).stdout.splitlines()) == 13


def test_what_a_removed_channel_has_left_is_not_untold(store: BlockingStore) -> None:
    """Nobody will ever tell it; it is named instead, with the channel it was for."""
    found = alerts_view("p", store.ask(alert_read()), {"ops": "webhook", "log": "log"})
    assert found.untold == 1
    assert [(one.name, one.configured, one.untold) for one in found.channels] == [
        ("gone", False, 1),
        ("log", True, 0),
        ("ops", True, 1),
    ]
