"""One lease, as `renew` and `progress` speak of it: which one is meant, and what is new of it."""

from __future__ import annotations

import os
from typing import Any

from gpulockd.cli import http
from gpulockd.cli.options import Parser
from gpulockd.cli.talk import NEGATIVE, CommandError

VARIABLE = "GPULOCKD_LEASE"
ENDED = {404, 410}
"""The answers by which a lease has ended, or never was."""


def named(parser: Parser, said: str | None) -> str:
    """Return the lease that was said, else the one that this shell or run has.

    :raises CommandError: if there is neither
    """
    lease = said or os.environ.get(VARIABLE)
    if not lease:
        parser.error(f"no lease: say its id, or call this where {VARIABLE} is set, as inside 'gpulockd run'")
    return lease


def amend(daemon: http.Daemon, lease: str, new: dict[str, Any]) -> dict[str, Any]:
    """Tell the daemon what is new of a lease, and return what it is now.

    :raises CommandError: if it has ended, or is another user's
    """
    try:
        with daemon:
            return daemon.ask("PATCH", f"/api/v1/leases/{http.segment(lease)}", new)
    except http.Refused as refused:
        if refused.status in ENDED:
            raise CommandError(
                f"the lease {lease} has ended", "stop using its GPU; 'gpulockd status' shows who has it now", NEGATIVE
            ) from None
        if refused.kind == "not_timed":
            hint = "only a lease of 'gpulockd acquire --ttl 10m' is renewed; 'gpulockd release' ends this one"
            raise CommandError(refused.what, hint, NEGATIVE) from None
        raise
