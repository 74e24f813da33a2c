"""The environment of a run: what it holds, and where to ask; what an outer run had said is taken out first."""

from __future__ import annotations

import os
from collections.abc import Mapping

from gpulockd import places
from gpulockd.cli.wish import Grant

OURS = (
    "CUDA_VISIBLE_DEVICES",
    "GPULOCKD_LEASE",
    "GPULOCKD_TOKEN",
    "GPULOCKD_POOL",
    "GPULOCKD_SOCKET",
    "GPULOCKD_REDIS_URL",
)


def of_run(inherited: Mapping[str, str], grant: Grant, socket: str) -> dict[str, str]:
    """The environment of the command: the inherited one with this lease in it."""
    env = {name: value for name, value in inherited.items() if name not in OURS}
    uuids = [str(gpu["uuid"]) for gpu in grant.gpus if gpu.get("uuid")]
    if uuids:
        env["CUDA_VISIBLE_DEVICES"] = ",".join(uuids)
    env["GPULOCKD_LEASE"] = grant.lease
    env["GPULOCKD_TOKEN"] = str(grant.token)
    env["GPULOCKD_POOL"] = grant.pool
    env["GPULOCKD_SOCKET"] = socket
    # A private store is found through the daemon's folder, which may be mounted elsewhere; another one by its URL.
    folder = os.path.dirname(socket)
    store = places.store_seen_from(folder, grant.store)
    private = store.startswith("unix://") and os.path.dirname(store[7:]) == folder
    if not private:
        env["GPULOCKD_REDIS_URL"] = grant.store
    return env | {name: value for name, value in grant.env.items() if name not in env}
