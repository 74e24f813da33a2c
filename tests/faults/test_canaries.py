"""A secret is planted in every place that has one, and looked for in everything that gpulockd says."""

from __future__ import annotations

import gzip
import json
import re
import secrets
import signal
from pathlib import Path
from typing import Any

import redis

from gpulockd.web.routes import ROWS
from tests.daemons import CALM, daemon_folder, running_daemon
from tests.servers import Server, valkey_binary
from tests.system.commands import call


class Canaries:
    """A secret for each place that has one; none of them may be seen anywhere."""

    def __init__(self) -> None:
        self.all = {where: f"canary{secrets.token_hex(8)}" for where in ("redis", "hook", "path", "mail", "chat")}

    def config(self, socket_path: Path) -> dict[str, Any]:
        """A configuration that has them all."""
        notify = {
            "aggregate": 0,
            "webhooks": {"hook": {"url": f"http://127.0.0.1:9/{self.all['path']}", "secret": self.all["hook"]}},
            "emails": {
                "mail": {
                    "host": "127.0.0.1",
                    "port": 9,
                    "sender": "a@example.org",
                    "to": ["b@example.org"],
                    "username": "me",
                    "password": self.all["mail"],
                }
            },
            "apprise": {"chat": {"urls": [f"json://me:{self.all['chat']}@127.0.0.1:9/"]}},
        }
        return CALM | {"redis": {"url": f"unix://me:{self.all['redis']}@{socket_path}"}, "notify": notify}

    def check(self, where: str, text: str, *more: str) -> None:
        """Fail if one of them is in the text."""
        for name, secret in [*self.all.items(), *(("token", token) for token in more)]:
            assert secret not in text, f"the secret {name!r} is in {where}"


COMMANDS = (
    ("config", "show"),
    ("config", "show", "--origin"),
    ("config", "history"),
    ("config", "audit"),
    ("doctor", "--json"),
    ("doctor",),
    ("top", "--once"),
    ("top", "--once", "--json"),
    ("status", "--json"),
    ("events", "--json"),
    ("history", "--json"),
    ("alerts", "--json"),
)


async def test_no_output_has_a_secret(tmp_path: Path) -> None:
    """Whatever is copied into a ticket, a chat or a dashboard has no key to anything in it."""
    binary = valkey_binary()
    assert binary is not None
    planted = Canaries()
    with Server(binary) as server, redis.Redis.from_url(server.url) as admin:
        admin.execute_command(
            "ACL", "SETUSER", "me", "on", f">{planted.all['redis']}", "allkeys", "allchannels", "+@all"
        )
        async with (
            daemon_folder() as base,
            running_daemon(base=base, config=planted.config(server.socket_path)) as daemon,
        ):
            await daemon.ask("POST", "/api/v1/alerts/test", {})
            await daemon.ask("POST", "/api/v1/config", {"set": {"notify": {"webhooks": {"late": {"secret": 7}}}}})
            hook = {"late": {"url": f"http://127.0.0.1:9/{planted.all['path']}", "secret": planted.all["hook"]}}
            changed = await daemon.ask(
                "POST", "/api/v1/config", {"set": {"notify": {"webhooks": hook}}, "reason": "why"}
            )
            assert changed.status == 200, changed.body
            planted.check("the answer to a change", changed.body.decode(), daemon.token)
            for row in ROWS:
                if row.method == "GET":
                    path = re.sub(r"\{\w+(?::\w+)?\}", "0", row.path) + (
                        "?follow=0" if row.path.endswith("events") else ""
                    )
                    answer = await daemon.get(path, headers={"authorization": f"Bearer {daemon.token}"})
                    planted.check(path, f"{answer.headers} {answer.body.decode()}", daemon.token)
            for words in COMMANDS:
                said = call(daemon, *words, GPULOCKD_CONFIG=str(base / "config.yml"))
                planted.check(" ".join(words), said.stdout + said.stderr, daemon.token)
            said = call(daemon, "backup", str(tmp_path / "b.gz"), "--state-dir", str(daemon.state))
            assert said.returncode == 0, said.stderr
            planted.check("a backup", gzip.decompress((tmp_path / "b.gz").read_bytes()).decode(), daemon.token)
            broken = json.dumps(planted.config(server.socket_path) | {"nothing": 1})[:-1]
            (base / "config.yml").write_text(broken)
            daemon.process.send_signal(signal.SIGHUP)
            said = call(daemon, "config", "check", str(base / "config.yml"))
            planted.check("config check", said.stdout + said.stderr)
            for listed in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    planted.check(str(listed), listed.read_bytes().decode(errors="replace"), daemon.token)
                except OSError:
                    continue
            for note in daemon.runtime.glob("*.json"):
                planted.check(str(note), note.read_text(), daemon.token)
            await daemon.stop()
            planted.check("the log", daemon.log, daemon.token)
