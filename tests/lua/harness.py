"""The scripts on a real server whose clock, run id and INFO the tests turn by hand, and what they leave there.

Only the chunk `_server` is extended; PUBLISH counts real subscriptions, so a process is present while it is subscribed.
"""

from __future__ import annotations

import dataclasses
from types import TracebackType
from typing import Any, Self, TypeVar

import redis

from gpulockd.ledger import answers as a
from gpulockd.ledger.keys import PoolKeys
from gpulockd.ledger.limits_verbs import Marked
from gpulockd.ledger.lua_files import library, lua_text
from gpulockd.ledger.picture import core_of
from gpulockd.ledger.publishing import NotOffered, Published, Superseded
from gpulockd.ledger.store import BlockingStore
from gpulockd.ledger.verbs import Call
from tests.lua.model import Said
from tests.lua.model import Server as Turned

T = TypeVar("T")

TURNED_BY_HAND = """
local function turned(name)
  return redis.call('HGET', 'test:' .. string.match(KEYS[1], '{.*}') .. ':server', name)
end

function server.time_ms()
  return tonumber(turned('wall_ms'))
end

function server.info(section)
  return turned(section)
end

function server.run_id()
  return string.match(turned('server'), 'run_id:(%w+)')
end
"""

ALL_KEYS = """
local found = {}
for i, key in ipairs(redis.call('KEYS', ARGV[1])) do
  local kind, rows = redis.call('TYPE', key).ok, {}
  if kind == 'hash' then rows = redis.call('HGETALL', key) end
  if kind == 'zset' then rows = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES') end
  if kind == 'set' then rows = redis.call('SMEMBERS', key) end
  if kind == 'string' then rows = redis.call('GET', key) end
  found[i] = {key, kind, rows, redis.call('PTTL', key)}
end
return found
"""

Value = dict[str, str] | dict[str, float] | set[str] | str


def info_of(server: Turned) -> dict[str, str]:
    """The INFO sections that the scripts read, as a server in that state writes them."""
    flushed = "cmdstat_flushall:calls=1,usec=9\r\n" if server.flushed else ""
    promoted = 7 if server.promoted else -1
    return {
        "wall_ms": str(server.wall_ms),
        "server": f"redis_mode:standalone\r\nrun_id:{server.run_id}\r\nuptime_in_seconds:{server.uptime_s}\r\n",
        "replication": f"# Replication\r\nrole:master\r\nsecond_repl_offset:{promoted}\r\n",
        "commandstats": f"# Commandstats\r\ncmdstat_get:calls=1,usec=1\r\n{flushed}",
    }


def planted(old: str, new: str, chunk: str) -> dict[str, str]:
    """The chunk with one passage replaced; the passage must be there exactly once."""
    text = lua_text(chunk)
    assert text.count(old) == 1, f"{chunk}.lua has {text.count(old)} times: {old}"
    return {chunk: text.replace(old, new)}


class Ledger:
    """One pool on a real server, seen by one thread: scripts, doorbells and keys.

    :param bug: other texts in the place of some Lua files
    """

    def __init__(self, url: str, pool: str, turned: Turned, bug: dict[str, str] | None = None) -> None:
        self.keys = PoolKeys(pool)
        self.turned = turned
        self._library = library({"_server": lua_text("_server") + TURNED_BY_HAND} | (bug or {}))
        self._written: Turned | None = None
        self._store = BlockingStore(url, deadline_s=30.0)
        self._client = redis.Redis.from_url(url, protocol=2)
        self._all_keys = self._client.register_script(ALL_KEYS)
        self._ears = self._client.pubsub()
        self._heard: list[tuple[str, str]] = []
        self._ears.subscribe(f"test:{pool}")
        self._hear_until("subscribe")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.lose_all()
        self._client.delete(self._turned_key)
        self._ears.close()
        self._client.close()
        self._store.close()

    @property
    def _turned_key(self) -> str:
        return f"test:{{{self.keys.pool}}}:server"

    def ask(self, call: Call[T]) -> T:
        """Run a verb under the clock, run id and INFO that the test has turned to."""
        if self._written != self.turned:
            self._client.hset(self._turned_key, items=[word for row in info_of(self.turned).items() for word in row])
            self._written = dataclasses.replace(self.turned)
        return self._store.ask(Call(self._library[call.script.name], call.keys, call.args, call.read))

    def subscribe(self, session: str) -> None:
        """Listen to the doorbell of a session."""
        self._ears.subscribe(self.keys.session_channel(session))
        self._hear_until("subscribe")

    def unsubscribe(self, session: str) -> None:
        """Listen no more."""
        self._ears.unsubscribe(self.keys.session_channel(session))
        self._hear_until("unsubscribe")

    def heard(self) -> list[tuple[str, str]]:
        """The (session, message) pairs that rang since the last call."""
        self._ears.ping()
        self._hear_until("pong")
        heard, self._heard = self._heard, []
        return heard

    def _hear_until(self, word: str) -> None:
        while True:
            reply = self._ears.parse_response(block=True)
            if reply[0] == b"message":
                self._heard.append((reply[1].decode().partition(":session:")[2], reply[2].decode()))
            elif reply[0].decode() == word:
                return

    def all_keys(self) -> dict[str, Value]:
        """Every key of the pool and what stands in it, by its name without the pool; a TTL makes ` (ttl)` of a name."""
        found: dict[str, Value] = {}
        for raw, kind, rows, ttl_ms in self._all_keys(args=[self.keys.base + "*"]):
            name = raw.decode().removeprefix(self.keys.base) + (" (ttl)" if ttl_ms > 0 else "")
            found[name] = _value(kind, rows)
        return found

    def copy(self) -> dict[bytes, tuple[int, bytes]]:
        """All keys of the pool, so that `put_back` can play a failover that loses what came after."""
        names: list[bytes] = list(self._client.scan_iter(match=self.keys.base + "*", count=1000))
        return {name: (max(0, int(self._client.pttl(name))), self._client.dump(name) or b"") for name in names}

    def put_back(self, copied: dict[bytes, tuple[int, bytes]]) -> None:
        """Make the pool what it was at `copy`."""
        self.lose_all()
        for name, (ttl_ms, dump) in copied.items():
            self._client.restore(name, ttl_ms, dump)

    def delete(self, *names: str) -> None:
        """Delete these keys of the pool by hand."""
        self._client.delete(*(self.keys.base + name for name in names))

    def lose_all(self) -> None:
        """Delete every key of the pool."""
        names = list(self._client.scan_iter(match=self.keys.base + "*", count=1000))
        if names:
            self._client.delete(*names)


