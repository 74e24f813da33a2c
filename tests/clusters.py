"""A real cluster for tests: three masters with a replica each, six processes on this host.

Its law: nothing fails over by itself. A node counts as dead only after seconds in which nobody heard of it, and a test
that kills one makes the others notice it soon with `alert`.
"""

from __future__ import annotations

import binascii
import contextlib
import random
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import redis

from gpulockd.ledger.access import daemon_rule
from tests.servers import NOT_PERSISTENT, Server
from tests.states import until_blocking

MASTERS = 3
SLOTS = 16384
USER, PASSWORD = "fleet", "secret/@,:"
PATIENT_MS, HASTY_MS = 15_000, 1_000
SETTLED_WITHIN_S = 60.0


def slot_of(tag: str) -> int:
    """The slot of all keys with that hash tag."""
    return binascii.crc_hqx(tag.encode(), 0) % SLOTS


class Node:
    """One process of the cluster, reached by its unix socket where the cluster itself is not to be asked."""

    def __init__(self, server: Server, port: int, bus: int) -> None:
        self.server = server
        self.port = port
        self.bus = bus
        self.id = str(self.ask("CLUSTER", "MYID"))

    def __repr__(self) -> str:
        return f"<Node {self.port} {self.server!r}>"

    @property
    def address(self) -> str:
        """Where clients find it."""
        return f"127.0.0.1:{self.port}"

    def ask(self, *words: object) -> Any:
        """Send it one command and return its answer as text."""
        with redis.Redis.from_url(self.server.url, decode_responses=True, socket_timeout=20) as client:
            return client.execute_command(*words)

    def refused(self, code: str) -> int:
        """How often it has answered with that error."""
        said = self.ask("INFO", "errorstats").get(f"errorstat_{code}")
        return int(said["count"]) if said else 0

    def clients(self) -> list[dict[str, str]]:
        """Who is connected to it."""
        rows: list[dict[str, str]] = self.ask("CLIENT LIST")
        return rows

    def view(self) -> dict[str, dict[str, Any]]:
        """Its picture of the cluster: node id -> what it says of it."""
        with redis.Redis.from_url(self.server.url, decode_responses=True, socket_timeout=20) as client:
            rows: dict[str, dict[str, Any]] = client.execute_command("CLUSTER NODES")
        return {row["node_id"]: {"address": address} | row for address, row in rows.items()}


class Cluster:
    """Three masters, three replicas. A test that harmed it leaves it as `heal` makes it."""

    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = nodes
        self.nobodys_port = _free_ports()[0]

    @property
    def alive(self) -> list[Node]:
        """The nodes whose process runs and is not stopped."""
        return [node for node in self.nodes if node.server.running and not node.server.paused]

    def url(self, *nodes: Node) -> str:
        """How a program is told of the cluster, by these of its nodes; the first address of all is nobody's."""
        addresses = ",".join(node.address for node in nodes or self.nodes[:MASTERS])
        return f"redis+cluster://{USER}:{quote(PASSWORD, safe='')}@127.0.0.1:{self.nobodys_port},{addresses}"

    def masters(self) -> list[Node]:
        """Those that are masters of some slots now."""
        return [node for node in self.alive if "master" in (me := node.view()[node.id])["flags"] and me["slots"]]

    def master_of(self, tag: str) -> Node:
        """Who has the keys of that hash tag, as all living nodes see it."""
        found: list[Node] = []

        def agreed() -> bool:
            owners = {self._owner(node, slot_of(tag)) for node in self.alive}
            found[:] = [node for node in self.alive if {node.id} == owners]
            return bool(found)

        until_blocking(agreed, SETTLED_WITHIN_S)
        return found[0]

    @staticmethod
    def _owner(node: Node, slot: int) -> str:
        for first, last, master, *_ in node.ask("CLUSTER", "SLOTS"):
            if int(first) <= slot <= int(last):
                return str(master[2])
        return ""

    def replica_of(self, master: Node) -> Node:
        """A living replica of that master."""
        view = master.view()
        return next(node for node in self.alive if view[node.id]["master_id"] == master.id)

    def pool_at(self, node: Node, beginning: str) -> str:
        """A pool's name whose keys that master has now."""
        for _ in range(1000):
            pool = f"{beginning}-{random.randrange(1 << 30):x}"
            if self._owner(node, slot_of(pool)) == node.id:
                return pool
        raise AssertionError(f"{node} has no slots")

    @contextlib.contextmanager
    def alert(self) -> Iterator[None]:
        """Let a node that is silent for a second count as dead, for the time of the block."""
        self._patience(HASTY_MS)
        try:
            yield
        finally:
            self._patience(PATIENT_MS)

    def _patience(self, node_timeout_ms: int) -> None:
        for node in self.alive:
            node.ask("CONFIG", "SET", "cluster-node-timeout", node_timeout_ms)

    @contextlib.contextmanager
    def moving(self, tag: str, target: Node) -> Iterator[None]:
        """Give the slot of that tag to another master, key by key, as `--cluster reshard` does. In the block the slot
        is half moved: the pool's `meta` has gone, and nothing else."""
        source, slot = self.master_of(tag), slot_of(tag)
        target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", target.id)
        _migrate(source, target, f"gpulockd:{{{tag}}}:meta")
        yield
        while keys := source.ask("CLUSTER", "GETKEYSINSLOT", slot, 10):
            _migrate(source, target, *keys)
        for node in dict.fromkeys((target, source, *self.masters())):
            node.ask("CLUSTER", "SETSLOT", slot, "NODE", target.id)

    def heal(self) -> None:
        """Start what is dead, and return when each of three masters has a replica that heard all."""
        for node in self.nodes:
            node.server.resume()
            node.server.start()
        with self.alert():  # who was dead is taken back the sooner, too
            until_blocking(self._is_whole, SETTLED_WITHIN_S)

    def _is_whole(self) -> bool:
        with contextlib.suppress(redis.RedisError):
            return all(map(_is_well, self.nodes)) and len(self.masters()) == MASTERS
        return False


