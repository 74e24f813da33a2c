"""GPUs that do not exist, for trying, testing and hosts without a card. What is on them is real.

Each has a folder, `gpu<index>` in the cards' folder, in which files are facts:

- `processes/<pid>`: `<start time in ticks> <used MiB> [compute | graphics | mps]`, written by `occupy`. It counts
  while that very process lives, and not as a zombie: then its memory would be free on a real card too.
- `hidden`: MiB in use by processes that the driver does not show, as in a container.
- `lost`: the card is lost while the file is there.
- `hang`: each question about the card hangs while the file is there.
- `recovery`: what the card needs ("gpu_reset"); without the file "none".
- `xid`: XIDs to report, one a line; the file is taken away when read.
"""

from __future__ import annotations

import os
import time
import uuid as uuids
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Literal, TypeVar

import anyio
import anyio.abc

from gpulockd.clock import wall_ms
from gpulockd.hardware import troubles
from gpulockd.hardware.processes.identity import stat_of
from gpulockd.hardware.readings import CardProcess, CardTrouble, ProcessKind, Reading, Tell
from gpulockd.hardware.workers import HangsError, Worker
from gpulockd.model import GPU_KEY_PREFIX, Gpu

MEMORY_MIB = 24576
DEADLINE_S = 5.0
LOOK_S = 1.0
"""How often the files of troubles are looked for (in seconds)."""

_IDLE_C, _IDLE_W, _BUSY_C, _BUSY_W = 35.0, 25.0, 65.0, 250.0
_NAMESPACE = uuids.UUID("6d1f5c1e-1f0b-5b0a-9d0c-6770756c6f63")
_KINDS: dict[str, ProcessKind] = {"compute": "compute", "graphics": "graphics", "mps": "mps"}

T = TypeVar("T")


