"""A daemon whose configuration is changed while it runs, and what can be seen of that."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpulockd import GpuLockTimeout, gpu_lock
from gpulockd.events import Event, decode
from gpulockd.ledger.keys import PoolKeys
from gpulockd.ledger.store import Store
from tests.daemons import Daemon, Reply, eventually

CONFIG = "/api/v1/config"


def config_file(daemon: Daemon) -> Path:
    """The configuration file of a daemon that `running_daemon` has started."""
    return daemon.runtime.parent / "config.yml"


def write_config(daemon: Daemon, tree: dict[str, Any]) -> None:
    """Write the file as an editor does: another file in its place."""
    path = config_file(daemon)
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(tree))
    fresh.replace(path)


async def shown(daemon: Daemon) -> Any:
    """What the daemon says of its configuration."""
    return (await daemon.ask("GET", CONFIG)).json


async def value(daemon: Daemon, path: str) -> Any:
    """One setting that is in force."""
    found = (await shown(daemon))["settings"]
    for step in path.split("."):
        found = found[step]
    return found


async def number(daemon: Daemon) -> int:
    """The revision in force."""
    return int((await shown(daemon))["revision"]["number"])


async def history(daemon: Daemon) -> list[Any]:
    """The revisions, latest first."""
    return list((await daemon.ask("GET", f"{CONFIG}/history")).json["revisions"])


async def set_live(daemon: Daemon, tree: dict[str, Any], **more: Any) -> Reply:
    """Set something live."""
    return await daemon.ask("POST", CONFIG, {"set": tree, **more})


async def roll_back(daemon: Daemon, **body: Any) -> Any:
    """Go back, and what came of it."""
    reply = await daemon.ask("POST", f"{CONFIG}/rollback", body)
    assert reply.status == 200, reply.body
    return reply.json


async def until_value(daemon: Daemon, path: str, wanted: Any) -> None:
    """Wait until a setting is in force."""

    async def holds() -> bool:
        return bool(await value(daemon, path) == wanted)

    await eventually(holds, 30)


async def until_shown(daemon: Daemon, holds: Callable[[Any], Any]) -> None:
    """Wait until what the daemon says of its configuration is so."""

    async def look() -> bool:
        return bool(holds(await shown(daemon)))

    await eventually(look, 30)


async def events_of(url: str, pool: str) -> list[Event]:
    """The events of a pool."""
    store = Store(url, deadline_s=30)
    try:
        found = [decode(json) for json in await store.read_events(PoolKeys(pool).events_channel, "0", 1000)]
    finally:
        await store.aclose()
    return [event for event in found if event is not None]


async def times_out(**arguments: Any) -> bool:
    """Whether a request of this process, for a gpu that somebody has, times out by the settings that it finds."""
    try:
        async with gpu_lock("gpu_lock:0", task="asks", **arguments):
            return False
    except GpuLockTimeout:
        return True
