"""Dialling one server and saying who calls.

redis-py reads the URL, so that every option of it, TLS above all, means what its users know.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import Any, NamedTuple

import redis.asyncio
from redis.maint_notifications import MaintNotificationsConfig

from gpulockd.ledger.wire.connection import Wire
from gpulockd.ledger.wire.trouble import Refused, Unwelcome

FULL = "max number of clients"
"""What a server says to whatever is asked first, before it hangs up: it has nothing against the caller."""


class Place(NamedTuple):
    """Where one server is and how it is greeted."""

    path: str | None
    host: str
    port: int
    tls: ssl.SSLContext | None
    db: int
    user: str | None
    password: str | None


def place_of(url: str) -> Place:
    """Read a URL of one server (`redis://`, `rediss://`, `unix://`).

    :raises ValueError: if redis-py cannot read it
    """
    pool = redis.asyncio.ConnectionPool.from_url(
        url, maint_notifications_config=MaintNotificationsConfig(enabled=False)
    )
    made: Any = pool.make_connection()
    context = getattr(made, "ssl_context", None)
    return Place(
        path=getattr(made, "path", None),
        host=getattr(made, "host", ""),
        port=int(getattr(made, "port", 0)),
        tls=context.get() if context is not None else None,
        db=int(made.db or 0),
        user=made.username,
        password=made.password,
    )


async def dial(wire: Wire, place: Place, name: str) -> None:
    """Connect `wire` and greet the server. It sets no time limit; who ends it early aborts the wire.

    :param name: what the server's CLIENT LIST shows
    :raises OSError: if nothing listens there
    :raises Unwelcome: if user or password are not taken
    :raises Refused: if the server does not serve now
    """
    loop = asyncio.get_running_loop()
    if place.path is not None:
        await loop.create_unix_connection(lambda: wire, place.path)
    else:
        await loop.create_connection(lambda: wire, place.host, place.port, ssl=place.tls)
        # The kernel finds out that a silent peer is gone.
        wire.set_option(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    greeting: list[tuple[str, ...]] = []
    if place.password is not None or place.user is not None:
        user = (place.user,) if place.user is not None else ()
        greeting.append(("AUTH", *user, place.password or ""))
    if place.db:
        greeting.append(("SELECT", str(place.db)))
    greeting.append(("CLIENT", "SETNAME", name))
    answers = await asyncio.gather(*(wire.send(words) for words in greeting), return_exceptions=True)
    for words, answer in zip(greeting, answers, strict=True):
        if isinstance(answer, Refused) and FULL in str(answer):
            raise ConnectionRefusedError(str(answer))
        if isinstance(answer, Refused) and words[0] == "AUTH":
            raise Unwelcome(str(answer))
        # The name is for people who look; a server that does not take it serves all the same.
        if isinstance(answer, BaseException) and not (isinstance(answer, Refused) and words[0] == "CLIENT"):
            raise answer
