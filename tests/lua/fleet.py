"""The fleet's configuration on a real server, in a slot of the test's own, with a clock that the test turns."""

from __future__ import annotations

import secrets
from types import TracebackType
from typing import Any, Self

import redis

from gpulockd.ledger.keys import FleetKeys
from gpulockd.ledger.lua_files import fleet_library, lua_text
from gpulockd.ledger.store import BlockingStore
from gpulockd.ledger.verbs import Call
from tests.lua.both import START_MS
from tests.lua.harness import TURNED_BY_HAND


class OwnKeys(FleetKeys):
    """The fleet's keys under another slot."""

    def __init__(self, keys: tuple[bytes, ...], slot: str) -> None:
        super().__init__()
        self.wire = tuple(key.replace(b"{fleet}", slot.encode()) for key in keys)


class Fleet:
    """One fleet. `wall_ms` is the server's TIME.

    :param bug: other texts in the place of some Lua files
    """

    def __init__(self, url: str, bug: dict[str, str] | None = None) -> None:
        self.slot = f"{{fleet-{secrets.token_hex(6)}}}"
        self.base = f"gpulockd:{self.slot}:"
        self.wall_ms = START_MS
        self._library = fleet_library({"_server": lua_text("_server") + TURNED_BY_HAND} | (bug or {}))
        self._store = BlockingStore(url, deadline_s=30.0)
        self.raw = redis.Redis.from_url(url, protocol=2, decode_responses=True)
        self._ears = self.raw.pubsub(ignore_subscribe_messages=True)
        self._ears.subscribe(self.base + "config")
        self._ears.get_message(timeout=30.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.lose_all()
        self.raw.delete(f"test:{self.slot}:server")
        self._ears.close()
        self.raw.close()
        self._store.close()

    async def ask(self, call: Call[Any]) -> Any:
        """Run a verb under the test's clock."""
        turned: dict[Any, Any] = {"wall_ms": str(self.wall_ms), "server": "redis_mode:standalone\r\nrun_id:abc\r\n"}
        self.raw.hset(f"test:{self.slot}:server", mapping=turned)
        script = self._library[call.script.name]
        return self._store.ask(Call(script, OwnKeys(call.keys.wire, self.slot), call.args, call.read))

    def heard(self) -> list[str]:
        """What was told on the channel since the last call."""
        self.raw.publish(self.base + "config", "end of the test's messages")
        said: list[str] = []
        while True:
            message = self._ears.get_message(timeout=30.0)
            assert message is not None, "a message of the test itself was lost"
            if message["data"] == "end of the test's messages":
                return said
            said.append(str(message["data"]))

    def keys(self) -> set[str]:
        """The names of all keys of the fleet."""
        return {key.removeprefix(self.base) for key in self.raw.scan_iter(match=self.base + "*", count=1000)}

    def lose_all(self) -> None:
        """Delete every key of the fleet, as FLUSHALL does."""
        for name in self.keys():
            self.raw.delete(self.base + name)
