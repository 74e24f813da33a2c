"""What a pool publishes for its clients: the daemon that offers the pool says it, under a version that only grows."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from gpulockd.ledger import answers as a
from gpulockd.ledger import reading
from gpulockd.ledger.keys import PoolKeys
from gpulockd.ledger.lua_files import script
from gpulockd.ledger.verbs import Call, encode

Told = Literal["config_changed", "config_rolled_back"]


class Published(a.Answer, frozen=True, kw_only=True):
    """What the pool's clients go by, and its version."""

    version: int
    defaults: dict[str, Any]


class Superseded(Published, frozen=True, kw_only=True):
    """Nothing was changed: the pool has this, under the same version or a later one."""


class NotOffered(a.Answer, frozen=True, kw_only=True):
    """Nothing was changed: the pool is not offered by this session."""


def publish(
    keys: PoolKeys,
    *,
    session: str,
    version: int,
    defaults: dict[str, Any],
    kind: Told | None = None,
    facts: dict[str, Any] | None = None,
) -> Call[Published | Superseded | NotOffered | a.NoSession | a.Unopened]:
    """Publish other defaults. Asked again with the same version and defaults, it changes and tells nothing.

    :param session: of the daemon that offers the pool
    :param version: above the pool's
    :param kind: the event that tells of it, with `facts` as its fields (at least one)
    """
    args = (session, str(version), encode(defaults), kind or "", encode(facts or {"reason": ""}))
    return Call(script("publish"), keys, args, _read)


def published(keys: PoolKeys) -> Call[Published | a.Unopened]:
    """Read what the pool publishes now."""
    return Call(script("published"), keys, ("",), _read)


def heard(words: str) -> tuple[int, dict[str, Any]]:
    """The version and the defaults of a message: what stands behind its first word.

    :raises ValueError: if it is none
    """
    version, _, defaults = words.partition(" ")
    return int(version), msgspec.json.decode(defaults, type=dict[str, Any])


def _read(reply: list[Any]) -> Any:
    word = reply[0]
    if word not in (b"published", b"superseded", b"not_offered"):
        return reading.progressed(reply)
    clock, now_ms = reading._terms(reply)
    if word == b"not_offered":
        return NotOffered(clock=clock, now_ms=now_ms)
    kind = Published if word == b"published" else Superseded
    defaults = msgspec.json.decode(reply[7], type=dict[str, Any])
    return kind(clock=clock, now_ms=now_ms, version=int(reply[6]), defaults=defaults)
