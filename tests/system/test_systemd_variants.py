"""The other ways to run it: with a Redis of one's own over TCP, and as the service of one user."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.system import machine
from tests.system.machine import PROGRAM, Machine

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(machine.lacking() is not None, reason=machine.lacking() or ""),
]

REDIS = "/usr/bin/redis-server"
URL = "redis://:s3cret@127.0.0.1:6379/0"

CONFIG = """
gpus: {simulate: 2}
web: {listen: "127.0.0.1:0"}
session: {ttl: 4s, keepalive: 500ms, rpc_deadline: 500ms, margin: 200ms, claim_window: 600ms}
"""

PERMIT = "account required pam_permit.so\nsession required pam_permit.so\nsession optional pam_systemd.so\n"


@pytest.fixture
def box() -> Iterator[Machine]:
    """A machine with nothing in it yet."""
    with machine.booted() as made:
        made.write("/etc/gpulockd/config.yml", CONFIG)
        yield made


@pytest.mark.skipif(not os.access(REDIS, os.X_OK), reason="no redis-server (apt-get install redis-server)")
def test_a_redis_of_ones_own_is_reached_over_tcp(box: Machine) -> None:
    """The URL and its password are a credential that neither environment nor unit nor log shows."""
    box.start(REDIS, "--port", "6379", "--requirepass", "s3cret", "--save", "", "--maxmemory-policy", "noeviction")
    box.run(PROGRAM, "install-service", "--program", PROGRAM, "--redis", URL)
    assert box.show("gpulockd", "ActiveState") == "active"
    assert box.show("gpulockd-store", "ActiveState") == "inactive"
    said = box.run("redis-cli", "-a", "s3cret", "--no-auth-warning", "keys", "gpulockd:*").stdout
    assert "gpulockd:{default}:" in said
    environment = box.run("cat", f"/proc/{box.show('gpulockd', 'MainPID')}/environ").stdout
    assert "s3cret" not in environment + box.run("systemctl", "cat", "gpulockd").stdout + box.journal()
    assert box.run(PROGRAM, "status").returncode == 0


def test_one_user_runs_it_for_themselves(box: Machine) -> None:
    """No root, no other user, folders of their own; the store is a unit of its own there too."""
    for name in ("systemd-user", "other"):
        box.write(f"/etc/pam.d/{name}", PERMIT)
    box.run("useradd", "-U", "-m", "alice")
    box.run("loginctl", "enable-linger", "alice")
    box.until(lambda: box.run("test", "-S", "/run/user/1000/bus", check=False).returncode == 0)
    home = ("env", "HOME=/home/alice", "XDG_RUNTIME_DIR=/run/user/1000")
    alice = ("setpriv", "--reuid=alice", "--regid=alice", "--init-groups", *home)
    done = box.run(*alice, PROGRAM, "install-service", "--user", "--program", PROGRAM)
    assert "/home/alice/.config/systemd/user/gpulockd.service" in done.stdout
    store = box.said(*alice, "systemctl", "--user", "show", "--value", "-p", "MainPID", "gpulockd-store")
    assert box.run(*alice, PROGRAM, "status").returncode == 0
    box.run(*alice, "systemctl", "--user", "kill", "-s", "KILL", "gpulockd")
    box.until(lambda: box.run(*alice, PROGRAM, "status", check=False).returncode == 0)
    assert store == box.said(*alice, "systemctl", "--user", "show", "--value", "-p", "MainPID", "gpulockd-store")
    box.run(*alice, PROGRAM, "install-service", "--user", "--uninstall")
    box.until(lambda: box.run("pgrep", "-u", "alice", "-f", "gpulockd|valkey", check=False).stdout == "")
