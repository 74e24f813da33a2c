"""What a request goes by: what its pool has published, its own environment, and what was changed live.

The pool's daemon publishes what its file and its environment say, and beside it the live changes, for these go over the
environment of a client too. While a new revision is tried out, some sessions go by that one: a session's place in
[0, 1) says whether it is among them, and is the same wherever it is worked out.
"""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from gpulockd.client.environment import Said
from gpulockd.settings import GpuLockBlock, Tree, merged
from gpulockd.settings.kinds import LONGEST_S
from gpulockd.settings.overrides import WAITING

SESSION_CHARACTERS = 8
"""How much of a session's id its place comes from: as much as events say of it."""

MOST_KEPT = 256

_KINDS = {name: type(value) for name, value in msgspec.structs.asdict(GpuLockBlock()).items()}


class InForce(msgspec.Struct, frozen=True, kw_only=True):
    """How a request waits, the number of the revision that says so, and whether that one is only tried out."""

    gpu_lock: GpuLockBlock
    revision: int = 0
    is_tried_out: bool = False


class Published(msgspec.Struct, frozen=True, kw_only=True):
    """What one session goes by, of what its pool has published: `base` is the daemon's file and environment."""

    base: Tree
    live: Tree
    revision: int = 0
    is_tried_out: bool = False

    @classmethod
    def of(cls, defaults: Tree, session: str) -> Published:
        """What counts for this session.

        :param defaults: as published; what cannot be understood of it, for it is of another version, is left out
        """
        candidate = _tree(defaults.get("candidate"))
        below, rollout = candidate.get("below"), candidate.get("rollout")
        tried = isinstance(below, int | float) and isinstance(rollout, str) and share_of(rollout, session) < below
        source = candidate if tried else defaults
        revision = source.get("revision")
        return cls(
            base=_ours(defaults),
            live=_ours(_tree(source.get("live"))),
            revision=revision if isinstance(revision, int) else 0,
            is_tried_out=tried,
        )

    def in_force(self, here: Tree, task: str) -> InForce:
        """How a request for this task waits.

        What is said of the task goes before what is said of all, in whichever layer.

        :param here: what the environment of the client says
        """
        whole = merged(self.base, here, self.live)
        of_task = _values(_tree(_tree(whole.get("tasks")).get(task)), WAITING)
        block = GpuLockBlock(**_values(_tree(whole.get("gpu_lock")), tuple(_KINDS)) | of_task)
        if block.max_poll_interval < block.poll_interval:  # of two layers, which nobody has seen together
            block = msgspec.structs.replace(block, max_poll_interval=block.poll_interval)
        return InForce(gpu_lock=block, revision=self.revision, is_tried_out=self.is_tried_out)


def share_of(rollout: str, session: str) -> float:
    """The place of a session in [0, 1) in a rollout."""
    place = hashlib.blake2b(f"{rollout}/{session[:SESSION_CHARACTERS]}".encode(), digest_size=6).digest()
    return int.from_bytes(place) / 2**48


def _tree(said: Any) -> Tree:
    return said if isinstance(said, dict) else {}


def _ours(said: Tree) -> Tree:
    return {name: said[name] for name in ("gpu_lock", "tasks") if isinstance(said.get(name), dict)}


def _values(said: Tree, names: tuple[str, ...]) -> Tree:
    """What a block says, of what this version understands."""
    values: Tree = {}
    for name in names:
        value, kind = said.get(name), _KINDS[name]
        if isinstance(value, bool) or kind is bool:
            if isinstance(value, bool) and kind is bool:
                values[name] = value
        elif isinstance(value, int | float) and 0 <= value <= LONGEST_S:
            values[name] = float(value)
    return values


_GPU_LOCK = Said.of("GPU_LOCK", GpuLockBlock)
_TASKS = Said(tasks="GPULOCKD_TASKS")


def gpu_lock_for(defaults: Tree, session: str = "", task: str = "") -> InForce:
    """How a request that begins now waits.

    :param defaults: what the pool has published, as it came
    :raises ConfigError: if a variable of the environment cannot be used
    """
    global _latest
    latest, here, tasks = _latest, _GPU_LOCK.read(), _TASKS.read()
    if latest is None or not (latest[0] is defaults and latest[1] is here and latest[2] is tasks):
        latest = _latest = (defaults, here, tasks, {})
    known = latest[3].get((session, task))
    if known is None:
        known = Published.of(defaults, session).in_force({"gpu_lock": here, **tasks}, task)
        if len(latest[3]) >= MOST_KEPT:
            latest[3].clear()
        latest[3][session, task] = known
    return known


_latest: tuple[Tree, Tree, Tree, dict[tuple[str, str], InForce]] | None = None
"""What was worked out last, and of what; a process makes many requests between two changes."""