def _value(kind: bytes, rows: Any) -> Value:
    if kind == b"string":
        return str(rows.decode())
    words = [row.decode() for row in rows]
    if kind == b"hash":
        return _unpacked(dict(zip(words[::2], words[1::2], strict=True)))
    if kind == b"zset":
        return {name: float(score) for name, score in zip(words[::2], words[1::2], strict=True)}
    return set(words)


SHAPES: dict[Any, tuple[str, ...]] = {
    a.Granted: ("granted", "token", "gpus", "waited_ms"),
    a.Joined: ("joined", "token", "lease", "gpus"),
    a.Waiting: ("waiting", "place", "queued", "frozen_ms", "why"),
    a.Busy: ("busy",),
    a.Late: ("late",),
    a.Impossible: ("impossible", "kind", "detail"),
    a.Deadlock: ("would_deadlock", "lease"),
    a.Gone: ("gone", "reason"),
    a.Ended: ("ended", "reason"),
    a.Stale: ("stale", "token"),
    a.Lapsed: ("lapsed",),
    a.Frozen: ("frozen", "remaining_ms", "why"),
    a.Alive: ("alive", "listeners", "has", "lost", "rung", "stops"),
    a.Opened: ("opened", "how", "refused"),
    a.Elsewhere: ("elsewhere", "boot_id"),
    a.Offered: ("offered", "how", "frozen_ms"),
    a.Noted: ("noted", "was"),
    Marked: ("marked", "how", "was"),
    Published: ("published", "version", "defaults"),
    Superseded: ("superseded", "version", "defaults"),
    NotOffered: ("not_offered",),
    a.UnknownGpu: ("unknown_gpu",),
    a.Pictured: ("snapshot",),
    a.NoSession: ("no_session",),
    a.Unopened: ("unopened",),
    a.AskFleet: ("fleet?",),
}


def said(answer: Any) -> Said:
    """An answer in the model's words; what has no order is a set."""
    word, *names = SHAPES[type(answer)]
    return word, *(_unordered(name, getattr(answer, name)) for name in names)


def _unordered(name: str, value: Any) -> Any:
    if name == "gpus":
        return frozenset(gpu.key for gpu in value)
    return frozenset(value) if name in ("has", "lost", "stops", "rung") else value


STATE = ("last_ms", "clock_ms", "stamp", "seq", "due_ms")
TERMS = (
    "run_id",
    "epoch",
    "ttl_ms",
    "step_ms",
    "keepalive_ms",
    "claim_window_ms",
    "priority_step_ms",
    "hold_back_ms",
    "settle_ms",
    "settle_policy",
    "frozen_until",
    "cluster",
    "offered",
    "guarded",
    "version",
)


def _unpacked(fields: dict[str, str]) -> dict[str, str]:
    """The fields of a hash; those that the books pack into one are told apart."""
    for packed, names in (("state", STATE), ("terms", TERMS)):
        if packed in fields:
            words = fields[packed].partition(" [")[0]
            fields |= zip(names, words.split(" "), strict=True)
    return fields | core_of(fields["core"]) if "core" in fields else fields
