"""Attacks on real daemons that no other test tries. The whole list is `tests.faults.security`."""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from prometheus_client.parser import text_string_to_metric_families

from gpulockd import gpu_lock
from gpulockd.cli import http
from gpulockd.errors import GpuLockError
from gpulockd.places import fallback_runtime, find_runtime
from gpulockd.web.auth import OVERFLOW_UID, names_everybody
from tests.daemons import CALM, Daemon
from tests.faults.noise import noise
from tests.pools import client_here
from tests.states import until_blocking
from tests.system.commands import ROOT, call, one_daemon

ROOT_ONLY = pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
STRANGER = 65533


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """One daemon for all, which other users of the host can reach."""
    with one_daemon(config=CALM | {"settle": {"policy": "never"}}) as made:
        for folder in (made.runtime.parent, made.runtime):
            folder.chmod(0o755)
        yield made


def asked_as(uid: int, daemon: Daemon, method: str, path: str, body: str) -> tuple[int, Any]:
    """What a user is answered over the unix socket. All that this needs is loaded before it becomes that user."""
    program = """if 1:
        import http.client, json, os, socket, sys
        uid, path, method, target, body = sys.argv[1:]
        asked = http.client.HTTPConnection("localhost", timeout=20)
        os.setgroups([]); os.setgid(int(uid)); os.setuid(int(uid))
        asked.sock = socket.socket(socket.AF_UNIX); asked.sock.connect(path)
        asked.request(method, target, body)
        answer = asked.getresponse()
        print(json.dumps([answer.status, json.loads(answer.readline())]))
    """
    words = [sys.executable, "-I", "-c", program, str(uid), daemon.socket, method, path, body]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    status, said = json.loads(done.stdout)
    return status, said


@ROOT_ONLY
def test_nobody_joins_the_lease_of_another_user() -> None:
    """Its id and token are told to all who may read; without a guard there is nobody else who looks at who joins."""
    with one_daemon(config=CALM | {"gpus": {"guard": False}}, simulate=1) as daemon:
        for folder in (daemon.runtime.parent, daemon.runtime):
            folder.chmod(0o755)
        status, held = asked_as(os.getuid(), daemon, "POST", "/api/v1/leases", '{"ttl": "5m"}')
        assert (status, held["state"]) == (200, "granted")
        joins = json.dumps({"ttl": "1m", "inside": [held["lease"], held["token"]]})
        status, refused = asked_as(STRANGER, daemon, "POST", "/api/v1/leases", joins)
        assert (status, refused["kind"]) == (403, "forbidden")
        status, joined = asked_as(os.getuid(), daemon, "POST", "/api/v1/leases", joins)
        assert (status, joined["state"], joined["token"]) == (200, "granted", held["token"])


def test_what_a_message_says_of_its_sender_counts_for_nothing(daemon: Daemon) -> None:
    """A pid in a message would be a pid that the guard ends; so the process that is recorded is the one that spoke."""
    with socket.socket(socket.AF_UNIX) as liar:
        liar.settimeout(20)
        liar.connect(str(daemon.runtime / "guard.sock"))
        token = round(time.time() * 1000) + 1000
        lease = {"id": "f" * 32, "token": token, "gpus": ["gpu_lock:1"], "pid": 1, "uid": 0}
        said = {"verb": "admit", "session": "liar", "pid": 1, "uid": 0, "process": {"pid": 1}, "lease": lease}
        liar.sendall(json.dumps(said).encode() + b"\n")
        assert "admitted" in json.loads(liar.makefile("rb").readline())
        record = (daemon.state / "guard.log").read_text() if (daemon.state / "guard.log").exists() else ""
        kept = record or "".join(p.read_text(errors="replace") for p in daemon.state.glob("*guard*") if p.is_file())
        assert f'"pid":{os.getpid()}' in kept
        assert '"pid":1,' not in kept


