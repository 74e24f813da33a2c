"""The sockets, and uvicorn on them without its clock: an idle server wakes for nothing.

Three of uvicorn's methods are overridden here and nowhere else: it takes no signals, for they are the daemon's, its
main loop waits instead of looking ten times a second, and it does not wait a minute for who promised to speak TLS.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import ssl
import stat
from collections.abc import Generator

import anyio
import anyio.abc
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gpulockd.errors import ConfigError
from gpulockd.web.connection import HEAD_WITHIN_S, Doors, protocol

BACKLOG = 512
GRACE_S = 3
KEEP_ALIVE_S = 30
UNANSWERED_MS = 20_000
"""How long a TCP peer may leave our bytes unconfirmed before it counts as gone (in ms)."""

MOST_SHAKING_HANDS = 300
"""How many connections may be about to begin TLS; they are no user's yet, so nothing else counts them."""

_LOOPBACK = {"localhost", "127.0.0.1", "::1"}


def split_listen(listen: str) -> tuple[str, int]:
    """Return host and port of "127.0.0.1:8788", "[::1]:8788" or ":8788" (loopback).

    :raises ConfigError: if it is neither
    """
    host, colon, port = listen.rpartition(":")
    if not colon or not (port.isascii() and port.isdigit()) or int(port) > 65535 or (":" in host and host[0] != "["):
        raise ConfigError(f"--listen {listen!r}: write HOST:PORT, such as 127.0.0.1:8788")
    return host.strip("[]") or "127.0.0.1", int(port)


def bind_tcp(listen: str) -> list[socket.socket]:
    """Return bound sockets, not listening yet: for a loopback name those of IPv4 and, where there is one, of IPv6.

    :raises ConfigError: naming --listen, if the port is taken or the address is not this host's
    """
    host, port = split_listen(listen)
    hosts = ["127.0.0.1", "::1"] if host in _LOOPBACK else [host]
    sockets: list[socket.socket] = []
    try:
        for address in hosts:
            try:
                sockets.append(_bound(address, port))
            except OSError as refused:
                if sockets and refused.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    continue
                raise ConfigError(_why_not(address, port, refused)) from None
            port = sockets[0].getsockname()[1]
    except BaseException:
        for bound in sockets:
            bound.close()
        raise
    return sockets


def _bound(address: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except socket.gaierror as unknown:
        raise OSError(errno.EADDRNOTAVAIL, str(unknown)) from None
    # asyncio sets TCP_NODELAY only on sockets of this protocol number; without it each answer waits 40 ms.
    made = socket.socket(found[0], socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNANSWERED_MS)
        if found[0] == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind(found[4])
        # A second daemon can bind beside a socket that does not listen yet, so this one listens at once.
        made.listen(BACKLOG)
        made.setblocking(False)
    except BaseException:
        made.close()
        raise
    return made


def _why_not(address: str, port: int, refused: OSError) -> str:
    if refused.errno == errno.EADDRINUSE:
        return f"port {port} of {address} is taken by another program; choose another with --listen HOST:PORT"
    return f"cannot listen on {address} port {port}: {refused.strerror}; choose another with --listen HOST:PORT"


def bind_unix(path: str) -> socket.socket:
    """Return the socket of the API; all users may connect, and the peer's uid decides what each may do.

    :raises ConfigError: if it cannot be made
    """
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISSOCK(os.lstat(path).st_mode):
                os.unlink(path)
        made.bind(path)
        os.chmod(path, 0o666)
        made.setblocking(False)
    except OSError as wrong:
        made.close()
        raise ConfigError(f"{path}: cannot listen there ({wrong.strerror}); choose another with --socket") from None
    return made


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, stop: anyio.Event, started: anyio.abc.TaskStatus[None]) -> None:
        super().__init__(config)
        self._stop = stop
        self._tell_started = started

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Signals are the daemon's."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn does; who connects to a TLS port has to shake hands soon, and few may be about to."""
        context = self.config.ssl
        if context is None or sockets is None:
            await super().startup(sockets)
            return
        loop = asyncio.get_running_loop()
        shaking: list[tuple[float, HttpToolsProtocol]] = []

        def connected() -> asyncio.Protocol:
            # Nobody says when a handshake fails; none lasts longer than this.
            begun_s = loop.time() - HEAD_WITHIN_S
            shaking[:] = [(at, one) for at, one in shaking if at > begun_s and one.transport is None]
            if len(shaking) >= MOST_SHAKING_HANDS:
                raise ConnectionRefusedError  # asyncio drops the connection
            made: HttpToolsProtocol = self.config.http_protocol_class(  # type: ignore[assignment, call-arg]
                config=self.config, server_state=self.server_state, app_state={}
            )
            shaking.append((loop.time(), made))
            return made

        serve = loop.create_server
        self.servers = [
            await serve(connected, sock=one, ssl=context, backlog=BACKLOG, ssl_handshake_timeout=HEAD_WITHIN_S)
            for one in sockets
        ]
        self.started = True

    async def main_loop(self) -> None:
        """Wait for the end; nothing is due in between, for neither a date header nor a request limit is used."""
        self._tell_started.started()
        await self._stop.wait()


async def run(
    app: ASGIApp,
    sockets: list[socket.socket],
    stop: anyio.Event,
    tls: ssl.SSLContext | None = None,
    *,
    task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Serve on the sockets until `stop` is set; then streams have 3 s to end.

    :param tls: what the TCP sockets encrypt with; the unix socket is never encrypted
    """
    connections = protocol(Doors(os.getuid()))
    local = [one for one in sockets if tls is None or one.family == socket.AF_UNIX]
    remote = [one for one in sockets if one not in local]
    async with anyio.create_task_group() as servers:
        for found, context in ((local, None), (remote, tls)):
            if found:
                await servers.start(_serve, app, found, stop, connections, context)
        task_status.started()


async def _serve(
    app: ASGIApp,
    sockets: list[socket.socket],
    stop: anyio.Event,
    connections: type[asyncio.Protocol],
    tls: ssl.SSLContext | None,
    *,
    task_status: anyio.abc.TaskStatus[None],
) -> None:
    config = uvicorn.Config(
        app,
        http=connections,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="error",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=GRACE_S,
        ssl_context_factory=None if tls is None else lambda _config, _default: tls,
    )
    await _Server(config, stop, task_status).serve(sockets)