def _migrate(source: Node, target: Node, *keys: str) -> None:
    source.ask("MIGRATE", "127.0.0.1", target.port, "", 0, 10_000, "KEYS", *keys)


def _is_well(node: Node) -> bool:
    said = node.ask("INFO", "replication")
    if "cluster_state:ok" not in node.ask("CLUSTER", "INFO") or any(
        "fail" in row["flags"] for row in node.view().values()
    ):
        return False
    return bool(said["master_link_status"] == "up" if said["role"] == "slave" else said["connected_slaves"] == 1)


@contextlib.contextmanager
def running_cluster(binary: str) -> Iterator[Cluster]:
    """Start a cluster of that program, and end it. `USER` may do there what a daemon must, and nothing more."""
    with contextlib.ExitStack() as stack:
        nodes = [_started(stack, binary) for _ in range(2 * MASTERS)]
        masters, replicas = nodes[:MASTERS], nodes[MASTERS:]
        share = SLOTS // MASTERS
        for n, master in enumerate(masters):
            first, last = n * share, SLOTS - 1 if n == MASTERS - 1 else (n + 1) * share - 1
            master.ask("CLUSTER", "ADDSLOTSRANGE", first, last)
            master.ask("CLUSTER", "SET-CONFIG-EPOCH", n + 1)
        for node in nodes[1:]:
            nodes[0].ask("CLUSTER", "MEET", "127.0.0.1", node.port, node.bus)
        until_blocking(lambda: all(len(node.view()) == len(nodes) for node in nodes), SETTLED_WITHIN_S)
        for master, replica in zip(masters, replicas, strict=True):
            replica.ask("CLUSTER", "REPLICATE", master.id)
        cluster = Cluster(nodes)
        until_blocking(cluster._is_whole, SETTLED_WITHIN_S)
        yield cluster


def _started(stack: contextlib.ExitStack, binary: str) -> Node:
    """A node on two free ports; another program may take them before it does."""
    for _ in range(5):
        port, bus = _free_ports()
        words = ("--bind", "127.0.0.1", "--port", str(port), "--cluster-enabled", "yes", "--cluster-port", str(bus))
        more = ("--cluster-node-timeout", str(PATIENT_MS), "--cluster-replica-validity-factor", "0")
        sync = ("--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1")
        user = (
            "--user",
            *daemon_rule(USER).removeprefix("ACL SETUSER ").replace(">PASSWORD", f">{PASSWORD}").split(" "),
        )
        with contextlib.suppress(RuntimeError):
            server = stack.enter_context(Server(binary, args=(*NOT_PERSISTENT, *words, *more, *sync, *user)))
            return Node(server, port, bus)
    raise AssertionError("no two ports stay free")


def _free_ports() -> tuple[int, int]:
    """Two ports that nobody uses now, and that the kernel gives to no outgoing connection meanwhile."""
    found: set[int] = set()
    while len(found) < 2:
        port = random.randrange(10_000, 32_000)
        with socket.socket() as door, contextlib.suppress(OSError):
            door.bind(("127.0.0.1", port))
            found.add(port)
    first, second = found
    return first, second