@ROOT_ONLY
def test_a_user_whom_the_kernel_cannot_name_changes_nothing(daemon: Daemon) -> None:
    """Seen from another user namespace everybody has that uid: whoever had it would own the leases of all of them."""
    if names_everybody():
        pytest.skip("this user namespace can name every user, so that uid is one of them")
    for method, path, body in (("POST", "/api/v1/leases", "{}"), ("DELETE", "/api/v1/leases/0", "")):
        status, said = asked_as(OVERFLOW_UID, daemon, method, path, body)
        assert (status, said["kind"]) == (403, "forbidden")


@ROOT_ONLY
def test_nobody_is_a_user_where_the_kernel_names_everybody(daemon: Daemon) -> None:
    """Services run as `nobody`; on a plain host its number means that user alone."""
    if not names_everybody():
        pytest.skip("this user namespace cannot name every user")
    status, said = asked_as(OVERFLOW_UID, daemon, "POST", "/api/v1/leases", "{}")
    assert status == 200, said


def test_only_a_whole_map_of_users_names_everybody(tmp_path: Path) -> None:
    """With one number left out, whoever has it is seen as 65534."""
    (tmp_path / "whole").write_text("         0          0 4294967295\n")
    (tmp_path / "part").write_text("         0          0      65536\n")
    (tmp_path / "moved").write_text("         0     100000 4294967295\n")
    told = [names_everybody(str(tmp_path / name)) for name in ("whole", "part", "moved", "none")]
    assert told == [True, False, False, False]


def test_who_does_not_read_its_stream_holds_up_nobody(daemon: Daemon) -> None:
    """A browser tab that sleeps must cost neither memory nor another reader."""
    deaf = []
    for _ in range(20):
        reader = socket.socket()
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        reader.connect(("127.0.0.1", daemon.port))
        reader.sendall(f"GET /api/v1/events HTTP/1.1\r\nhost: localhost:{daemon.port}\r\n\r\n".encode())
        deaf.append(reader)
    with client_here(daemon.store_url, daemon.pool):
        for n in range(100):
            with gpu_lock(gpus=[0], task=f"t{n}-{'x' * 150}"):
                pass
    with http.Daemon(daemon.socket) as asked:
        assert asked.get("/livez")
    until_blocking(lambda: call(daemon, "events", "--since", "1h", "--json").stdout.count('"lock_released"') >= 100)
    for reader in deaf:
        reader.close()


NAMES = [b"gpu_lock:0", b"}", b"a}:b{c", b"gpu_lock:0}:x", b"*", b"a\r\nDEL x", b"\0", b"{fleet}", b"..", b"a" * 300]


async def test_no_name_reaches_another_key(daemon: Daemon) -> None:
    """Keys are made of names: one with a brace would be in another slot, one with a star would be many."""
    for number, raw in enumerate([*NAMES, *noise("names", NAMES, 150)]):
        name = raw.decode("utf-8", "replace")
        wish = {"key": name} if number % 2 else {"task": name, "task_id": name, "gpus": [0]}
        opened = await daemon.open("POST", "/api/v1/leases", wish | {"max_wait_time": 5})
        assert opened.status == 200 or 400 <= opened.status < 500
        await opened.aclose()
    with redis.Redis(unix_socket_path=str(daemon.runtime / "store.sock")) as store:
        ours = (f"gpulockd:{{{daemon.pool}}}:".encode(), b"gpulockd:{fleet}:")
        assert all(key.startswith(ours) for key in store.scan_iter(count=1000))


ENDLESS = ["NaN", "Infinity", "-Infinity", "1e309", "-1000", "9" * 400, '"9e9d"', '"' + "9" * 4000 + 's"']


@pytest.mark.parametrize("field", ["max_wait_time", "lock_timeout", "memory", "priority", "count", "ttl"])
@pytest.mark.parametrize(
    "number", ["NaN", "Infinity", "-Infinity", "1e309", "-1000", "9" * 400, '"9e9d"', '"' + "9" * 4000 + 's"']
)
async def test_no_number_without_end_is_taken(daemon: Daemon, field: str, number: str) -> None:
    """It would be a wait, a lease or a budget without end."""
    answer = await daemon.ask("POST", "/api/v1/leases", raw=f'{{"{field}": {number}}}'.encode())
    assert 400 <= answer.status < 500
    assert answer.json["hint"]


