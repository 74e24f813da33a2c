"""Which server of a cluster has which keys, as far as this process knows. Nothing here waits or asks.

Its law: what is known is a guess. A server that has not the keys says who has them, and after a failure another server
is asked than the one that told.
"""

from __future__ import annotations

import binascii
import random
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

from gpulockd.ledger import address
from gpulockd.ledger.wire.trouble import Broken

COUNT = 16384
UNSERVED = ("CLUSTERDOWN", "LOADING", "MASTERDOWN", "READONLY")
"""What a server answers that had the keys, or will have them; another may have them now."""


class Node(NamedTuple):
    """Where a server listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def slot_of(key: bytes) -> int:
    """The hash slot of a key: of what stands between its first braces, if anything does."""
    begin = key.find(b"{") + 1
    end = key.find(b"}", begin) if begin else -1
    return binascii.crc_hqx(key[begin:end] if end > begin else key, 0) % COUNT


def slot_of_command(words: Sequence[Any]) -> int:
    """The slot of what the ledger asks: a function by its first key, or a command whose first word is a key."""
    key = words[3 if words[0] in (b"FCALL", "FCALL") else 1]
    return slot_of(key if isinstance(key, bytes) else str(key).encode())


def sent_to(refusal: str, asked: Node) -> Node:
    """Who is named by `MOVED <slot> <host>:<port>` or by an ASK; without a host it is another port of the same one.

    :raises Broken: if nobody is named
    """
    host, colon, port = refusal.split(" ")[-1].rpartition(":")
    if not colon or not port.isdigit():
        raise Broken(f"it has not the keys, and says no address: {refusal}")
    return Node(host or asked.host, int(port))


class Slots:
    """What is known of one cluster. Every change is one step, for threads and loops share it."""

    def __init__(self, named: Sequence[Node]) -> None:
        """:param named: the servers that the URL names"""
        self._named = tuple(named)
        self._known: tuple[Node, ...] = ()
        self._ranges: tuple[tuple[int, int, Node], ...] = ()
        self._moved: dict[int, Node] = {}
        self._told: Node | None = None
        self._doubted: tuple[Node, ...] = ()

    def __repr__(self) -> str:
        return f"<Slots {', '.join(map(str, self._known or self._named))}>"

    def owner(self, slot: int) -> Node | None:
        """Who has the slot; None: it has to be asked."""
        moved = self._moved.get(slot)
        if moved is not None:
            return moved
        return next((node for first, last, node in self._ranges if first <= slot <= last), None)

    def to_ask(self) -> list[Node]:
        """Whom to ask who has what: in no order, for not all shall ask the same one, but the doubted last."""
        everybody = dict.fromkeys((*self._named, *self._known))
        doubted = self._doubted
        return sorted(everybody, key=lambda node: (node in doubted, random.random()))

    def learn(self, answer: Sequence[Any], told: Node) -> None:
        """Take what `CLUSTER SLOTS` has answered."""
        ranges, known = [], []
        for first, last, *servers in answer:
            nodes = [_node(server, told) for server in servers]
            known += nodes
            ranges.append((int(first), int(last), nodes[0]))
        self._known = tuple(dict.fromkeys(known))
        self._moved = {}
        self._told = told
        self._ranges = tuple(ranges)

    def moved(self, slot: int, node: Node) -> None:
        """A server has said who has the slot."""
        self._moved[slot] = node

    def doubt(self, node: Node) -> None:
        """That server did not do what was expected of it: ask anew, and rather others than it and who named it."""
        self._doubted = tuple(dict.fromkeys(one for one in (node, self._told) if one is not None))
        self._ranges = ()
        self._moved = {}


def _node(server: Sequence[Any], told: Node) -> Node:
    host, port = server[0] or b"", server[1]
    name = host.decode() if isinstance(host, bytes) else str(host)
    return Node(name if name not in ("", "?") else told.host, int(port))


@cache
def of_cluster(url: str) -> Slots:
    """What this process knows of the cluster that a URL names."""
    return Slots([Node(*place) for place in address.hosts(url)])
