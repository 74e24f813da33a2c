"""The daemons of other pools: which ones this daemon watches, and whether they are down. Pure.

Each daemon watches the next three that live, in the order of the pools' names around a ring: so each is watched by
three, whatever the size of the fleet, and one that is down breaks no ring.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

WATCHED = 3


class DaemonMark(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a daemon says of itself in the fleet's books: its session in its pool, and whether it has said goodbye."""

    session: str
    host: str = ""
    stopped: bool = False


def marks_of(kept: Mapping[str, bytes]) -> dict[str, DaemonMark]:
    """Return the marks that can be read, by pool."""
    found = {}
    for pool, json in kept.items():
        try:
            found[pool] = msgspec.json.decode(json, type=DaemonMark)
        except msgspec.MsgspecError:
            continue  # another version's
    return found


def around(own: str, marks: Mapping[str, DaemonMark]) -> Iterator[tuple[str, DaemonMark]]:
    """Yield the other pools whose daemons have not said goodbye, the next in the ring first."""
    others = sorted(pool for pool, mark in marks.items() if pool != own and not mark.stopped)
    behind = [pool for pool in others if pool < own]
    for pool in [*others[len(behind) :], *behind]:
        yield pool, marks[pool]
