"""How long a lease may last without its holder."""

from __future__ import annotations

from gpulockd.errors import ConfigError

SHORTEST_TTL_S = 0.05
LONGEST_TTL_S = 7 * 86_400.0


def check_ttl(ttl_s: float) -> float:
    """Return the time that a lease lasts without its holder (in seconds).

    :raises ConfigError: if it is shorter than 50 ms or longer than a week
    """
    if not SHORTEST_TTL_S <= ttl_s <= LONGEST_TTL_S:
        raise ConfigError(f"ttl: {ttl_s:,.10g} s; say 50 ms to 7 days, and renew it")
    return ttl_s
