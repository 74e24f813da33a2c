"""HTTP to the daemon's unix socket with the standard library only, so that a short command answers at once."""

from __future__ import annotations

import http.client
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import quote

from gpulockd import places
from gpulockd.cli.talk import NEGATIVE, NO_DAEMON, NOT_PERMITTED, USAGE, CommandError

ANSWER_DEADLINE_S = 5.0
CROWDED_S = 0.02
START_HINT = "start it with 'gpulockd serve' or 'systemctl start gpulockd'"

_CODES = {400: USAGE, 401: NOT_PERMITTED, 403: NOT_PERMITTED, 404: NEGATIVE, 422: USAGE}


_COMMANDS = {
    "GET /api/v1/alerts": "'gpulockd alerts'",
    "GET /api/v1/config/history": "'gpulockd config history'",
    "GET /api/v1/gpus": "'gpulockd status'",
    "GET /api/v1/leases": "'gpulockd status'",
    "GET /api/v1/queue": "'gpulockd queue'",
    "DELETE /api/v1/leases/ID": "'gpulockd release LEASE'",
    "DELETE takes": "'gpulockd release' takes",
}


def spoken(hint: str) -> str:
    """A hint of the HTTP API in the words of the command line."""
    for request, command in _COMMANDS.items():
        hint = hint.replace(request, command)
    return hint


class Refused(CommandError):
    """The daemon answered with a problem (RFC 9457)."""

    def __init__(self, status: int, problem: dict[str, Any]) -> None:
        what = str(problem.get("detail") or problem.get("title") or f"the daemon answered {status}")
        super().__init__(what, spoken(str(problem.get("hint") or "")), _CODES.get(status, NEGATIVE))
        self.status = status
        self.kind = str(problem.get("kind") or "")
        self.problem = problem


class DaemonDown(CommandError):
    """Nobody answers at the socket."""

    def __init__(self, path: str, why: str, code: int = NO_DAEMON) -> None:
        hint = START_HINT if code == NO_DAEMON else "ask as the user that runs the daemon, or as root"
        super().__init__(f"cannot reach the daemon at {path} ({why})", hint, code)


class UnixConnection(http.client.HTTPConnection):
    """A connection to the unix socket `path`; each wait for bytes ends after `timeout_s` (None: never)."""

    def __init__(self, path: str, timeout_s: float | None) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self.path = path
        self.door: socket.socket | None = None

    def connect(self) -> None:
        """:raises OSError: if nobody listens there"""
        self.sock = self.door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.sock.settimeout(self.timeout)
            _connect(self.sock, self.path)
        except OSError:
            self.sock.close()
            raise


