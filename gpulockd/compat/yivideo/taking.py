"""An operator takes a lock away from whoever has it: exactly that lease, so that who comes after it is not touched."""

from __future__ import annotations

import logging

from gpulockd.compat.yivideo import holds, pool
from gpulockd.compat.yivideo.manager import lock_manager
from gpulockd.ledger import answers as a
from gpulockd.ledger import verbs
from gpulockd.ledger.keys import PoolKeys
from gpulockd.ledger.store import Store
from gpulockd.model import DEFAULT_KEY
from gpulockd.units import check_key

log = logging.getLogger("gpu_lock_monitor")

ANYBODY = ("manual", "")
"""What YiVideo calls a release that names no task."""


def release_gpu_lock(lock_key: str = DEFAULT_KEY, task_name: str = ANYBODY[0]) -> bool:
    """Take a lock away from its holder, who is told; what its run leaves on the card is waited for.

    :param task_name: only if this task, or run, has it; "manual": whoever has it
    :returns: whether somebody had it and has it no more; False too where several share it, for none of them is meant
    :raises StoreUnavailable: if the store cannot be asked
    """
    key = check_key(lock_key)
    if holds.of_run(task_name, key) is not None:
        return lock_manager.release_lock(task_name, key)

    async def take(store: Store, keys: PoolKeys) -> bool:
        holders = pool.holders_of(await pool.pictured(store, keys), key)
        if len(holders) != 1:
            return False
        lease = holders[0]
        if task_name not in (*ANYBODY, lease.job.task, pool.task_id_of(lease)):
            return False
        call = verbs.end(keys, session="", id=lease.id, token=lease.token, reason="operator")
        answer = await store.ask(call)
        return isinstance(answer, a.Ended)

    taken = pool.ask(take)
    if taken:
        log.info("成功强制释放GPU锁 %s", key)
    return taken
