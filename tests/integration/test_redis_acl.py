"""The rights that `gpulockd doctor --redis-acl` prints, on real servers: all of ours works, and nothing else does."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from gpulockd.ledger import access
from tests.daemons import Daemon
from tests.servers import Server, redis70_binary, valkey_binary
from tests.system.commands import call, clean_env, one_daemon

ROOT = Path(__file__).resolve().parents[2]
SESSION = {"ttl": 5.0, "keepalive": 0.3, "rpc_deadline": 1.3, "margin": 0.1, "claim_window": 1.3}
CONFIG = {"session": SESSION}
"""A server that has just started is waited for as long as a session lives."""

BINARIES = {"valkey": valkey_binary, "redis70": redis70_binary}

WORK = """
import asyncio, sys
from gpulockd import GpuLockTimeout, gpu_lock, lock_events
with gpu_lock(task="sync") as lease:
    lease.progress(50, "half")
async def main():
    async with gpu_lock(count=2, task="both") as lease:
        await lease.progress(10, "a tenth")
        try:
            lease = await asyncio.create_task(gpu_lock(max_wait_time=0.2, nested="wait").acquire())
        except GpuLockTimeout as busy:
            print("busy", busy)
    waiting = [asyncio.create_task(one(i)) for i in range(4)]
    await asyncio.gather(*waiting)
    async for event in lock_events(since="1m"):
        print(event)
        break
async def one(i):
    async with gpu_lock(gpus=[0], task=f"w{i}"):
        await asyncio.sleep(0.01)
asyncio.run(main())
print("done")
"""


@pytest.fixture(scope="module", params=sorted(BINARIES))
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server with both users, and none besides."""
    binary = BINARIES[request.param]()
    if binary is None:
        pytest.skip(f"no {request.param} on this machine")
    with Server(binary) as made:
        said = call(None, "doctor", "--redis-acl", "--pool", "shop", "--json")
        assert said.returncode == 0, said.stderr
        rules = json.loads(said.stdout)
        with redis.Redis.from_url(made.url) as admin:
            for who, rule in rules.items():
                admin.execute_command(*rule.replace(">PASSWORD", f">{who}-word").split())
            admin.execute_command("ACL", "SETUSER", "admin", "on", ">admin-word", "allkeys", "allchannels", "+@all")
            admin.execute_command("ACL", "SETUSER", "default", "off")
        # Its own goodbye needs no user: it is ended by a signal.
        yield made


def url_of(server: Server, who: str) -> str:
    """The store's URL for one of the users."""
    user = "admin" if who == "admin" else f"gpulockd-{who}"
    return f"unix://{user}:{who}-word@{server.socket_path}"


@pytest.fixture(scope="module")
def daemon(server: Server) -> Iterator[Daemon]:
    """A daemon that has the daemon's rights."""
    with one_daemon("--redis", url_of(server, "daemon"), "--pool", "shop", config=CONFIG) as made:
        yield made


