"""Commands of one thread to a cluster: redis-py's connections, but our own way to who has the keys."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

import redis
from redis import exceptions as broken

from gpulockd.ledger import address
from gpulockd.ledger.wire import slots
from gpulockd.ledger.wire.cluster import PAUSE_S, SOON, WHO_ASKS
from gpulockd.ledger.wire.slots import Node

_AWAY = (broken.ConnectionError, broken.TimeoutError, OSError)
_UNSERVED = (broken.ClusterDownError, broken.MasterDownError, broken.ReadOnlyError, broken.BusyLoadingError)


class BlockingCluster:
    """The servers of a cluster. Used by one thread at a time."""

    def __init__(self, url: str, *, deadline_s: float, name: str) -> None:
        """:param deadline_s: of each command (in seconds)"""
        self._url = url
        self._deadline_s = deadline_s
        self._name = name
        self._slots = slots.of_cluster(url)
        self._servers: dict[Node, redis.Redis] = {}

    def execute_command(self, *words: Any) -> Any:
        """Send a command to who has its keys and return the reply.

        :raises RedisError: of redis-py, also if nobody has the keys
        """
        asked: list[Node] = []
        try:
            return self._follow(words, asked)
        except (*_AWAY, *_UNSERVED):
            if asked:
                self._slots.doubt(asked[-1])
                self._hang_up(asked[-1])
            raise

    def load(self, library: str, words: tuple[Any, ...]) -> None:
        """Give the server that has the keys of `words` a library of functions."""
        node = self._owner(slots.slot_of_command(words))
        self._run(self._server(node), ("FUNCTION LOAD", "REPLACE", library), False)

    def _follow(self, words: tuple[Any, ...], asked: list[Node]) -> Any:
        slot = slots.slot_of_command(words)
        until_s = time.monotonic() + self._deadline_s / 2
        node, asking = self._owner(slot), False
        while True:
            asked.append(node)
            try:
                return self._run(self._server(node), words, asking)
            except (broken.AskError, broken.TryAgainError) as refused:
                if time.monotonic() > until_s:
                    raise
                if isinstance(refused, broken.TryAgainError) or len(asked) > SOON:
                    time.sleep(PAUSE_S)
                node, asking = self._next(refused, slot, node)

    def _next(self, refused: broken.AskError | broken.TryAgainError, slot: int, asked: Node) -> tuple[Node, bool]:
        """Who is asked next, and whether for keys that it does not have yet."""
        if isinstance(refused, broken.MovedError):
            self._slots.moved(slot, Node(refused.host or asked.host, int(refused.port)))
        elif isinstance(refused, broken.AskError):
            return Node(refused.host or asked.host, int(refused.port)), True
        return self._owner(slot), False

    def _owner(self, slot: int) -> Node:
        if self._slots.owner(slot) is None:
            self._learn()
        node = self._slots.owner(slot)
        if node is None:
            raise broken.ClusterDownError(f"CLUSTERDOWN no server of the cluster has the keys (slot {slot})")
        return node

    def _learn(self) -> None:
        """Ask one server after the other who has which keys, until one has answered."""
        trouble: Exception = broken.ConnectionError("the cluster's URL names no server")
        for node in self._slots.to_ask():
            try:
                once = self._dialled(node, self._deadline_s / 4, WHO_ASKS)
                with once:
                    return self._slots.learn(once.execute_command("CLUSTER SLOTS"), node)
            except (broken.RedisError, OSError) as error:
                trouble = error
        raise trouble

    @staticmethod
    def _run(server: redis.Redis, words: tuple[Any, ...], asking: bool) -> Any:
        run: Any = server.execute_command
        if asking:
            run("ASKING")  # it has one connection, so this counts for the very next command
        return run(*words)

    def _server(self, node: Node) -> redis.Redis:
        found = self._servers.get(node)
        if found is None:
            found = self._servers[node] = self._dialled(node, self._deadline_s, self._name)
        return found

    def _dialled(self, node: Node, deadline_s: float, name: str) -> redis.Redis:
        url = address.url_of_node(self._url, *node)
        client = address.blocking_client(url, deadline_s=deadline_s, name=name)
        assert isinstance(client, redis.Redis)
        return client

    def _hang_up(self, node: Node) -> None:
        server = self._servers.pop(node, None)
        if server is not None:
            with suppress(broken.RedisError, OSError):
                server.close()

    def descriptors(self) -> list[int]:
        """The descriptors of its open sockets."""
        return [descriptor for server in self._servers.values() for descriptor in address.descriptors(server)]

    def close(self) -> None:
        """Close the connections; never raises for a server that is away."""
        for node in list(self._servers):
            self._hang_up(node)
