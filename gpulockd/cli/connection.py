"""HTTP/1.1 over a unix socket: as much of it as the daemon's answers need (RFC 9112, 6.3 and 7.1).

The standard library's `http.client` loads e-mail and TLS, which takes longer than all the rest of a short command.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from contextlib import suppress

CONNECT_DEADLINE_S = 5.0
CROWDED_S = 0.02
LONGEST_LINE = 65536
PIECE = 65536
HEX_DIGITS = b"0123456789abcdefABCDEF"


class CutOff(ConnectionError):
    """The daemon has ended the connection in the middle of an answer, or answers what is no HTTP."""


class Connection:
    """A connection to the unix socket `path`, made at the first request; each wait for bytes ends after `timeout_s`."""

    def __init__(self, path: str, timeout_s: float | None) -> None:
        """:param timeout_s: seconds of silence that are an error; None: never"""
        self.path = path
        self._timeout_s = timeout_s
        self._sock: socket.socket | None = None
        self._read = b""

    def request(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> Answer:
        """Send a request and return the head of its answer; the body of the one before must have been read.

        :raises OSError: if nobody listens there, or the connection breaks or is silent for too long
        :raises ValueError: if the path or a header would end its line
        """
        head = {"Host": "localhost", "Accept-Encoding": "identity"} | dict(headers)
        if body is not None or method not in ("GET", "HEAD"):
            head["Content-Length"] = str(len(body or b""))
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in head.items())]
        if any("\r" in line or "\n" in line for line in lines) or path.split() != [path]:
            raise ValueError(f"no request: {lines[0]!r}")
        sock = self._sock or self._connect()
        sock.sendall("\r\n".join([*lines, "", ""]).encode() + (body or b""))
        return Answer(self)

    def line(self) -> bytes:
        """The next line, without its end.

        :raises CutOff: if the connection ends before, or it is too long
        """
        while b"\n" not in self._read:
            if len(self._read) > LONGEST_LINE:
                raise CutOff("a line without end")
            self._more()
        line, _, self._read = self._read.partition(b"\n")
        return line.rstrip(b"\r")

    def some(self, most: int) -> bytes:
        """The next bytes, at most so many.

        :raises CutOff: if the connection ends before there is one
        """
        if not self._read:
            self._more()
        some, self._read = self._read[:most], self._read[most:]
        return some

    @property
    def is_open(self) -> bool:
        """Whether it has been made, and not closed."""
        return self._sock is not None

    def wait_at_most(self, timeout_s: float) -> None:
        """From now on each wait for bytes ends after so many seconds."""
        if self._sock is not None:
            self._sock.settimeout(timeout_s)

    def shut(self, how: int) -> None:
        """Shut one side (`socket.SHUT_WR`) or both: another thread that reads sees the end."""
        if self._sock is not None:
            with suppress(OSError):
                self._sock.shutdown(how)

    def close(self) -> None:
        """Close it; the next request makes a new one."""
        if self._sock is not None:
            self._sock.close()
        self._sock, self._read = None, b""

    def _more(self) -> None:
        if self._sock is None:
            raise CutOff("the connection was closed")
        piece = self._sock.recv(PIECE)
        if not piece:
            raise CutOff("the connection was ended")
        self._read += piece

    def _connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(self._timeout_s)
            _connect(sock, self.path)
        except BaseException:
            sock.close()
            raise
        self._sock = sock
        return sock


class Answer:
    """An answer: its status, then its body."""

    def __init__(self, connection: Connection) -> None:
        """Read its head.

        :raises OSError: if the connection breaks, is silent for too long, or says no HTTP
        """
        self._connection = connection
        self._line = b""
        version, _, rest = connection.line().partition(b" ")
        code = rest[:3]
        if not version.startswith(b"HTTP/1.") or not code.isdigit():
            raise CutOff("what answers there is no HTTP")
        self.status = int(code)
        head = self._head()
        self._is_chunked = head.get(b"transfer-encoding", b"").lower() == b"chunked"
        length = head.get(b"content-length", b"")
        self._left: int | None = int(length) if length.isdigit() else None
        if self._is_chunked or self.status in (204, 304):
            self._left = 0
        self._is_first = True
        self._closes = self._left is None or head.get(b"connection", b"").lower() == b"close"
        self._is_read = self._left == 0 and not self._is_chunked

    def read(self) -> bytes:
        """The whole body.

        :raises OSError: if the connection breaks off before its end
        """
        return b"".join(iter(self._piece, b""))

    def readline(self) -> bytes:
        """The next line of the body with its end; what there is at its end, also where it is cut off.

        :raises OSError: if the connection breaks or is silent for too long
        """
        while b"\n" not in self._line:
            try:
                piece = self._piece()
            except CutOff:
                piece = b""
            if not piece:
                rest, self._line = self._line, b""
                return rest
            self._line += piece
        line, end, self._line = self._line.partition(b"\n")
        return line + end

    def _head(self) -> dict[bytes, bytes]:
        head = {}
        while line := self._connection.line():
            name, _, value = line.partition(b":")
            head[name.strip().lower()] = value.strip()
        return head

    def _piece(self) -> bytes:
        """The next bytes of the body, none at its end."""
        if self._is_read:
            return b""
        if self._is_chunked and self._left == 0:
            self._left = self._next_chunk()
        if self._left == 0:
            return self._end()
        try:
            piece = self._connection.some(PIECE if self._left is None else self._left)
        except CutOff:
            if self._left is not None:
                raise
            return self._end()
        if self._left is not None:
            self._left -= len(piece)
        return piece

    def _next_chunk(self) -> int:
        if not self._is_first:
            self._connection.line()
        self._is_first = False
        size = self._connection.line().partition(b";")[0].strip()
        if not size or size.strip(HEX_DIGITS):
            raise CutOff("what answers there is no HTTP")
        length = int(size, 16)
        if length == 0:
            self._head()
        return length

    def _end(self) -> bytes:
        self._is_read = True
        if self._closes:
            self._connection.close()
        return b""


def listens(path: str) -> bool:
    """Whether somebody takes connections at a unix socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
        door.settimeout(CONNECT_DEADLINE_S)
        return door.connect_ex(path) == 0


def _connect(door: socket.socket, path: str) -> None:
    """Connect, also where so many do at this moment that the kernel says "try again".

    :raises OSError: if nobody listens there, or nobody is let in for too long
    """
    ends_at = time.monotonic() + CONNECT_DEADLINE_S
    while True:
        try:
            return door.connect(path)
        except BlockingIOError:
            if time.monotonic() >= ends_at:
                raise
        time.sleep(CROWDED_S)
