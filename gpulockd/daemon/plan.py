"""What this daemon is to be: the command line over the credentials, over the configuration."""

from __future__ import annotations

import os

import msgspec

from gpulockd.daemon import configuration, folders
from gpulockd.daemon.configuration import Layers
from gpulockd.daemon.credentials import REDIS_URL, credential
from gpulockd.daemon.folders import Folders
from gpulockd.ledger.address import check_url, without_secret
from gpulockd.ledger.keys import PoolKeys
from gpulockd.settings import Settings, Tree, checked, nested

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

    `layers` is what the file, the environment and the command line said at the start.
    """

    settings: Settings
    layers: Layers
    folders: Folders
    pool: str
    listen: str
    url: str | None
    stop_store: bool


def name_of(url: str | None) -> str:
    """Return how a store is called where its copies are kept: its address without what is secret."""
    return EMBEDDED if url is None else without_secret(url).partition("?")[0]


def plan_of(options: Options) -> Plan:
    """Return the plan.

    :raises ConfigError: if the configuration or a flag cannot be used
    """
    loaded = configuration.load(options.config, command=said_by(options))
    settings = loaded.settings
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


def said_by(options: Options) -> Tree:
    """Return what the command line says of settings, as a layer of the configuration.

    :raises ConfigError: for what no setting takes
    """
    said = {
        "pool": options.pool or None,
        "redis.url": options.redis or None,
        "web.listen": options.listen or None,
        "gpus.simulate": options.simulate,
    }
    return checked(nested({path: value for path, value in said.items() if value is not None}))
