"""Who may do what: the peer's uid on the unix socket, the bearer token on TCP, and names that no web page can forge.

Reads are free. A write over TCP needs the token, unless `web.writes: loopback` trusts every local process. Every route
refuses an unknown Host (a page whose name was bent to this address) and a foreign Origin (a page of another site).
"""

from __future__ import annotations

import hmac
import os
import pwd
import secrets
from functools import cache
from typing import Any
from urllib.parse import urlsplit

import msgspec
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from gpulockd.errors import ConfigError
from gpulockd.settings import WebBlock
from gpulockd.web.problems import Problem, problem, refusal, response

TOKEN_FILE = "api-token"
LONGEST_HEAD = 16 * 1024
LONGEST_TARGET = 8 * 1024
OVERFLOW_UID = 65534
FIRST_DELAY_S, LONGEST_DELAY_S, FORGOTTEN_S = 0.2, 1.0, 60.0
WRITE_HINT = 'send the header "Authorization: Bearer $(gpulockd token)", or use the unix socket'

_LOOPBACK = ("127.0.0.1", "::1")


class Peer(msgspec.Struct, frozen=True):
    """The process behind a unix socket, as the kernel knows it; `pid` 0: it is in another PID namespace."""

    pid: int
    uid: int


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """Who sent a request. `peer` is None over TCP; `trusted` may do everything."""

    peer: Peer | None
    trusted: bool

    @property
    def is_unknown(self) -> bool:
        """Whether nobody can say who this is: TCP without the token."""
        return self.peer is None and not self.trusted

    @property
    def user(self) -> str:
        """The user's name; empty over TCP."""
        return user_name(self.peer.uid) if self.peer is not None else ""


def user_name(uid: int) -> str:
    """Return the name of a user, or the number of one that has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def token_of(state: str) -> str:
    """Return the API token of a state folder, made at the first start.

    :raises ConfigError: if its file cannot be read or others may read it
    """
    path = os.path.join(state, TOKEN_FILE)
    try:
        made = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        pass
    except OSError as wrong:
        raise ConfigError(f"{path}: cannot be written: {wrong.strerror}") from None
    else:
        with open(made, "w", encoding="ascii") as file:
            file.write(secrets.token_urlsafe(32) + "\n")
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), encoding="ascii") as file:
            if os.fstat(file.fileno()).st_mode & 0o077:
                raise ConfigError(f"{path}: others may read the token; run: chmod 600 {path}")
            token = file.read().strip()
    except (OSError, UnicodeDecodeError) as wrong:
        raise ConfigError(f"{path}: cannot be read: {wrong}") from None
    if len(token) < 16:
        raise ConfigError(f"{path}: holds no token; delete it, and the next start makes one")
    return token


class Guesses:
    """How often wrong tokens have come lately. Each answer to one comes later than the one before, up to a second;
    nobody else waits, so a right token is never slowed by another's wrong ones."""

    def __init__(self) -> None:
        self._count = 0
        self._last_at = 0.0

    def delay_s(self, now_s: float) -> float:
        """One more has come; return how long its answer must wait (in seconds)."""
        self._count = 1 if now_s - self._last_at > FORGOTTEN_S else self._count + 1
        self._last_at = now_s
        return min(LONGEST_DELAY_S, FIRST_DELAY_S * self._count)


@cache
def names_everybody(uid_map: str = "/proc/self/uid_map") -> bool:
    """Whether every user has a number of its own here: then 65534 is a user too, mostly `nobody`."""
    try:
        with open(uid_map, encoding="ascii") as file:
            return file.read().split() == ["0", "0", "4294967295"]
    except OSError:
        return False


def gave_wrong_token(request: Request, caller: Caller) -> bool:
    """Whether a token came, and not the right one."""
    return caller.is_unknown and "authorization" in request.headers


def caller_of(request: Request, token: str, uid: int, writes: str) -> Caller:
    """Return who sent this request.

    :param uid: the daemon's own user
    :param writes: "token" or "loopback"
    """
    peer: Peer | None = request.scope.get("state", {}).get("peer")
    if peer is not None:
        return Caller(peer=peer, trusted=peer.uid in (0, uid))
    words = request.headers.get("authorization", "").split(" ", 1)
    given = words[1].strip() if len(words) == 2 and words[0].lower() == "bearer" else ""
    # compare_digest takes text of ASCII only, and a header may hold any byte.
    known = hmac.compare_digest(given.encode("utf-8", "replace"), token.encode())
    local = writes == "loopback" and request.client is not None and request.client.host in _LOOPBACK
    return Caller(peer=None, trusted=known or local)


def check_writer(caller: Caller, hint: str = WRITE_HINT) -> None:
    """:raises ProblemError: unless the caller has said who it is: 401 over TCP, 403 for a user nobody can name"""
    if caller.is_unknown:
        headers = {"www-authenticate": "Bearer"}
        raise refusal(401, "unauthorized", "writing over TCP needs the API token", hint, headers=headers)
    if caller.peer is not None and caller.peer.uid == OVERFLOW_UID and not (caller.trusted or names_everybody()):
        detail = "the kernel cannot tell which user this is (another user namespace)"
        raise refusal(403, "forbidden", detail, "run it in the host's user namespace, or use TCP with the token")


