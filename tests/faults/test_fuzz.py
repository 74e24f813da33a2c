"""Two thousand damaged inputs at each door: every one is answered, refused or passed over, and nothing else happens."""

from __future__ import annotations

import contextlib
import errno
import json
import random
import re
import socket
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import redis

from gpulockd import gpu_lock
from gpulockd.client import process
from gpulockd.daemon.configuration import parsed
from gpulockd.daemon.fence import Lease, Party
from gpulockd.daemon.journal import Journal
from gpulockd.errors import ConfigError
from gpulockd.ledger.keys import PoolKeys
from tests.daemons import CALM, Daemon
from tests.faults.noise import damaged, noise, seed_of
from tests.pools import client_here, offer, simulated, snapshot
from tests.servers import Server
from tests.system.commands import one_daemon

ROOT = Path(__file__).resolve().parents[2]
HELLO = b'{"verb": "hello", "leases": []}\n'

LINES = [
    b'{"verb": "hello", "session": "s1", "held": [{"id": "t", "token": 7, "gpus": ["gpu_lock:0"]}], "as_of": 9}',
    b'{"verb": "admit", "session": "s1", "lease": {"id": "t1", "token": 1700000000000, "gpus": ["gpu_lock:0"]}}',
    b'{"verb": "admit", "session": "s1", "lease": {"id": "t2", "token": 5, "of": "t1", "assertion": {"id": "t2"}}}',
    b'{"verb": "leave", "lease": "t1", "token": 1700000000000, "lost": true}',
]

REQUESTS = [
    b"GET /api/v1/status HTTP/1.1\r\nHost: localhost:PORT\r\nAccept: */*\r\n\r\n",
    b"GET /api/v1/leases/gpu_lock%3A0?x=1 HTTP/1.1\r\nHost: localhost:PORT\r\nConnection: close\r\n\r\n",
    b"POST /api/v1/config HTTP/1.1\r\nHost: localhost:PORT\r\nAuthorization: Bearer x\r\nContent-Length: 2\r\n\r\n{}",
    b"POST /api/v1/leases HTTP/1.1\r\nHost: localhost:PORT\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    b"DELETE /api/v1/leases/0 HTTP/1.1\r\nHost: localhost:PORT\r\nContent-Length: 0\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: localhost:PORT\r\nOrigin: null\r\nUpgrade: websocket\r\n\r\n",
]

RINGS = [
    b"claim 0123456789abcdef 1700000000001 gpu_lock:0",
    b"granted 0123456789abcdef 1700000000001 gpu_lock:0",
    b"lost 0123456789abcdef 1700000000001 died",
]
MESSAGES = [
    *RINGS,
    b"echo 1 a:1 b:2",
    b"published 7",
    b"stopping 0123456789abcdef 1700000000001 soft",
    b'{"seq":7,"type":"lock_acquired","at_ms":1}',
]


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """One daemon for all that comes in."""
    with one_daemon(config=CALM) as made:
        yield made


def is_well(daemon: Daemon) -> bool:
    """Whether it runs, answers, and has met nothing that it did not expect."""
    with socket.socket(socket.AF_UNIX) as guard:
        guard.settimeout(20)
        guard.connect(str(daemon.runtime / "guard.sock"))
        guard.sendall(HELLO)
        said = json.loads(guard.makefile("rb").readline())
    return daemon.process.poll() is None and said["pool"] == daemon.pool and "Traceback" not in daemon.log


@contextlib.contextmanager
def hung_up_on() -> Iterator[None]:
    """The daemon may close as soon as it has heard enough: while it is told more, or before our side is shut."""
    try:
        yield
    except (BrokenPipeError, ConnectionResetError):
        return
    except OSError as error:
        if error.errno != errno.ENOTCONN:
            raise


def heard_of(web: socket.socket) -> bytes:
    """All that is said until it hangs up."""
    said = b""
    while part := web.recv(65536):
        said += part
    return said


def test_no_line_ends_the_guard_or_goes_unanswered(daemon: Daemon) -> None:
    """Every user of the host may write to its socket."""
    lines = (line.replace(b"\n", b" ") for line in noise("guard", LINES))
    while batch := list(islice(lines, 20)):
        with socket.socket(socket.AF_UNIX) as guard:
            guard.settimeout(20)
            guard.connect(str(daemon.runtime / "guard.sock"))
            guard.sendall(b"\n".join(batch) + b"\n" + HELLO)
            heard = guard.makefile("rb")
            while "pool" not in (said := json.loads(heard.readline())):
                assert said.keys() & {"error", "refused", "waits", "admitted", "lost", "alive", "frozen"}, said
    assert is_well(daemon)