async def test_the_command_of_a_rollback_is_set_by_no_request(daemon: Daemon) -> None:
    """Who has the token may change settings, and not run programs."""
    for set_ in ({"config": {"restart": "touch /tmp/x"}}, {"config.restart": "touch /tmp/x"}):
        answer = await daemon.ask("POST", "/api/v1/config", {"set": set_})
        assert 400 <= answer.status < 500, answer.body


def test_a_strangers_folder_in_tmp_is_no_daemon() -> None:
    """Everybody may make a folder there and listen in it: a client would hand over its locks."""
    uid = 100_000 + secrets.randbelow(1_000_000)
    folder = Path(fallback_runtime(uid))
    folder.mkdir()
    try:
        (folder / "api.sock").touch()
        (folder / "store.json").write_text('{"pool": "evil", "url": "redis://evil"}')
        assert find_runtime({}, uid) is None or find_runtime({}, uid) != (str(folder), str(folder / "api.sock"))
        assert find_runtime({}, os.getuid()) != (str(folder), str(folder / "api.sock"))
        if os.getuid() == 0:
            os.chown(folder, uid, uid)
            folder.chmod(0o777)
            assert find_runtime({"GPULOCKD_SOCKET": str(folder)}, uid) is None, "others may put sockets there"
    finally:
        (folder / "api.sock").unlink()
        (folder / "store.json").unlink()
        folder.rmdir()


@ROOT_ONLY
def test_a_strangers_folder_in_a_runtime_directory_that_all_may_write_to_is_no_daemon(tmp_path: Path) -> None:
    """Some containers say XDG_RUNTIME_DIR=/tmp, and root would take its store from whoever was there first."""
    folder = tmp_path / "gpulockd"
    folder.mkdir()
    (folder / "store.json").write_text('{"pool": "p", "url": "redis://there"}')
    own = (str(folder), str(folder / "api.sock"))
    for owner, is_daemon in ((0, True), (STRANGER, False)):
        os.chown(folder, owner, owner)
        assert (find_runtime({"XDG_RUNTIME_DIR": str(tmp_path)}, 0) == own) is is_daemon


@ROOT_ONLY
def test_nobody_else_may_signal_the_daemon(daemon: Daemon) -> None:
    """It reads its configuration again on one signal and ends on another."""
    program = f"import os; os.setuid({STRANGER})\nfor n in (1, 9, 15, 18, 19): os.kill({daemon.process.pid}, n)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert "PermissionError" in done.stderr
    assert daemon.process.poll() is None


async def test_metrics_name_nobody(daemon: Daemon) -> None:
    """They go to a server that more people read than may see who runs what."""
    holding = await daemon.open("POST", "/api/v1/leases", {"task": "canary-task", "task_id": "canary-id", "gpus": [0]})
    await holding.until("granted")
    text = (await daemon.get("/metrics")).body.decode()
    await holding.aclose()
    assert "canary-id" not in text
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            assert not sample.labels.keys() & {"user", "uid", "pid", "cmdline", "command", "host", "session", "task_id"}


def test_the_units_write_no_core() -> None:
    """A core has every secret of the process in it."""
    for unit in ("gpulockd.service", "gpulockd-store.service", "gpulockd-backup.service"):
        text = (ROOT / "systemd" / unit).read_text()
        assert re.search(r"^LimitCORE=0$", text, re.MULTILINE)
        assert "PrivateUsers=yes" not in text


def test_a_request_of_a_strangers_costs_no_trace() -> None:
    """What a program raises to its user names the cure and no line of ours."""
    with pytest.raises(GpuLockError) as refused:
        gpu_lock("a b\r\n")
    assert "Traceback" not in str(refused.value)
