"""The names on the fleet's list of pools: those that can be one, and what anybody else has put there."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from gpulockd.errors import ConfigError
from gpulockd.ledger.keys import FLEET_POOLS, PoolKeys

log = logging.getLogger("gpulockd")

MOST_TOLD = 100
"""So many names are remembered as told; whoever writes thousands need not fill a log."""

_told: set[bytes] = set()


def usable(found: Iterable[bytes]) -> list[str]:
    """Return the names that can be a pool's, sorted. Others are passed over, each with one line in the log."""
    good = []
    for name in found:
        if is_usable(name):
            good.append(name.decode("ascii"))
        elif name not in _told and len(_told) < MOST_TOLD:
            _told.add(name)
            log.warning(
                "gpulockd: %r in the store's set %s is no name of a pool and is passed over; "
                "'gpulockd doctor' says how to remove it",
                name[:80],
                FLEET_POOLS,
            )
    return sorted(good)


def is_usable(name: bytes) -> bool:
    """Whether it can be the name of a pool."""
    try:
        PoolKeys(name.decode("ascii"))
    except (UnicodeDecodeError, ConfigError):
        return False
    return True