def test_no_request_is_an_error_of_the_server(daemon: Daemon) -> None:
    """A web server that trips over a byte is one that somebody will trip on purpose."""
    for number, raw in enumerate(noise("http", [one.replace(b"PORT", b"%d" % daemon.port) for one in REQUESTS])):
        family, where = (socket.AF_INET, ("127.0.0.1", daemon.port)) if number % 2 else (socket.AF_UNIX, daemon.socket)
        with socket.socket(family) as web:
            web.settimeout(20)
            web.connect(where)
            with hung_up_on():
                web.sendall(raw)
                web.shutdown(socket.SHUT_WR)
                said = heard_of(web)
                for status in re.findall(rb"^HTTP/1\.1 (\d+)", said, re.MULTILINE):
                    assert int(status) < 500, (raw, said)
    assert is_well(daemon)


def test_no_file_is_anything_but_settings_or_an_error() -> None:
    """Editors, merges and full disks leave such files."""
    blocks = re.split(rb"\n(?=\w)", (ROOT / "config.yml").read_bytes())
    plain = [re.sub(rb"#.*", b"", block) for block in blocks]
    examples = [block for block in plain if 10 < len(block) < 300]
    for content in noise("config", examples):
        with contextlib.suppress(ConfigError):
            parsed(content, "config.yml")


def test_no_damage_to_the_guards_record_lets_anybody_in(tmp_path: Path) -> None:
    """A line that is not whole is no line: what is read was written, or is not there."""
    path = tmp_path / "guard.log"
    journal = Journal(str(path), "boot")
    fence, _ = journal.load()
    for token in range(1, 9):
        party = Party(ticket=f"t{token}", session="s", pid=4711, started=99, uid=1000)
        lease = Lease(id=f"t{token}", token=token, gpus=(f"gpu_lock:{token}",), exclusive=True, parties=[party])
        journal.entered(lease)
        fence.enter(lease)
    journal.over(fence.leases["t2"])
    journal.close()
    whole = path.read_bytes()
    for content in noise("record", [whole]):
        path.write_bytes(content)
        again = Journal(str(path), "boot")
        found, _ = again.load()
        again.close()
        for id, lease in found.leases.items():
            assert lease == fence.leases[id]
        assert found.token <= 8


def test_no_message_to_a_session_costs_a_lease_or_grants_one(valkey_server: Server, pool: str) -> None:
    """Whoever may write to the store may ring; the ledger alone says who holds what."""
    offer(valkey_server, pool, simulated(1))
    with client_here(valkey_server.url, pool), redis.Redis.from_url(valkey_server.url) as store:
        with gpu_lock(gpus=[0], task="held") as lease:
            channels = store.pubsub_channels(f"gpulockd:{{{pool}}}:session:*")
            assert channels
            examples = [one.replace(b"0123456789abcdef", lease.id.encode()) for one in MESSAGES[:6]]
            for payload in noise("doorbell", [*MESSAGES, *examples]):
                for channel in channels:
                    store.publish(channel, payload)
            assert not lease.lost.is_set()
            assert [one.id for one in snapshot(valkey_server, pool).leases] == [lease.id]
        process.say_goodbye()


def test_no_message_to_the_daemons_channels_ends_it() -> None:
    """A daemon that dies of a message dies again at the next one."""
    with one_daemon(config=CALM) as daemon, redis.Redis(unix_socket_path=str(daemon.runtime / "store.sock")) as store:
        channels = [PoolKeys(daemon.pool).events_channel, *(one.decode() for one in store.pubsub_channels("*"))]
        for payload in noise("channels", MESSAGES):
            for channel in channels:
                store.publish(channel, payload)
        assert is_well(daemon)


def test_a_damage_is_the_same_for_the_same_seed() -> None:
    """Else nobody could repeat what was found."""
    made = [damaged(random.Random(7), b"abcdef") for _ in range(2)]
    assert made[0] == made[1]
    assert seed_of("itself") > 0