def test_a_client_can_do_all_that_the_library_does(server: Server, daemon: Daemon) -> None:
    """Locks, both forms, a queue, progress, time-outs, events."""
    env = clean_env(GPULOCKD_REDIS_URL=url_of(server, "client"), GPULOCKD_POOL="shop", GPULOCKD_SOCKET=daemon.socket)
    done = subprocess.run([sys.executable, "-c", WORK], env=env, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert "done" in done.stdout
    assert "busy" in done.stdout
    assert "NOPERM" not in done.stderr + daemon.log
    assert "client-word" not in done.stdout + done.stderr
    assert "daemon-word" not in daemon.log


async def test_the_daemon_can_do_all_that_it_does(daemon: Daemon) -> None:
    """Its offer, its statistics, its configuration, its alerts; and it tells nobody its password."""
    changed = await daemon.ask(
        "POST", "/api/v1/config", {"set": {"gpu_lock": {"poll_interval": 0.7}}, "unvalidated": True}
    )
    assert changed.status == 200, changed.json
    for path in ("/readyz", "/api/v1/config", "/api/v1/alerts", "/api/v1/history", "/api/v1/statistics", "/metrics"):
        answer = await daemon.get(path)
        assert answer.status == 200, (path, answer.body)
        assert b"daemon-word" not in answer.body, path
    assert "NOPERM" not in daemon.log


@pytest.mark.parametrize(
    "words",
    [
        ("EVAL", "return 1", "0"),
        ("SCRIPT", "LOAD", "return 1"),
        ("FUNCTION", "LOAD", "#!lua name=evil\nredis.register_function('evil', function() return 1 end)"),
        ("FUNCTION", "FLUSH"),
        ("KEYS", "*"),
        ("SCAN", "0"),
        ("FLUSHALL",),
        ("FLUSHDB",),
        ("SWAPDB", "0", "1"),
        ("CONFIG", "GET", "*"),
        ("CONFIG", "SET", "maxmemory-policy", "allkeys-lru"),
        ("ACL", "LIST"),
        ("ACL", "SETUSER", "me", "on"),
        ("SHUTDOWN",),
        ("REPLICAOF", "NO", "ONE"),
        ("CLIENT", "KILL", "ID", "1"),
        ("CLIENT", "PAUSE", "1"),
        ("MONITOR",),
        ("MODULE", "LIST"),
        ("GET", "another"),
        ("SET", "another", "1"),
        ("HSET", "gpulockd:{other}:meta", "token", "1"),
        ("HSET", "gpulockd:{fleet}:config", "live", "{}"),
        ("SADD", "gpulockd:{fleet}:hosts", "x"),
        ("PUBLISH", "gpulockd:{other}:events", "x"),
        ("RENAME", "gpulockd:{shop}:meta", "gpulockd:{shop}:other"),
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_a_client_can_do_nothing_else(server: Server, daemon: Daemon, words: tuple[str, ...]) -> None:
    """Whoever has a client's password must not reach other keys, code or the server itself."""
    with (
        redis.Redis.from_url(url_of(server, "client")) as client,
        pytest.raises((redis.exceptions.NoPermissionError, redis.exceptions.ResponseError), match=r"permission|NOPERM"),
    ):
        client.execute_command(*words)


def test_the_daemon_too_has_no_more_than_it_needs(server: Server, daemon: Daemon) -> None:
    """A daemon that is taken over must not take the server over."""
    with redis.Redis.from_url(url_of(server, "daemon")) as client:
        for words in (("EVAL", "return 1", "0"), ("FLUSHALL",), ("CONFIG", "SET", "dir", "/tmp"), ("SET", "a", "1")):
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.execute_command(*words)


def test_a_client_waits_for_a_daemon_where_the_functions_are_missing(server: Server, daemon: Daemon) -> None:
    """It may not load code itself; that is no misconfiguration of its own."""
    with redis.Redis.from_url(url_of(server, "admin")) as admin:
        admin.execute_command("FUNCTION", "FLUSH")
    env = clean_env(GPULOCKD_REDIS_URL=url_of(server, "client"), GPULOCKD_POOL="shop", GPULOCKD_SOCKET=daemon.socket)
    program = "from gpulockd import gpu_lock\nwith gpu_lock(max_wait_time=20): print('held')"
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=100)
    assert done.stdout.strip() == "held", done.stderr


def test_the_list_has_every_command_of_the_functions() -> None:
    """A new one in a Lua file would fail only where an ACL is used."""
    called = set()
    for file in (ROOT / "gpulockd/ledger/lua").rglob("*.lua"):
        called |= {name.lower() for name in re.findall(r"call\('([A-Z]+)'", file.read_text())}
    allowed = {command.partition("|")[0] for command in access.COMMANDS}
    assert called <= allowed


def test_the_words_are_for_people_too() -> None:
    """They copy two lines."""
    said = call(None, "doctor", "--redis-acl", "--pool", "shop")
    assert [line.split()[2] for line in said.stdout.splitlines() if line.startswith("ACL")] == [
        "gpulockd-client",
        "gpulockd-daemon",
    ]
    assert call(None, "doctor", "--redis-acl", "--pool", "a b").returncode == 2
    assert call(None, "doctor", "--pool", "shop").returncode == 2
