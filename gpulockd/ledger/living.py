"""Who lives in a pool, and what its daemon has published: plain reads, for who counts heads and locks nothing by them.

A session that is due to end is ended by the next script; whoever must not count it asks one before.
"""

from __future__ import annotations

import msgspec

from gpulockd.ledger.keys import PoolKeys
from gpulockd.ledger.publishing import Published, publish, published
from gpulockd.ledger.store import Store
from gpulockd.ledger.verbs import encode

MOST_SESSIONS = 10_000


class Living(msgspec.Struct, frozen=True, kw_only=True):
    """A pool's living sessions: the one of the daemon that offers it, "" if that is gone, and all others.

    `candidate`: the rollout whose candidate the pool publishes, "" for none.
    """

    daemon: str
    sessions: tuple[str, ...]
    candidate: str


class _Candidate(msgspec.Struct):
    rollout: str = ""


class _Published(msgspec.Struct):
    candidate: _Candidate | None = None


async def living(store: Store, keys: PoolKeys) -> Living:
    """Read who lives in a pool.

    :raises StoreUnavailable: if the store does not answer
    """
    offerer = await store._command("HGET", keys.base + "meta", "offer_session")
    ids = await store._command("ZRANGE", keys.base + "sessions", 0, MOST_SESSIONS - 1)
    published = await store._command("HGET", keys.base + "offer", "defaults")
    daemon = offerer.decode() if offerer else ""
    sessions = tuple(id.decode() for id in ids)
    return Living(
        daemon=daemon if daemon in sessions else "",
        sessions=tuple(id for id in sessions if id != daemon),
        candidate=_candidate(published),
    )


def _candidate(published: bytes | None) -> str:
    try:
        found = msgspec.json.decode(published or b"{}", type=_Published).candidate
    except msgspec.MsgspecError:
        return ""
    return found.rollout if found is not None else ""


async def take_back(store: Store, keys: PoolKeys, rollout: str) -> bool:
    """Take a rollout's candidate back from the clients of a pool whose daemon is gone. Returns whether that was done.

    :raises StoreUnavailable: if the store does not answer
    """
    stands = await store.ask(published(keys))
    if not isinstance(stands, Published) or _candidate(encode(stands.defaults)) != rollout:
        return False
    defaults = {name: value for name, value in stands.defaults.items() if name != "candidate"}
    facts = {"reason": f"rollout {rollout}"}
    call = publish(
        keys, session="", version=stands.version + 1, defaults=defaults, kind="config_rolled_back", facts=facts
    )
    return type(await store.ask(call)) is Published


async def cpu_time_s(store: Store) -> float | None:
    """Read the CPU time that the server has used since its start (in seconds); None if it does not say.

    :raises StoreUnavailable: if the store does not answer
    """
    info = await store._info("cpu")
    try:
        return float(info["used_cpu_sys"]) + float(info["used_cpu_user"])
    except (KeyError, TypeError, ValueError):
        return None