def check_operator(caller: Caller) -> None:
    """:raises ProblemError: 403 unless the caller is trusted"""
    if not caller.trusted:
        detail = f"{caller.user or 'this user'} may not change what is everybody's"
        raise refusal(403, "forbidden", detail, "ask as root or as the daemon's user, or over TCP with the token")


def check_owner(caller: Caller, user: str) -> None:
    """:raises ProblemError: 403 unless the caller is trusted, or is the user `user`"""
    if caller.trusted or (caller.peer is not None and user and user == caller.user):
        return
    detail = f"this lease belongs to {user or 'another user'}, and you are {caller.user or 'unknown'}"
    raise refusal(403, "forbidden", detail, "its own user, root and the daemon's user may do this")


class Names:
    """The Host names that this daemon answers to, each with its port."""

    def __init__(self, web: WebBlock, host: str, port: int) -> None:
        """:param host: what it listens on; `port` the number it really has"""
        self.port = port
        self._own = {"localhost", "127.0.0.1", "[::1]"}
        if host not in ("", "0.0.0.0", "::"):
            self._own.add(f"[{host}]" if ":" in host else host.lower())
        self.allow(web)

    def allow(self, web: WebBlock) -> None:
        """Answer to the names that the configuration says now, besides its own."""
        self._allowed = {name.lower() for name in web.allowed_hosts}

    def knows(self, host: str, local: str | None = None) -> bool:
        """Return whether a Host header means this daemon.

        :param local: the address that the connection came to; an address cannot be bent
        """
        host = host.strip().lower()
        name, port = _split(host)
        if host in self._allowed or name in self._allowed:
            return True
        own = name in self._own or (local is not None and name == (f"[{local}]" if ":" in local else local))
        return own and self.port in ((port,) if port else (80, 443))

    def knows_origin(self, origin: str) -> bool:
        """Return whether an Origin header means a page of this daemon."""
        parts = urlsplit(origin)
        return parts.scheme in ("http", "https") and not parts.path and self.knows(parts.netloc)


def _split(host: str) -> tuple[str, int | None]:
    """Return name and port of a Host header; a port that is no number is -1, which none has."""
    name, colon, port = host.rpartition(":")
    if not colon or host.endswith("]"):
        return host, None
    return name, int(port) if port.isascii() and port.isdigit() and len(port) < 6 else -1


class Fence:
    """Refuses what a web page could send, on every route and before anything else."""

    def __init__(self, app: ASGIApp, names: Names) -> None:
        self.app = app
        self.names = names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 421 or 403."""
        refused = self._refused(scope) if scope["type"] == "http" else None
        await (self.app if refused is None else refused)(scope, receive, send)

    def _refused(self, scope: Scope) -> Any:
        hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        origins = [value.decode("latin-1") for name, value in scope["headers"] if name == b"origin"]
        local = scope["server"][0] if scope.get("server") else None
        long = _too_long(scope)
        if long is not None:
            return response(long, {"connection": "close"})
        on_unix = scope.get("state", {}).get("peer") is not None
        if not on_unix and (len(hosts) != 1 or not self.names.knows(hosts[0], local)):
            detail = f"the host {', '.join(hosts) or '(none)'} is not this daemon's"
            hint = f"use localhost:{self.names.port}, or add the name to web.allowed_hosts"
            return response(problem(421, "unknown_host", detail, hint))
        if any(not self.names.knows_origin(origin) for origin in origins):
            detail = f"pages of {', '.join(origins)} may not use this daemon"
            return response(problem(403, "foreign_origin", detail, "use the daemon's own page, or a program"))
        if _sent_by_a_foreign_page(scope):
            detail = "pages of other sites may not use this daemon"
            return response(problem(403, "foreign_origin", detail, "use the daemon's own page, or a program"))
        return None


def _too_long(scope: Scope) -> Problem | None:
    if len(scope["raw_path"]) + len(scope["query_string"]) > LONGEST_TARGET:
        return problem(414, "too_large", f"the URL has more than {LONGEST_TARGET} bytes", "send a shorter one")
    if sum(len(name) + len(value) for name, value in scope["headers"]) > LONGEST_HEAD:
        return problem(
            431, "too_large", f"the headers have more than {LONGEST_HEAD} bytes", "send fewer or shorter ones"
        )
    return None


def _sent_by_a_foreign_page(scope: Scope) -> bool:
    """Whether a browser says that another site's page sends this; a link that is followed may come from anywhere."""
    said = {name: value for name, value in scope["headers"] if name.startswith(b"sec-fetch-")}
    foreign = said.get(b"sec-fetch-site") in (b"cross-site", b"same-site")
    followed = scope["method"] in ("GET", "HEAD") and said.get(b"sec-fetch-mode") == b"navigate"
    return foreign and not followed
