"""What torch programs need of a lease: their progress, a checkpoint when asked to stop, the device, and cleaning up.

    with gpu_lock(task="train", soft_timeout="2h", cleanup=clean_up) as lease, stops_on(lease):
        for batch in track(lease, loader, on_stop=save): ...

Nothing here loads torch: a program that did not load it has nothing to clean, and its device is the CPU. A loader's
workers and torchrun's children are the holder's run, so its GPU is not given on while one of them is left.
"""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

from gpulockd.client.lease import LeaseFacts
from gpulockd.client.nesting import inherited_pair
from gpulockd.client.tracking import Tracked
from gpulockd.errors import ConfigError
from gpulockd.model import Gpu

T = TypeVar("T")

__all__ = ["clean_up", "device", "stops_on", "track"]


def track(
    lease: LeaseFacts,
    loader: Iterable[T],
    total: int | None = None,
    *,
    start: int = 0,
    on_stop: Callable[[], object] | None = None,
) -> Tracked[T]:
    """Go through a loader's batches: as `lease.track`.

    :param total: how many batches there will have been; default: `start` and the loader's own length, if it has one
    :param start: how many were done before, by the run that saved the checkpoint
    :param on_stop: called once before the loop ends early because the holder is asked to stop
    :raises LeaseLost: from the loop, before its next batch, if the lease was lost
    """
    return lease.track(loader, total, start=start, on_stop=on_stop)


def clean_up() -> None:
    """Give the card the memory back that torch keeps for itself: `gpu_lock(cleanup=clean_up)`.

    It runs in a thread after the release, and nobody waits for it: not the next holder, and a process that exits for a
    few seconds only. Where torch is not loaded, or has not used a card, it does nothing.
    """
    torch = _torch()
    if torch is not None and torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()


def device(lease: LeaseFacts, local_rank: int | None = None) -> str:
    """The device of a lease as torch calls it here: "cuda:0"; "cpu" where torch sees no card.

    :param local_rank: which of the lease's GPUs; default: `LOCAL_RANK`, which torchrun sets, else the first
    :raises ConfigError: if this process may not see that GPU, or the lease has fewer
    """
    rank = int(os.environ.get("LOCAL_RANK") or 0) if local_rank is None else local_rank
    if not 0 <= rank < len(lease.gpus):
        raise ConfigError(
            f"local rank {rank} has no GPU: the lease has {len(lease.gpus)}; ask for one GPU per process, such as "
            f"gpu_lock(count={rank + 1}) or `gpulockd run -n {rank + 1}`"
        )
    torch, gpu = _torch(), lease.gpus[rank]
    if torch is None or not torch.cuda.is_available():
        return "cpu"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return f"cuda:{_place_in(visible, gpu)}"
    # CUDA may count the cards in another order than the driver does.
    for place in range(torch.cuda.device_count()):
        if f"GPU-{getattr(torch.cuda.get_device_properties(place), 'uuid', '')}" == gpu.uuid:
            return f"cuda:{place}"
    return gpu.device


def _place_in(visible: str, gpu: Gpu) -> int:
    for place, name in enumerate(word.strip() for word in visible.split(",")):
        if name == str(gpu.index) or (name.startswith(("GPU-", "MIG-")) and (gpu.uuid or "").startswith(name)):
            return place
    raise ConfigError(
        f"{gpu} ({gpu.uuid}) is not in CUDA_VISIBLE_DEVICES={visible!r}: start this program with `gpulockd run`, or "
        "without that variable"
    )


@contextmanager
def stops_on(lease: LeaseFacts, number: int = signal.SIGTERM) -> Iterator[None]:
    """While the block runs, that signal asks the holder to stop (`lease.stopping`) instead of ending the program.

    `gpulockd run` sends it at the soft limit, systemd and torchrun at their ends. In the main thread only.

    A holder inside a run may hear of the stop before the signal: one that comes after the block is passed over then.
    """
    came = False

    def asked(number: int, frame: FrameType | None) -> None:
        nonlocal came
        came = True
        # Not in the handler itself: it may have interrupted whoever sets the flag right now.
        threading.Thread(target=lease.stopping.set, name="gpulockd-stop", daemon=True).start()

    def late(number: int, frame: FrameType | None) -> None:
        signal.signal(number, before)

    def at_exit() -> None:
        # The interpreter takes its handlers away before it has ended; what is ignored stays so.
        if signal.getsignal(number) is late:
            signal.signal(number, signal.SIG_IGN)

    before = signal.signal(number, asked)
    try:
        yield
    finally:
        is_due = lease.stopping.is_set() and not came and inherited_pair(lease.pool) is not None
        signal.signal(number, late if is_due else before)
        if is_due:
            atexit.register(at_exit)


def _torch() -> Any:
    """The torch that this program has loaded, None if it has not."""
    return sys.modules.get("torch")
