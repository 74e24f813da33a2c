"""A URL that is sent JSON, signed as the Standard Webhooks specification says (https://www.standardwebhooks.com).

Its law: redirects are not followed, the answer's body is not read, and no address of the link itself (169.254.0.0/16,
where clouds keep credentials) is ever asked, whatever a name resolves to.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import socket
import ssl
import time
from urllib.parse import SplitResult

import anyio
import anyio.abc
import h11
import msgspec

from gpulockd.alerting.messages import Message, Notice
from gpulockd.daemon.channels.telling import ChannelError, redacted, secret_of, shown_url, takes
from gpulockd.errors import ConfigError
from gpulockd.settings.alerting import WEB_PORTS, WebhookBlock, web_address

STANDARD_PREFIX = "whsec_"


class WebhookChannel:
    """One URL."""

    kind = "webhook"

    def __init__(self, name: str, block: WebhookBlock, apart_s: float) -> None:
        """:raises ConfigError: if it has no URL that can be used"""
        where = f"notify.webhooks.{name}"
        self.name = name
        self.timeout_s = block.timeout
        self.apart_s = apart_s
        self._block = block
        self._url = secret_of(block.url, block.url_file, where) or ""
        self._secret = secret_of(block.secret, block.secret_file, where)
        self._to = _checked(self._url, where)
        self._key = _key(self._secret, where) if self._secret else None
        self._tls: ssl.SSLContext | None = None

    def __repr__(self) -> str:
        return f"<WebhookChannel {self.name} {shown_url(self._url)}>"

    def takes(self, notice: Notice) -> bool:
        """Whether that is for this channel."""
        return takes(self._block, notice, notice.escalated)

    async def send(self, message: Message) -> None:
        """POST it once.

        :raises ChannelError: unless the answer is a 2xx
        """
        body = msgspec.json.encode(message.payload())
        where = shown_url(self._url)
        try:
            status = await self._post(body, signed_headers(self._key, message.delivery, int(time.time()), body))
        except (OSError, h11.RemoteProtocolError, anyio.EndOfStream, anyio.BrokenResourceError) as broken:
            why = redacted(broken, (self._url, self._secret)) or type(broken).__name__
            raise ChannelError(f"{where} cannot be reached: {why}") from None
        if not 200 <= status < 300:
            hint = "; redirects are not followed" if 300 <= status < 400 else ""
            raise ChannelError(f"{where} answered {status}{hint}")

    async def _post(self, body: bytes, headers: list[tuple[str, str]]) -> int:
        target = (self._to.path or "/") + (f"?{self._to.query}" if self._to.query else "")
        async with await self._connect() as stream:
            wire = h11.Connection(h11.CLIENT)
            host = self._to.netloc.rpartition("@")[2]
            request = h11.Request(method="POST", target=target, headers=[("host", host), *headers])
            await stream.send((wire.send(request) or b"") + (wire.send(h11.Data(body)) or b""))
            wire.send(h11.EndOfMessage())
            while True:
                event = wire.next_event()
                if event is h11.NEED_DATA:
                    wire.receive_data(await stream.receive(4096))
                elif isinstance(event, h11.Response):
                    return event.status_code
                elif isinstance(event, h11.ConnectionClosed):
                    raise ConnectionError("it hung up without an answer")

    async def _connect(self) -> anyio.abc.ByteStream:
        host, port = self._to.hostname or "", self._to.port or WEB_PORTS[self._to.scheme]
        found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        refused = [address for address in addresses if not may_be_asked(address)]
        if refused or not addresses:
            raise ChannelError(
                f"{shown_url(self._url)} is at {', '.join(refused) or 'no address'}, which is never asked"
            )
        trouble: OSError | None = None
        for address in addresses:
            try:
                if self._to.scheme == "http":
                    return await anyio.connect_tcp(address, port)
                if self._tls is None:
                    self._tls = await anyio.to_thread.run_sync(ssl.create_default_context)
                return await anyio.connect_tcp(
                    address, port, ssl_context=self._tls, tls_hostname=host, tls_standard_compatible=False
                )
            except OSError as away:
                trouble = away
        raise trouble or OSError("no address")


def signed_headers(key: bytes | None, delivery: str, at_s: int, body: bytes) -> list[tuple[str, str]]:
    """Return the headers of a message.

    :param key: None: it is not signed
    :param at_s: now (unix seconds), for the receiver to refuse what is old
    """
    headers = [
        ("content-type", "application/json"),
        ("content-length", str(len(body))),
        ("user-agent", "gpulockd"),
        ("connection", "close"),
        ("webhook-id", delivery),
        ("webhook-timestamp", str(at_s)),
    ]
    if key is not None:
        signed = hmac.new(key, f"{delivery}.{at_s}.".encode() + body, hashlib.sha256).digest()
        headers.append(("webhook-signature", f"v1,{base64.b64encode(signed).decode()}"))
    return headers


def may_be_asked(address: str) -> bool:
    """Whether an address may be that of a receiver: any but those of the link, of many hosts, and of none."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    return not (ip.is_link_local or ip.is_multicast or ip.is_unspecified or ip == ipaddress.ip_address("fd00:ec2::254"))


def _checked(url: str, where: str) -> SplitResult:
    """:raises ConfigError: if that is no URL of a receiver"""
    parts = web_address(url)
    if parts is None:
        raise ConfigError(f"{where}.url: write the whole address, as https://host/path, in ASCII")
    return parts


def _key(secret: str, where: str) -> bytes:
    """Return the key of a secret: the text itself, or what stands in base64 behind `whsec_`."""
    if not secret.startswith(STANDARD_PREFIX):
        return secret.encode()
    try:
        return base64.b64decode(secret.removeprefix(STANDARD_PREFIX), validate=True)
    except ValueError:
        raise ConfigError(f"{where}.secret: what stands behind 'whsec_' is not base64") from None
