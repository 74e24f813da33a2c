"""An event loop of a simulated process: asyncio's own, but for its clock, its selector and its sockets."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any

from tests.faults.dst.network import Connection, Network
from tests.faults.dst.world import BUSY_S, Thread

BUSY = 0.05
"""How often a loop that has work is kept from it for a moment: by another thread, or by the kernel."""


class Loop(asyncio.BaseEventLoop):
    """One loop in one thread of a process. It waits where a selector would, in virtual time."""

    def __init__(self, thread: Thread, network: Network) -> None:
        super().__init__()
        self._thread = thread
        self._network = network
        self._selector = self
        self._transports: list[Transport] = []
        self._made: list[asyncio.Task[Any]] = []
        self.discarded = False
        self.set_task_factory(self._make_task)
        thread.process.loops.append(self)

    def time(self) -> float:
        """Seconds of the process's clock."""
        return self._thread.process.clock()

    # What asyncio needs of a selector.

    def select(self, timeout: float | None) -> list[Transport]:
        """Wait until something can be read, somebody wakes this loop, or `timeout` is over."""
        thread = self._thread
        world = thread.process.world
        readable = self._readable()
        if timeout is None or (timeout > 0 and not readable):
            thread.pause(thread.within(timeout))
            readable = self._readable()
        elif thread.process.must_wait or world.dice.random() < BUSY:
            thread.pause(world.now + world.dice.random() * BUSY_S)
            readable = self._readable()
        return readable

    def _readable(self) -> list[Transport]:
        return [transport for transport in self._transports if transport.can_be_read]

    def _process_events(self, event_list: Any) -> None:
        for transport in event_list:
            self.call_soon(transport.read)

    def _write_to_self(self) -> None:
        self._thread.wake()

    # Connections.

    async def create_connection(  # type: ignore[override] # only what the client calls
        self, protocol_factory: Callable[[], Any], host: str, port: int, **more: Any
    ) -> tuple[Transport, Any]:
        """Connect to the store."""
        stands = self.create_future()

        def told(why: OSError | None) -> None:
            if not stands.done() and not self.is_closed():
                self.call_soon(_settle, stands, why)
                self._thread.wake()

        connection = self._network.dial(self._thread.process, told)
        try:
            await stands
        except BaseException:
            connection.close()
            raise
        protocol = protocol_factory()
        transport = Transport(self, connection, protocol)
        self._transports.append(transport)
        protocol.connection_made(transport)
        return transport, protocol

    def forget(self, transport: Transport) -> None:
        """Look at a connection no more."""
        if transport in self._transports:
            self._transports.remove(transport)

    # Tasks and troubles.

    def _make_task(self, loop: asyncio.AbstractEventLoop, work: Any, **more: Any) -> asyncio.Task[Any]:
        self._made = [task for task in self._made if not task.done()]
        task: asyncio.Task[Any] = asyncio.Task(work, loop=loop, **more)
        self._made.append(task)
        return task

    def create_task(self, coro: Any, *, name: object = None, context: Any = None) -> asyncio.Task[Any]:
        """As asyncio does; in a world that is over nothing begins."""
        if self.discarded:
            coro.close()
            return self.create_future()  # type: ignore[return-value] # nobody will wait for it
        return super().create_task(coro, name=name, context=context)

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> asyncio.Handle:  # type: ignore[override]
        """As asyncio does; in a world that is over nothing happens."""
        if self.discarded:
            return asyncio.Handle(callback, args, self, context)
        return super().call_soon(callback, *args, context=context)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """What nobody has caught is a bug."""
        process = self._thread.process
        if process.alive and not process.world.over:
            process.world.wrong.append(f"{process}: {context.get('message')}: {context.get('exception')!r}")

    def unfinished(self) -> list[asyncio.Task[Any]]:
        """Its tasks that are not done, in the order in which they were made."""
        return [task for task in self._made if not task.done()]

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """As `asyncio.run` does; but tasks are cancelled in the order in which they were made."""
        try:
            self.run_until_complete(work)
        finally:
            if self._thread.process.alive:
                left = self.unfinished()
                for task in left:
                    task.cancel()
                if left:
                    self.run_until_complete(asyncio.gather(*left, return_exceptions=True))
                self.close()

    def discard(self) -> None:
        """The world is over: unwind the tasks that nobody goes on with."""
        self.discarded = True
        self._ready.clear()  # type: ignore[attr-defined] # asyncio's own, as the typeshed does not know
        self._scheduled.clear()  # type: ignore[attr-defined]
        for task in self.unfinished():
            task._log_destroy_pending = False  # type: ignore[attr-defined] # that is how a killed process leaves them
            with contextlib.suppress(BaseException):  # a dead process has nobody to tell
                task.get_coro().close()
        self._made = []
        self._closed = True


class Options:
    """What the client may do with the socket of a transport."""

    def setsockopt(self, *option: Any) -> None:
        """It has no options."""

    def fileno(self) -> int:
        """It has no descriptor."""
        return -1


class Transport(asyncio.Transport):
    """The loop's end of a connection."""

    def __init__(self, loop: Loop, connection: Connection, protocol: Any) -> None:
        super().__init__({"socket": Options()})
        self._loop = loop
        self._connection = connection
        self._protocol = protocol
        self._reading = True
        self._over = False
        connection.on_news = loop._thread.wake

    @property
    def can_be_read(self) -> bool:
        """Whether a selector would say so."""
        return self._reading and not self._over and self._connection.has_news

    def read(self) -> None:
        """Read once, as much as the protocol takes."""
        connection = self._connection
        if not self.can_be_read:
            return
        if connection.heard:
            buffer = self._protocol.get_buffer(-1)
            said = connection.take(len(buffer))
            buffer[: len(said)] = said
            self._protocol.buffer_updated(len(said))
        else:
            self._end(connection.why)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send."""
        if not self._over:
            self._connection.send(bytes(data))

    def is_closing(self) -> bool:
        """Whether it has ended or is about to."""
        return self._over

    def is_reading(self) -> bool:
        """Whether it reads."""
        return self._reading and not self._over

    def pause_reading(self) -> None:
        """What comes waits in the kernel."""
        self._reading = False

    def resume_reading(self) -> None:
        """Read what waits."""
        self._reading = True

    def close(self) -> None:
        """End it."""
        self._end(None)

    def abort(self) -> None:
        """End it."""
        self._end(None)

    def _end(self, why: OSError | None) -> None:
        if not self._over:
            self._over = True
            self._loop.forget(self)
            self._connection.close()
            self._loop.call_soon(self._protocol.connection_lost, why)


def _settle(stands: asyncio.Future[None], why: OSError | None) -> None:
    if stands.done():
        return
    if why is None:
        stands.set_result(None)
    else:
        stands.set_exception(why)
