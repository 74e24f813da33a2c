"""What the driver reports by itself: XIDs, and cards that have become unavailable.

NVML keeps nothing from before the registration, and a card or driver that cannot report is not therefore broken.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress
from functools import partial
from typing import Any

import anyio
import anyio.abc

from gpulockd.hardware import questions, troubles
from gpulockd.hardware.library import Library
from gpulockd.hardware.readings import CardTrouble, Tell, TroubleKind
from gpulockd.hardware.troubles import NvmlUnavailable
from gpulockd.hardware.workers import HangsError, Worker

WAIT_MS = 500
"""How long one wait for an event lasts (in ms); an exchange of the library waits for it."""

RETRY_S = 1.0
MOST_RETRY_S = 10.0
_WAIT_DEADLINE_S = 10.0

_XID, _UNAVAILABLE, _RECOVERY = 0x8, 0x4000, 0x8000
_KINDS: dict[int, TroubleKind] = {_XID: "xid", _UNAVAILABLE: "unavailable", _RECOVERY: "recovery"}
_WHOLE_CARD = 0xFFFFFFFF


class _Ears:
    """An event set with the cards registered in it, good for one generation of the library."""

    def __init__(self, library: Library, nvml: Any) -> None:
        self.generation = library.generation
        self.set = nvml.nvmlEventSetCreate()
        self.gpus: dict[int, tuple[tuple[str, int | None, int | None], ...]] = {}
        for card, gpus in questions.physical_cards(nvml):
            with suppress(nvml.NVMLError):  # it cannot report, or is lost: its reading says so
                wanted = int(nvml.nvmlDeviceGetSupportedEventTypes(card)) & (_XID | _UNAVAILABLE | _RECOVERY)
                if wanted:
                    nvml.nvmlDeviceRegisterEvents(card, wanted, self.set)
                    self.gpus[_address(card)] = gpus

    def free(self, nvml: Any) -> None:
        with suppress(nvml.NVMLError):
            nvml.nvmlEventSetFree(self.set)


async def listen(library: Library, tell: Tell, *, task_status: anyio.abc.TaskStatus[None]) -> None:
    """Call `tell` in the event loop for each trouble, until cancelled; starts anew when the library is exchanged."""
    worker = Worker("nvml-events")
    ears: _Ears | None = None
    pause_s = RETRY_S
    task_status.started()
    try:
        while True:
            try:
                if ears is None:
                    ears = await worker.do(partial(library.call, partial(_Ears, library)), _WAIT_DEADLINE_S)
                heard = await worker.do(partial(library.call, partial(_next, library, ears)), _WAIT_DEADLINE_S)
                pause_s = RETRY_S
            except (NvmlUnavailable, HangsError):
                heard = None
                await anyio.sleep(pause_s)
                pause_s = min(2 * pause_s, MOST_RETRY_S)
            if heard is None:
                await _forget(library, worker, ears)
                ears = None
            elif ears is not None and not ears.gpus:
                await anyio.sleep(MOST_RETRY_S)  # nothing here reports; perhaps a card comes that does
                await _forget(library, worker, ears)
                ears = None
            for trouble in heard or ():
                tell(trouble)
    finally:
        worker.close()


async def _forget(library: Library, worker: Worker, ears: _Ears | None) -> None:
    """Free an event set that still belongs to the loaded library."""

    def free(nvml: Any) -> None:
        if ears is not None and ears.generation == library.generation:
            ears.free(nvml)

    if ears is not None:
        with suppress(NvmlUnavailable, HangsError):
            await worker.do(lambda: library.call(free), _WAIT_DEADLINE_S)


def _next(library: Library, ears: _Ears, nvml: Any) -> tuple[CardTrouble, ...] | None:
    """Return what comes within one wait; None if the library was exchanged and the set is void."""
    if ears.generation != library.generation:
        return None
    if not ears.gpus:
        return ()
    try:
        event = nvml.nvmlEventSetWait_v2(ears.set, WAIT_MS)
    except nvml.NVMLError as trouble:
        if int(trouble.value) == troubles.TIMEOUT:
            return ()
        raise
    kind = _KINDS.get(int(event.eventType))
    if kind is None:
        return ()
    gpus = ears.gpus.get(_address(event.device), ())
    code = int(event.eventData) if kind == "xid" else 0
    return tuple(CardTrouble(uuid=uuid, kind=kind, code=code) for uuid in _meant(gpus, event))


def _meant(gpus: tuple[tuple[str, int | None, int | None], ...], event: Any) -> list[str]:
    """Return the GPUs that an event is about: the instance that it names, or all of its card."""
    gpu_instance, compute_instance = int(event.gpuInstanceId), int(event.computeInstanceId)
    named = [
        uuid
        for uuid, gi, ci in gpus
        if gi == gpu_instance and (compute_instance == _WHOLE_CARD or ci is None or ci == compute_instance)
    ]
    return named or [uuid for uuid, _, _ in gpus]


def _address(handle: Any) -> int:
    return ctypes.cast(handle, ctypes.c_void_p).value or 0
