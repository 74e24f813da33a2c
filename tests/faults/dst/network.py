"""The way to the store: latency, cuts of either direction, resets, and connections whose other end is gone unheard."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from tests.faults.dst.world import Process

if TYPE_CHECKING:
    from tests.faults.dst.store import Store

LATENCY_S = (0.0001, 0.002)
TORN = 0.02
"""How often what is sent arrives in two parts."""

AGAIN_S = 1.0
"""What was held back by a cut arrives within so long after its end, as TCP sends it again (in seconds)."""

End = OSError | None
"""The end of what is said: closed, or an error."""


class Way:
    """What one process's way to the store is like now; all times are true seconds."""

    def __init__(self) -> None:
        self.cut_to = self.cut_from = 0.0
        """Until when nothing reaches the store, and nothing comes from it."""
        self.slow_until = self.bells_slow_until = 0.0
        self.slowest_s = 1.0


class Network:
    """All connections there are."""

    def __init__(self, store: Store) -> None:
        self.world = store.world
        self.store = store
        self.ways: dict[str, Way] = {}
        self.connections: list[Connection] = []

    def way(self, process: Process) -> Way:
        """The way of a process."""
        return self.ways.setdefault(process.name, Way())

    def dial(self, process: Process, told: Callable[[OSError | None], None]) -> Connection:
        """Connect; `told` says None once it stands, or why it does not."""
        connection = Connection(self, process, told)
        self.connections.append(connection)
        connection.begin()
        return connection

    def of(self, process: Process) -> list[Connection]:
        """The living connections of a process."""
        return [one for one in self.connections if one.process is process and not one.is_over]

    def died(self, process: Process) -> None:
        """The kernel closes what a dead process had open."""
        for connection in self.of(process):
            connection.close()


class Direction:
    """One direction of a connection: what is sent arrives later, in order, or never."""

    def __init__(self, connection: Connection, take: Callable[[bytes | End], None], *, is_to: bool) -> None:
        self._connection = connection
        self._world = connection.network.world
        self._take = take
        self._is_to = is_to
        self._under_way: deque[bytes | End] = deque()
        self._last_at = 0.0
        self.is_broken = False

    def send(self, what: bytes | End) -> None:
        """Send bytes, or the end."""
        dice = self._world.dice
        if isinstance(what, bytes) and len(what) > 1 and dice.random() < TORN:
            at = dice.randrange(1, len(what))
            self._send(what[:at])
            what = what[at:]
        self._send(what)

    def _send(self, what: bytes | End) -> None:
        self._under_way.append(what)
        self._last_at = max(self._last_at, self._world.now + self._latency_s())
        self._world.at(self._last_at, self._arrive)

    def _latency_s(self) -> float:
        connection, world = self._connection, self._world
        way, dice = connection.way, world.dice
        slow = way.slow_until > world.now
        slow = slow or (connection.is_ear and not self._is_to and way.bells_slow_until > world.now)
        return dice.random() * way.slowest_s if slow else dice.uniform(*LATENCY_S)

    def _arrive(self) -> None:
        if self.is_broken or not self._under_way:
            return
        world, way = self._world, self._connection.way
        held_until = way.cut_to if self._is_to else way.cut_from
        if held_until > world.now:
            world.at(held_until + world.dice.random() * AGAIN_S, self._arrive)
            return
        stalled_until = self._connection.network.store.stalled_until
        if self._is_to and self._under_way[0] and stalled_until > world.now:  # its kernel takes who connects
            world.at(stalled_until + world.dice.random() * 0.001, self._arrive)
            return
        self._take(self._under_way.popleft())


class Connection:
    """One connection: the process's end is a transport or a blocking socket, the other is the store's."""

    def __init__(self, network: Network, process: Process, told: Callable[[OSError | None], None]) -> None:
        self.network = network
        self.process = process
        self.way = network.way(process)
        self.heard = bytearray()
        self.is_ear = False
        """Whether it has subscribed to something."""
        self.is_over = False
        self.dies_with_reply = False
        """Whether the next command is run, and the connection then breaks before its reply."""
        self.why: OSError | None = None
        self.on_news: Callable[[], None] | None = None
        self._ended = False
        self._told: Callable[[OSError | None], None] | None = told
        self._to = Direction(self, self._reach, is_to=True)
        self._from = Direction(self, self._hear, is_to=False)

    # The process's end.

    def begin(self) -> None:
        """Send the first packet."""
        self._to.send(b"")

    @property
    def has_news(self) -> bool:
        """Whether there is something to read, the end included."""
        return bool(self.heard) or self._ended

    def send(self, data: bytes) -> None:
        """Send."""
        if not self.is_over and not self._ended:
            self._to.send(data)
            self.process.trap()

    def take(self, most: int) -> bytes:
        """Read what has come."""
        said = bytes(self.heard[:most])
        del self.heard[:most]
        return said

    def close(self) -> None:
        """Close this end; what was sent still arrives."""
        if not self.is_over:
            self.is_over, self._told = True, None
            self._from.is_broken = True
            self._to.send(None)

    # The store's end.

    def reply(self, said: bytes | End) -> None:
        """The store has said something, or hung up."""
        self._from.send(said)

    def reset(self) -> None:
        """Somebody on the way ends it, for both."""
        self._to.is_broken = True
        self.network.store.hung_up(self)
        self.reply(ConnectionResetError(104, "Connection reset by peer"))

    def hang_up_unheard(self) -> None:
        """The store's end is gone, and the process is not told."""
        self.vanish()
        self.network.store.hung_up(self)

    def vanish(self) -> None:
        """Somebody on the way has forgotten it: neither end hears of the other any more, and neither is told."""
        self._to.is_broken = self._from.is_broken = True

    def _reach(self, what: bytes | End) -> None:
        store = self.network.store
        if what == b"":
            self.reply(b"" if store.greet(self) else ConnectionRefusedError(111, "Connection refused"))
        elif isinstance(what, bytes):
            store.hear(self, what)
        else:
            store.hung_up(self)
            self.network.connections.remove(self)

    def _hear(self, what: bytes | End) -> None:
        if self._told is not None:
            told, self._told = self._told, None
            told(None if what == b"" else what if isinstance(what, OSError) else ConnectionResetError())
        if isinstance(what, bytes):
            self.heard += what
        else:
            self._ended, self.why = True, what
        if self.on_news is not None:
            self.on_news()
