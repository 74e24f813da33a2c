"""What this daemon is to be: the command line over the credentials, over the configuration."""

from __future__ import annotations

import os

import msgspec

from gpulockd.daemon import configuration, folders
from gpulockd.daemon.configuration import Layers
from gpulockd.daemon.credentials import REDIS_URL, credential
from gpulockd.daemon.folders import Folders
from gpulockd.ledger.address import check_url
from gpulockd.ledger.keys import PoolKeys
from gpulockd.settings import Settings

DEFAULT_POOL = "default"
EMBEDDED = "embedded"


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line says; None is what the configuration says.

    `redis` is a URL or "embedded"; `simulate` the number of simulated GPUs, 0 for none.
    """

    config: str | None = None
    simulate: int | None = None
    listen: str | None = None
    socket: str | None = None
    redis: str | None = None
    pool: str | None = None
    state_dir: str | None = None
    stop_store: bool = False


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What this daemon is to be: the command line over the configuration. `url` None: the embedded store.

    `layers` is what file and environment said at the start, without the command line.
    """

    settings: Settings
    layers: Layers
    folders: Folders
    pool: str
    listen: str
    url: str | None
    stop_store: bool


def plan_of(options: Options) -> Plan:
    """Return the plan.

    :raises ConfigError: if the configuration or a flag cannot be used
    """
    loaded = configuration.load(options.config)
    settings = loaded.settings
    if options.simulate is not None:
        settings = msgspec.structs.replace(
            settings, gpus=msgspec.structs.replace(settings.gpus, simulate=options.simulate)
        )
    pool = options.pool or settings.pool or os.environ.get("GPULOCKD_POOL") or DEFAULT_POOL
    PoolKeys(pool)  # refuses what cannot be a name, before anything is made of it
    url = options.redis or credential(REDIS_URL) or settings.redis.url
    return Plan(
        settings=settings,
        layers=loaded.layers,
        folders=folders.resolve(options.socket, options.state_dir),
        pool=pool,
        listen=options.listen or settings.web.listen,
        url=None if url in (None, EMBEDDED) else check_url(url),
        stop_store=options.stop_store,
    )
