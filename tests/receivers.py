"""Real receivers of alerts: a web server and a mail server of the test's own, each on a free port of this machine."""

from __future__ import annotations

import asyncio
import contextlib
import email
import email.policy
import json
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import h11
import pytest


@dataclass
class Delivery:
    """What a webhook was sent."""

    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, read."""
        return json.loads(self.body)

    @property
    def rules(self) -> list[tuple[str, str]]:
        """(kind, rule) of each notice."""
        return [(notice["kind"], notice["rule"]) for notice in self.json["notices"]]


@dataclass
class WebReceiver:
    """A web server that takes whatever is sent. `answers` are the next statuses (200 when there are none)."""

    port: int = 0
    deliveries: list[Delivery] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    tries: int = 0
    waits: asyncio.Event | None = None
    scheme: str = "http"
    serving: set[asyncio.Task[Any]] = field(default_factory=set)

    @property
    def url(self) -> str:
        """Where it listens, with a path that nobody may see in a log."""
        return f"{self.scheme}://127.0.0.1:{self.port}/hook/s3cr3t-path"

    def rules(self) -> list[tuple[str, str]]:
        """(kind, rule) of all notices, in the order in which they came."""
        return [one for delivery in self.deliveries for one in delivery.rules]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take one request; a client that goes without one has asked nothing."""
        with contextlib.closing(writer), contextlib.suppress(ConnectionError), _noted_in(self.serving):
            await self._take(reader, writer)

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        wire = h11.Connection(h11.SERVER)
        headers: dict[str, str] = {}
        body = b""
        while True:
            event = wire.next_event()
            if event is h11.NEED_DATA:
                wire.receive_data(await reader.read(65536))
            elif isinstance(event, h11.Request):
                headers = {name.decode(): value.decode() for name, value in event.headers}
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                break
            else:
                return
        self.tries += 1
        if self.waits is not None:
            await self.waits.wait()
        status = self.answers.pop(0) if self.answers else 200
        if 200 <= status < 300:
            self.deliveries.append(Delivery(headers, body))
        more = [("location", "http://127.0.0.1:1/elsewhere")] if 300 <= status < 400 else []
        answer = h11.Response(status_code=status, headers=[("content-length", "0"), *more])
        writer.write((wire.send(answer) or b"") + (wire.send(h11.EndOfMessage()) or b""))
        await writer.drain()


@contextlib.contextmanager
def _noted_in(tasks: set[asyncio.Task[Any]]) -> Iterator[None]:
    """Note the task that runs here for as long as it does."""
    me = asyncio.current_task()
    assert me is not None
    tasks.add(me)
    try:
        yield
    finally:
        tasks.discard(me)


async def _end(server: asyncio.Server, tasks: set[asyncio.Task[Any]]) -> None:
    """Listen no more, and leave no connection open: the warning of one would fail a later test."""
    server.close()
    for task in list(tasks):
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.sleep(0)  # closed transports say so one turn later


@asynccontextmanager
async def web_receiver(tls: ssl.SSLContext | None = None) -> AsyncIterator[WebReceiver]:
    """A web server that runs for the time of the block; with `tls` it speaks HTTPS."""
    receiver = WebReceiver(scheme="https" if tls else "http")
    server = await asyncio.start_server(receiver.serve, "127.0.0.1", 0, ssl=tls)
    receiver.port = server.sockets[0].getsockname()[1]
    try:
        yield receiver
    finally:
        await _end(server, receiver.serving)


@dataclass
class MailReceiver:
    """A mail server that takes whatever is sent. `refuses`: it takes no mail now."""

    port: int = 0
    mails: list[EmailMessage] = field(default_factory=list)
    logins: list[str] = field(default_factory=list)
    refuses: bool = False
    tls: ssl.SSLContext | None = None
    in_tls: bool = False
    serving: set[asyncio.Task[Any]] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Speak SMTP with one client, as RFC 5321 has it, for as long as it stays."""
        with contextlib.closing(writer), contextlib.suppress(ConnectionError), _noted_in(self.serving):
            await self._speak(reader, writer)

    async def _speak(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:

        async def say(line: str) -> None:
            writer.write(line.encode() + b"\r\n")
            await writer.drain()

        await say("220 test")
        while line := await _line(reader):
            verb = line.split(" ", 1)[0].upper()
            if verb == "EHLO":
                await say("250-test")
                await say("250-STARTTLS" if self.tls and not self.in_tls else "250-AUTH PLAIN")
                await say("250 8BITMIME")
            elif verb == "STARTTLS" and self.tls is not None:
                await say("220 go on")
                await writer.start_tls(self.tls)
                self.in_tls = True
            elif verb == "AUTH":
                self.logins.append(line)
                await say("235 welcome")
            elif verb == "MAIL" and self.refuses:
                await say("451 not now")
            elif verb == "DATA":
                await say("354 go on")
                content = b""
                while (part := await reader.readline()) != b".\r\n":
                    content += part[1:] if part.startswith(b"..") else part
                self.mails.append(email.message_from_bytes(content, policy=email.policy.default))
                await say("250 taken")
            elif verb == "QUIT":
                await say("221 goodbye")
                break
            else:
                await say("250 well")


async def _line(reader: asyncio.StreamReader) -> str:
    """The next line; empty if the client is gone, as one that was killed."""
    try:
        return (await reader.readline()).decode().strip()
    except ConnectionError:
        return ""


@asynccontextmanager
async def mail_receiver(tls: ssl.SSLContext | None = None) -> AsyncIterator[MailReceiver]:
    """A mail server that runs for the time of the block; with `tls` it takes logins only after STARTTLS."""
    receiver = MailReceiver(tls=tls)
    server = await asyncio.start_server(receiver.serve, "127.0.0.1", 0)
    receiver.port = server.sockets[0].getsockname()[1]
    try:
        yield receiver
    finally:
        await _end(server, receiver.serving)


def certificate(folder: Path) -> tuple[ssl.SSLContext, Path]:
    """A server's TLS settings with a certificate of 127.0.0.1, and the file by which clients trust it."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl (apt-get install openssl)")
    key, cert = folder / "key.pem", folder / "cert.pem"
    command = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-keyout", str(key), "-out", str(cert), "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    return context, cert
