"""The one call that gives a task what it holds and what it asks for besides, so that it never waits for itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from gpulockd.model import GPU_KEY_PREFIX, Gpu, Wants

NO_CALL = "no one call gives both here: end the block that holds it before asking for the other"


class Hold(NamedTuple):
    """What one lease was asked for as, and the keys that it got."""

    wants: Wants
    keys: tuple[str, ...]


def one_call(holds: Sequence[Hold], wants: Wants, offered: Sequence[Gpu]) -> str:
    """What to do instead of asking for `wants` while holding.

    :param holds: what the task holds; at least one
    :param offered: the pool's gpus; none, if they are not known
    """
    whole = wants.exclusive or any(hold.wants.exclusive for hold in holds)
    memory_mib = max(wants.memory_mib, *(hold.wants.memory_mib for hold in holds))
    if wants.keys or (offered and any(hold.wants.keys for hold in holds)):
        keys = _keys(holds, wants, offered)
        budget = () if whole else _memory(memory_mib, whole=False)  # a whole card has all of its memory
        return NO_CALL if not keys else f"ask for all of it in the outer call, {_call(_named(keys), *budget)}"
    held = len({key for hold in holds for key in hold.keys})
    count = max(held, wants.count)
    fitting = sum((gpu.memory_mib or 0) >= memory_mib for gpu in offered)
    if offered and count > fitting:
        return NO_CALL
    text = f"ask for all of it in the outer call, {_call(*_count(count), *_memory(memory_mib, whole=whole))}"
    if not memory_mib and held + wants.count <= fitting:
        text += f", or {_call(*_count(held + wants.count))} if these are wanted beside those"
    return text


def outer_run(wants: Wants) -> str:
    """The options of an outer `gpulockd run` that covers `wants`, as far as they alone say."""
    if wants.keys:
        named = ",".join(key.removeprefix(GPU_KEY_PREFIX) if _is_index(key) else key for key in wants.keys)
        return f"with {named} in its --gpu besides what it has"
    memory = f" --memory {_size(wants.memory_mib)}" if wants.memory_mib and not wants.exclusive else ""
    return f"such as `gpulockd run -n {wants.count}{memory}`"


def _keys(holds: Sequence[Hold], wants: Wants, offered: Sequence[Gpu]) -> tuple[str, ...]:
    """The gpus to name: those held and those asked for by name, and as many more as `wants` takes; none if too few."""
    named = {key for hold in holds for key in hold.keys} | set(wants.keys)
    if any(not key.startswith(GPU_KEY_PREFIX) for key in named):
        return ()
    if not wants.keys:
        fitting = [gpu.key for gpu in offered if (gpu.memory_mib or 0) >= wants.memory_mib]
        lacking = wants.count - len(named.intersection(fitting))
        more = [key for key in fitting if key not in named][: max(0, lacking)]
        if len(more) < lacking:
            return ()
        named.update(more)
    return tuple(sorted(named, key=lambda key: (not _is_index(key), int(key[9:]) if _is_index(key) else 0, key)))


def _named(keys: tuple[str, ...]) -> str:
    return f"gpus=[{', '.join(key.removeprefix(GPU_KEY_PREFIX) if _is_index(key) else repr(key) for key in keys)}]"


def _is_index(key: str) -> bool:
    return key.removeprefix(GPU_KEY_PREFIX).isdigit()


def _count(count: int) -> tuple[str, ...]:
    return (f"count={count}",) if count > 1 else ()


def _memory(memory_mib: int, *, whole: bool) -> tuple[str, ...]:
    if not memory_mib:
        return ()
    size = f"memory='{_size(memory_mib)}'"
    return (size, "exclusive=True") if whole else (size,)


def _size(memory_mib: int) -> str:
    return f"{memory_mib // 1024}GiB" if memory_mib % 1024 == 0 else f"{memory_mib}MiB"


def _call(*words: str) -> str:
    return f"gpu_lock({', '.join(words)})"