class Stream:
    """An answer that comes line by line."""

    def __init__(self, connection: UnixConnection, response: http.client.HTTPResponse) -> None:
        self._connection = connection
        self._response = response
        # Not `connection.sock`: a response that ends with its connection has taken that over.
        assert connection.door is not None
        self._sock = connection.door

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def lines(self) -> Iterator[bytes]:
        """Each line without its end. Ends where the stream ends, also where it is cut off.

        :raises OSError: if the connection breaks or is silent for too long
        """
        while True:
            try:
                line = self._response.readline()
            except http.client.HTTPException as cut:
                raise ConnectionError(str(cut)) from cut
            if not line:
                return
            yield line.rstrip(b"\r\n")

    def leave(self, deadline_s: float) -> Iterator[bytes]:
        """Say that nothing more is wanted, and hear what was still under way for at most `deadline_s` a line."""
        try:
            self._sock.settimeout(deadline_s)
            self._sock.shutdown(socket.SHUT_WR)
            yield from self.lines()
        except OSError:
            return

    def hang_up(self) -> None:
        """End it from another thread: who reads it sees its end."""
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection."""
        self._response.close()
        self._connection.close()
        self._sock.close()


class Daemon:
    """The daemon behind one unix socket."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._connection: UnixConnection | None = None

    def __enter__(self) -> Daemon:
        return self

    def __exit__(self, *_: object) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def get(self, path: str) -> dict[str, Any]:
        """What a GET answers."""
        return self.ask("GET", path)

    def ask(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        """Send one request and return its JSON.

        :raises Refused: if the daemon answers with a problem
        :raises DaemonDown: if it does not answer
        """
        if self._connection is None:
            self._connection = UnixConnection(self.path, ANSWER_DEADLINE_S)
        response = self._send(self._connection, method, path, body, {})
        try:
            answer = json.loads(response.read() or b"{}")
        except (OSError, http.client.HTTPException, ValueError) as cut:
            raise DaemonDown(self.path, f"its answer broke off: {cut}") from cut
        return answer if isinstance(answer, dict) else {"answer": answer}

    def stream(
        self,
        method: str,
        path: str,
        body: object = None,
        headers: dict[str, str] | None = None,
        silence_s: float | None = None,
    ) -> Stream:
        """Send one request whose answer comes line by line; `silence_s` without a byte is an error.

        :raises Refused: if the daemon answers with a problem
        :raises DaemonDown: if it does not answer
        """
        connection = UnixConnection(self.path, silence_s)
        try:
            return Stream(connection, self._send(connection, method, path, body, headers or {}))
        except Refused:
            connection.close()
            raise

    def _send(
        self, connection: UnixConnection, method: str, path: str, body: object, headers: dict[str, str]
    ) -> http.client.HTTPResponse:
        if body is not None:
            headers = headers | {"Content-Type": "application/json"}
        try:
            connection.request(method, path, None if body is None else json.dumps(body).encode(), headers)
            response = connection.getresponse()
            if response.status >= 400:
                raise Refused(response.status, _problem(response.read()))
        except PermissionError as refused:
            raise DaemonDown(self.path, "not permitted", NOT_PERMITTED) from refused
        except (OSError, http.client.HTTPException) as away:
            connection.close()
            raise DaemonDown(self.path, _why(away)) from away
        return response


def find() -> Daemon:
    """The daemon at the first socket that exists, as GPULOCKD_SOCKET or the usual folders say.

    :raises DaemonDown: if there is none
    """
    candidates = places.runtime_candidates()
    for folder, path in candidates:
        # Anyone can make a folder in /tmp, so there only our own counts.
        if folder == places.fallback_runtime(os.getuid()) and not _is_ours(folder):
            continue
        if os.path.exists(path) and listens(path):
            return Daemon(path)
    there = [path for _, path in candidates if os.path.exists(path)]
    if there:
        return Daemon(there[0])  # its own error says more than "not found"
    raise DaemonDown(candidates[0][1], "no such socket")


def _connect(door: socket.socket, path: str) -> None:
    """Connect, also where so many do at this moment that the kernel says "try again".

    :raises OSError: if nobody listens there, or nobody is let in for too long
    """
    ends_at = time.monotonic() + ANSWER_DEADLINE_S
    while True:
        try:
            return door.connect(path)
        except BlockingIOError:
            if time.monotonic() >= ends_at:
                raise
        time.sleep(CROWDED_S)


def segment(text: str) -> str:
    """A text as one segment of a path."""
    return quote(text, safe="")


def listens(path: str) -> bool:
    """Whether somebody takes connections at a unix socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
        door.settimeout(ANSWER_DEADLINE_S)
        return door.connect_ex(path) == 0


def _is_ours(folder: str) -> bool:
    try:
        return os.lstat(folder).st_uid == os.getuid()
    except OSError:
        return False


def _problem(body: bytes) -> dict[str, Any]:
    try:
        problem = json.loads(body)
    except ValueError:
        return {}
    return problem if isinstance(problem, dict) else {}


def _why(away: Exception) -> str:
    if isinstance(away, TimeoutError):
        return "no answer"
    return str(getattr(away, "strerror", None) or str(away) or type(away).__name__).lower()