class SimulatedCards:
    """`count` simulated cards of `memory_mib` MiB each, with the same UUIDs at every start of the same pool."""

    source: Literal["simulated"] = "simulated"

    def __init__(
        self,
        pool: str,
        count: int,
        *,
        memory_mib: int = MEMORY_MIB,
        folder: str | None = None,
        why: str = "as configured",
        cure: str = "",
        deadline_s: float = DEADLINE_S,
    ) -> None:
        """:param folder: where their facts are; None: nothing is ever on them (deadline in seconds)"""
        self._why = why
        self._cure = cure
        self._folder = folder
        self._deadline_s = deadline_s
        self._gpus = tuple(_card(pool, index, memory_mib) for index in range(count))
        self._by_uuid = {gpu.uuid: gpu for gpu in self._gpus}
        self._workers: dict[str, Worker] = {}

    async def list(self) -> tuple[Gpu, ...]:
        """Return the simulated GPUs in index order, but for those that are lost."""
        return tuple(gpu for gpu in self._gpus if not self._is(gpu, "lost"))

    async def read(self, uuid: str) -> Reading:
        """Return a sample; busy means that somebody is on it. As `Cards.read`."""
        return await self._of_card(uuid, self._read)

    async def processes(self, uuid: str) -> tuple[CardProcess, ...]:
        """Return the processes that said they are on it and live. As `Cards.processes`."""
        return await self._of_card(uuid, self._processes)

    async def look(self, uuid: str) -> tuple[Reading, tuple[CardProcess, ...] | None]:
        """Return both at once. As `Cards.look`."""
        return await self._of_card(uuid, self._look)

    async def watch(self, tell: Tell, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Call `tell` for the XIDs that somebody wrote, until cancelled."""
        task_status.started()
        while True:
            for gpu in self._gpus:
                for xid in _taken(self._path(gpu, "xid")):
                    tell(CardTrouble(uuid=str(gpu.uuid), kind="xid", code=xid))
            await anyio.sleep(LOOK_S)

    async def reopen(self) -> None:
        """Do nothing: there is no driver to begin anew with."""

    def describe(self) -> str:
        """Return one sentence: why these are simulated, how many, and how to turn it off."""
        count = len(self._gpus)
        sentence = f"{self._why}: simulating {count} GPU{'' if count == 1 else 's'}"
        return f"{sentence}; {self._cure}" if self._cure else sentence

    def close(self) -> None:
        """Let the threads end."""
        for worker in self._workers.values():
            worker.close()

    def __repr__(self) -> str:
        return f"<SimulatedCards {len(self._gpus)}>"

    async def _of_card(self, uuid: str, question: Callable[[Gpu], T]) -> T:
        gpu = self._by_uuid.get(uuid)
        if gpu is None:
            raise troubles.lost(uuid, troubles.NOT_FOUND, "not found")
        worker = self._workers.setdefault(uuid, Worker(f"simulated-{gpu.index}"))
        try:
            return await worker.do(partial(self._asked, gpu, question), self._deadline_s)
        except HangsError as trouble:
            how = "still hangs in an earlier call" if trouble.again else f"has not answered for {self._deadline_s:g} s"
            raise troubles.unanswered(how) from None

    def _asked(self, gpu: Gpu, question: Callable[[Gpu], T]) -> T:
        """Answer in a thread, as a driver would."""
        while self._is(gpu, "hang"):
            time.sleep(0.05)
        if self._is(gpu, "lost"):
            raise troubles.lost(str(gpu.uuid), troubles.LOST, "GPU is lost")
        return question(gpu)

    def _look(self, gpu: Gpu) -> tuple[Reading, tuple[CardProcess, ...]]:
        here = self._processes(gpu)
        return self._reading(gpu, here), here

    def _read(self, gpu: Gpu) -> Reading:
        return self._reading(gpu, self._processes(gpu))

    def _reading(self, gpu: Gpu, here: tuple[CardProcess, ...]) -> Reading:
        total = gpu.memory_mib or 0
        used = min(total, sum(process.used_mib or 0 for process in here) + _number(self._path(gpu, "hidden")))
        return Reading(
            uuid=str(gpu.uuid),
            at_ms=wall_ms(),
            total_mib=total,
            used_mib=used,
            free_mib=total - used,
            reserved_mib=0,
            utilization=1.0 if here else 0.0,
            temperature_c=_BUSY_C if here else _IDLE_C,
            power_w=_BUSY_W if here else _IDLE_W,
            recovery=_text(self._path(gpu, "recovery")) or "none",
        )

    def _processes(self, gpu: Gpu) -> tuple[CardProcess, ...]:
        folder = self._path(gpu, "processes")
        try:
            pids = sorted(int(name) for name in os.listdir(folder) if name.isdigit()) if folder else []
        except OSError:
            return ()
        found = [_process(os.path.join(str(folder), str(pid)), pid) for pid in pids]
        return tuple(process for process in found if process is not None)

    def _is(self, gpu: Gpu, name: str) -> bool:
        path = self._path(gpu, name)
        return path is not None and os.path.exists(path)

    def _path(self, gpu: Gpu, name: str) -> str | None:
        return None if self._folder is None else os.path.join(self._folder, f"gpu{gpu.index}", name)


def occupy(folder: str, index: int, used_mib: int, *, kind: ProcessKind = "compute", pid: int | None = None) -> None:
    """Say that a process is on a simulated card, until it ends or `vacate` is called.

    :param folder: the cards' folder
    :param used_mib: the memory that it uses there (in MiB)
    :param pid: which process; None: this one
    :raises ProcessLookupError: if there is no such process
    """
    here = os.getpid() if pid is None else pid
    started = _started_ticks(here)
    if started is None:
        raise ProcessLookupError(f"no process {here}")
    path = os.path.join(folder, f"gpu{index}", "processes", str(here))
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(f"{path}.new", "w", encoding="ascii") as file:
        file.write(f"{started} {used_mib} {kind}\n")
    os.replace(f"{path}.new", path)


def vacate(folder: str, index: int, *, pid: int | None = None) -> None:
    """Say that a process (None: this one) is no longer on a simulated card."""
    here = os.getpid() if pid is None else pid
    with suppress(FileNotFoundError):
        os.unlink(os.path.join(folder, f"gpu{index}", "processes", str(here)))


def _process(path: str, pid: int) -> CardProcess | None:
    words = (_text(path) or "").split()
    if len(words) < 2 or not words[0].isdigit() or not words[1].isdigit():
        return None
    if _started_ticks(pid) != int(words[0]):
        with suppress(OSError):  # it has ended; a file of its pid's next owner is not there yet, or just came
            os.unlink(path)
        return None
    return CardProcess(pid=pid, kind=_KINDS.get((words[2:] or ["compute"])[0], "compute"), used_mib=int(words[1]))


def _started_ticks(pid: int) -> int | None:
    """Return the start time of a process that has not ended, in clock ticks since boot; else None."""
    stat = stat_of(pid)
    return None if stat is None or stat.is_dead else stat.started_ticks


def _taken(path: str | None) -> list[int]:
    """Return the numbers in a file and take it away."""
    if path is None or not os.path.exists(path):
        return []
    mine = f"{path}.taken"
    try:
        os.replace(path, mine)
    except OSError:
        return []
    return [int(word) for word in (_text(mine) or "").split() if word.isdigit()]


def _number(path: str | None) -> int:
    words = _text(path)
    return int(words) if words and words.isdigit() else 0


def _text(path: str | None) -> str | None:
    if path is None:
        return None
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return None


def _card(pool: str, index: int, memory_mib: int) -> Gpu:
    return Gpu(
        key=f"{GPU_KEY_PREFIX}{index}",
        index=index,
        uuid=f"GPU-{uuids.uuid5(_NAMESPACE, f'{pool}/{index}')}",
        name="Simulated GPU",
        memory_mib=memory_mib,
    )
