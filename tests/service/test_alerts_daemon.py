"""The whole daemon: rules of config.yml, messages over a kill and a restart, routes and the command."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import anyio

from tests.daemons import Daemon, daemon_folder, eventually, running_daemon
from tests.receivers import MailReceiver, WebReceiver, mail_receiver, web_receiver
from tests.states import until

CROWDED = [{"name": "CROWDED", "condition": "queue_length >= 0", "level": "warning", "message": "队列过长"}]


def config(web: WebReceiver, mail: MailReceiver) -> dict[str, Any]:
    """One rule that is always true, as the source documents write it: a plain list."""
    block = {"host": "127.0.0.1", "port": mail.port, "tls": "none", "sender": "g@x.test", "to": ["admin@x.test"]}
    patient = {"timeout": 60}  # who is asked again after a stall of this test is told twice
    return {
        "gpu_lock_monitor": {"monitor_interval": 0.2},
        "alerts": CROWDED,
        "notify": {
            "aggregate": 0,
            "webhooks": {"ops": {"url": web.url, "secret": "s3cr3t-word"} | patient},
            "emails": {"admins": block | patient},
        },
    }


async def command(daemon: Daemon, *words: str) -> tuple[int, str, str]:
    """Run `gpulockd alerts …`; return its exit code and what it said."""
    env = os.environ | {"GPULOCKD_SOCKET": daemon.socket}
    done = await anyio.run_process([sys.executable, "-m", "gpulockd", "alerts", *words], check=False, env=env)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


async def test_an_alert_is_told_once_over_a_kill_of_the_daemon_and_shown_everywhere() -> None:
    """The daemon is killed between the alert and its message, and nobody is told twice or not at all."""
    async with web_receiver() as web, mail_receiver() as mail, daemon_folder() as base:
        web.answers = [503] * 1000
        async with running_daemon(config=config(web, mail), base=base) as first:
            await until(lambda: web.tries and mail.mails)
            await eventually(lambda: _untold(first, 1))
            await first.kill()
        web.answers = []
        async with running_daemon(config=config(web, mail), base=base) as daemon:
            await until(lambda: web.deliveries)
            await _routes(daemon)
            await _commands(daemon, web, mail)
            assert web.rules().count(("raised", "CROWDED")) == 1
            assert sum("CROWDED" in sent["Subject"] for sent in mail.mails) == 1
            assert await daemon.stop() == 0
            code, said, talk = await command(daemon)
            assert code == 0 and "CROWDED" in said and "this is what the store has" in talk
        log = (base / "daemon.log").read_text()
        assert "[告警] CROWDED: 队列过长" in log
        assert "s3cr3t" not in log


async def _untold(daemon: Daemon, count: int) -> bool:
    return bool((await daemon.get("/api/v1/alerts")).json["untold"] == count)


async def _routes(daemon: Daemon) -> None:
    found = (await daemon.get("/api/v1/alerts")).json
    assert found["overall_status"] == "warning"
    (alert,) = found["alerts"]
    assert (alert["id"], alert["state"], alert["level"]) == (f"{daemon.pool}:CROWDED", "active", "warning")
    assert alert["message"] == "队列过长" and alert["times"] == 1 and not alert["silenced"]
    assert [line["what"] for line in found["history"]] == ["raised"]
    refused = await daemon.ask("POST", "/api/v1/alerts/CROWDED/ack", {}, tcp=True)
    assert refused.status == 401
    assert (await daemon.ask("POST", "/api/v1/alerts/NO_SUCH/ack", {})).status == 404
    assert (await daemon.ask("POST", "/api/v1/alerts/CROWDED/silence", {"for": "soon"})).status == 422
    assert (await daemon.ask("DELETE", f"/api/v1/alerts/daemons/{daemon.pool}")).status == 409
    assert (await daemon.ask("DELETE", "/api/v1/alerts/daemons/elsewhere")).status == 404


async def _commands(daemon: Daemon, web: WebReceiver, mail: MailReceiver) -> None:
    code, said, _ = await command(daemon, "ack", "CROWDED", "--note", "on it")
    assert code == 0 and "is taken on by" in said
    code, said, _ = await command(daemon, "--json")
    alert = json.loads(said)["alerts"][0]
    assert alert["acknowledged_by"] and alert["note"] == "on it"
    code, said, talk = await command(daemon, "silence", "CROWDE", "--for", "1h")
    assert code == 1 and "did you mean 'CROWDED'" in talk
    code, said, _ = await command(daemon, "silence", "CROWDED", "--for", "1h")
    assert code == 0 and "silent until" in said
    before = len(web.deliveries), len(mail.mails)
    code, said, _ = await command(daemon, "test")
    assert code == 0 and {line.split()[1] for line in said.splitlines()} == {"log", "ops", "admins"}
    assert (len(web.deliveries), len(mail.mails)) == (before[0] + 1, before[1] + 1)
    code, said, _ = await command(daemon, "--history", "9")
    assert code == 0 and "acknowledged" in said and "silent until" in said


async def test_systemd_can_have_people_told_that_the_daemon_has_failed(tmp_path: Path) -> None:
    """On a single host nobody else could tell; neither daemon nor store is needed for it."""
    async with web_receiver() as web, mail_receiver() as mail:
        (tmp_path / "config.yml").write_text(json.dumps(config(web, mail)))
        words = ("alerts", "down", "--config", str(tmp_path / "config.yml"), "--unit", "gpulockd.service")
        done = await anyio.run_process([sys.executable, "-m", "gpulockd", *words], check=False)
        assert done.returncode == 0, done.stderr.decode()
        assert web.rules() == [("raised", "MONITOR_SERVICE_DOWN")] and len(mail.mails) == 1
        assert "gpulockd.service has failed" in mail.mails[0].get_content()
        web.answers = [500]
        done = await anyio.run_process([sys.executable, "-m", "gpulockd", *words], check=False)
        assert done.returncode == 0 and b"FAIL  ops" in done.stdout and b"s3cr3t" not in done.stdout + done.stderr
