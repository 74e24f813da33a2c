"""Commands to the servers of a cluster: each goes to the one that has the keys, wherever they have gone.

A command that was refused with MOVED, ASK or TRYAGAIN did not run, so it is sent again; nothing else is. Who died
or answers nothing is doubted, and the next command asks the others who has the keys now.
"""

from __future__ import annotations

import asyncio
from typing import Any

from gpulockd.ledger import address
from gpulockd.ledger.wire import slots
from gpulockd.ledger.wire.commands import WireCommands, read_info
from gpulockd.ledger.wire.slots import Node
from gpulockd.ledger.wire.trouble import Broken, Late, Refused

SENT_ON = ("MOVED", "ASK", "TRYAGAIN")
SOON = 2
"""So many servers are asked at once; who sends us on further is asked with pauses."""
PAUSE_S = 0.05
"""Before keys that are just being moved are tried again (in seconds)."""
WHO_ASKS = "gpulockd-slots"


async def ask_any(url: str, words: tuple[Any, ...], deadline_s: float) -> tuple[Any, Node]:
    """Ask one server after the other until one has answered. Returns what it said, and who it was.

    :param deadline_s: of all; a server that is silent for a quarter of it is passed over
    :raises OSError: if none could be reached
    :raises Refused: if none would tell
    """
    trouble: Exception = Broken("the cluster's URL names no server")
    for node in slots.of_cluster(url).to_ask():
        once = WireCommands(address.url_of_node(url, *node), deadline_s=deadline_s, name=WHO_ASKS)
        try:
            async with asyncio.timeout(deadline_s / 4):
                return await once.run(words), node
        except TimeoutError:
            trouble = Late(f"gave no answer within {deadline_s / 4:g} s ({node})")
        except (Refused, OSError) as error:
            trouble = error
        finally:
            await once.aclose()
    raise trouble


async def owner_of(url: str, slot: int, deadline_s: float) -> Node:
    """Return who has the slot, asking only if nobody is known to.

    :raises Refused: if nobody has it
    """
    known = slots.of_cluster(url)
    node = known.owner(slot)
    if node is None:
        known.learn(*await ask_any(url, ("CLUSTER", "SLOTS"), deadline_s))
        node = known.owner(slot)
    if node is None:
        raise Refused(f"CLUSTERDOWN no server of the cluster has the keys (slot {slot})")
    return node


class ClusterCommands:
    """Commands of one event loop to a cluster: a connection to each server that has keys of ours."""

    def __init__(self, url: str, *, deadline_s: float, name: str) -> None:
        """:param deadline_s: of each command, with all the ways that it takes (in seconds)"""
        self._url = url
        self._deadline_s = deadline_s
        self._name = name
        self._slots = slots.of_cluster(url)
        self._servers: dict[Node, WireCommands] = {}
        self._asking = asyncio.Lock()

    def begin(self, words: tuple[Any, ...]) -> asyncio.Future[Any] | None:
        """None: which server it goes to may take more than a write."""
        return None

    async def run(self, words: tuple[Any, ...]) -> Any:
        """Send a command to who has its keys and return the reply.

        :raises Refused: if a server answered with an error
        :raises OSError: if it cannot be reached, or the connection broke before the reply came
        """
        asked: list[Node] = []
        try:
            async with asyncio.timeout(self._deadline_s):
                return await self._follow(words, asked)
        except TimeoutError:
            self._doubt(asked)
            raise Late(f"gave no answer within {self._deadline_s:g} s") from None
        except Refused as refused:
            if refused.code in slots.UNSERVED:
                self._doubt(asked)
            raise
        except OSError:
            self._doubt(asked)
            raise

    async def load(self, library: str, words: tuple[Any, ...]) -> None:
        """Give the server that has the keys of `words` a library of functions."""
        node = await self._owner(slots.slot_of_command(words))
        await self._server(node).load(library, words)

    async def info(self, section: str) -> dict[str, Any]:
        """What one of the servers says of itself: the first that answers, for some may be dead."""
        try:
            async with asyncio.timeout(self._deadline_s):
                said, _ = await ask_any(self._url, ("INFO", section), self._deadline_s)
        except TimeoutError:
            raise Late(f"gave no answer within {self._deadline_s:g} s") from None
        return read_info(said)

    def descriptors(self) -> list[int]:
        """The descriptors of its open sockets."""
        return [descriptor for server in self._servers.values() for descriptor in server.descriptors()]

    async def aclose(self) -> None:
        """Close the connections; the next command opens others."""
        servers, self._servers = list(self._servers.values()), {}
        for server in servers:
            await server.aclose()

    async def _follow(self, words: tuple[Any, ...], asked: list[Node]) -> Any:
        """:param asked: takes the servers that were asked, in that order"""
        slot = slots.slot_of_command(words)
        clock = asyncio.get_running_loop().time
        until_s = clock() + self._deadline_s / 2
        node, asking = await self._owner(slot), False
        while True:
            asked.append(node)
            try:
                return await self._server(node).run(words, asking=asking)
            except Refused as refused:
                if refused.code not in SENT_ON:
                    raise
                if clock() > until_s:
                    raise Refused(f"TRYAGAIN its keys are being moved ({refused})") from None
                if refused.code == "TRYAGAIN" or len(asked) > SOON:
                    await asyncio.sleep(PAUSE_S)
                node, asking = await self._next(refused, slot, node)

    async def _next(self, refused: Refused, slot: int, asked: Node) -> tuple[Node, bool]:
        """Who is asked next, and whether for keys that it does not have yet."""
        if refused.code == "ASK":
            return slots.sent_to(str(refused), asked), True
        if refused.code == "MOVED":
            self._slots.moved(slot, slots.sent_to(str(refused), asked))
        return await self._owner(slot), False

    async def _owner(self, slot: int) -> Node:
        known = self._slots.owner(slot)
        if known is not None:
            return known
        async with self._asking:
            return await owner_of(self._url, slot, self._deadline_s)

    def _doubt(self, asked: list[Node]) -> None:
        if asked:
            self._slots.doubt(asked[-1])

    def _server(self, node: Node) -> WireCommands:
        found = self._servers.get(node)
        if found is None:
            url = address.url_of_node(self._url, *node)
            found = self._servers[node] = WireCommands(url, deadline_s=self._deadline_s, name=self._name)
        return found
