"""How a request waits now, under YiVideo's names."""

from __future__ import annotations

from typing import Any

import msgspec

from gpulockd.client.process import known_session
from gpulockd.client.wishes import gpu_lock_block
from gpulockd.compat.yivideo import pool
from gpulockd.errors import StoreUnavailable
from gpulockd.ledger.keys import PoolKeys
from gpulockd.ledger.publishing import Published, published
from gpulockd.ledger.store import Store

FALLBACK_TIMEOUT_S = 30


def get_gpu_lock_config(task_name: str = "") -> dict[str, Any]:
    """What a request that begins now goes by (in seconds): live, the environment, the pool's file, the defaults.

    Without a store it is what the environment and the defaults say. `use_event_driven` and `fallback_timeout` are what
    YiVideo has for them: waiting is always event-driven, and polls only while no notification can come.

    :param task_name: with what the configuration says for this task (`tasks.<name>`)
    :raises ConfigError: if a variable of the environment cannot be used
    """
    session = known_session(None)
    if session is not None and session.is_open:
        block = gpu_lock_block(session.defaults, session.id, task_name)
    else:
        block = gpu_lock_block(_published(), "", task_name)
    values = {name: _plain(value) for name, value in msgspec.structs.asdict(block).items()}
    return values | {"use_event_driven": True, "fallback_timeout": FALLBACK_TIMEOUT_S}


def _published() -> dict[str, Any]:
    try:
        return pool.ask(_read)
    except StoreUnavailable:
        return {}


async def _read(store: Store, keys: PoolKeys) -> dict[str, Any]:
    answer = await store.ask(published(keys))
    return answer.defaults if isinstance(answer, Published) else {}


def _plain(value: object) -> object:
    """Whole seconds as whole numbers, as they are written."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
