"""The questions that are put to NVML about cards, each a plain function of the binding and a handle.

Everything here blocks; it is called in a thread. Drivers without a newer call are asked the older one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar

from gpulockd.clock import wall_ms
from gpulockd.hardware import troubles
from gpulockd.hardware.readings import CardProcess, ProcessKind, Reading
from gpulockd.model import GPU_KEY_PREFIX, Gpu

_MIB = 1024 * 1024
_MEMORY_V2 = 0x02000028
_RECOVERY_FIELD = 230
_RECOVERIES = {
    0: "none",
    1: "gpu_reset",
    2: "node_reboot",
    3: "drain_p2p",
    4: "drain_and_reset",
    5: "recover_imex_domain",
    6: "bus_reset",
    7: "system_reboot",
}
_NO_MIG = {troubles.INVALID_ARGUMENT, troubles.NOT_SUPPORTED, troubles.FUNCTION_NOT_FOUND}
_INSUFFICIENT_SIZE = 7
_LIST_TRIES = 8
_LARGEST_PID = 4_194_304
"""Linux never has a larger one (PID_MAX_LIMIT); drivers 535.43 to 535.86 garbled the list."""

T = TypeVar("T")


def enumerate_cards(nvml: Any, handles: dict[str, Any]) -> dict[int, str]:
    """Return index -> UUID of all GPUs and note their handles. One lost card does not hide the others."""
    found_at: dict[int, str] = {}
    index = 0
    for found, _code in _cards(nvml):
        # A lost card keeps its number: were those behind it to move up, their keys would name other cards.
        count = 1
        try:
            instances = _instances(nvml, found) if found is not None else ()
            if found is not None:
                count = len(instances)
            for offset, handle in enumerate(instances):
                uuid = _uuid(nvml, handle)
                handles[uuid] = handle
                found_at[index + offset] = uuid
        except nvml.NVMLError as trouble:
            if int(trouble.value) in troubles.REOPEN:
                raise
        index += count
    return found_at


def find(nvml: Any, uuid: str, handles: dict[str, Any]) -> Any:
    """Return the handle of a card or MIG instance.

    NVML's own search by UUID fails when any other card is lost, so the cards are looked at one by one.

    :raises NVMLError: if it is not there: as a card that is lost says, else not found
    """
    if uuid in handles and _is(nvml, handles[uuid], uuid):
        return handles[uuid]
    handles.pop(uuid, None)
    why = troubles.NOT_FOUND
    for card, code in _cards(nvml):
        why = code or why
        try:
            for handle in _instances(nvml, card) if card is not None else ():
                handles[_uuid(nvml, handle)] = handle
        except nvml.NVMLError as trouble:
            if int(trouble.value) in troubles.REOPEN:
                raise
            why = int(trouble.value)
    if uuid not in handles:
        raise nvml.NVMLError(why if why in troubles.CARD_LOST else troubles.NOT_FOUND)
    return handles[uuid]


def _is(nvml: Any, handle: Any, uuid: str) -> bool:
    """Whether a handle is still good: that of a MIG instance ends with the instance."""
    try:
        return _uuid(nvml, handle) == uuid
    except nvml.NVMLError as trouble:
        if int(trouble.value) not in (troubles.INVALID_ARGUMENT, troubles.NOT_FOUND):
            raise
        return False


def physical_cards(nvml: Any) -> Iterator[tuple[Any, tuple[tuple[str, int | None, int | None], ...]]]:
    """Yield (handle, its GPUs as (uuid, gpu instance, compute instance)) of each card that answers."""
    for card, _code in _cards(nvml):
        try:
            if card is not None:
                yield card, tuple(_named(nvml, card, handle) for handle in _instances(nvml, card))
        except nvml.NVMLError as trouble:
            if int(trouble.value) in troubles.REOPEN:
                raise


def _named(nvml: Any, card: Any, handle: Any) -> tuple[str, int | None, int | None]:
    if handle is card:
        return _uuid(nvml, handle), None, None
    gpu_instance = told(nvml, lambda: int(nvml.nvmlDeviceGetGpuInstanceId(handle)))
    return _uuid(nvml, handle), gpu_instance, told(nvml, lambda: int(nvml.nvmlDeviceGetComputeInstanceId(handle)))


def read(nvml: Any, uuid: str, handle: Any) -> Reading:
    """Return a sample of a card; what it does not tell is None."""
    total, reserved, free, used = _memory(nvml, handle)
    card = handle
    if uuid.startswith("MIG-"):
        # Heat, power and the need of a reset are the whole card's.
        card = told(nvml, lambda: nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle)) or handle
    busy = told(nvml, lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu)
    milliwatts = told(nvml, lambda: nvml.nvmlDeviceGetPowerUsage(card))
    temperature = told(nvml, lambda: nvml.nvmlDeviceGetTemperature(card, 0))
    return Reading(
        uuid=uuid,
        at_ms=wall_ms(),
        total_mib=total,
        used_mib=used,
        free_mib=free,
        reserved_mib=reserved,
        utilization=None if busy is None else busy / 100,
        temperature_c=None if temperature is None else float(temperature),
        power_w=None if milliwatts is None else milliwatts / 1000,
        recovery=_recovery(nvml, card),
    )


def processes(nvml: Any, handle: Any) -> tuple[CardProcess, ...]:
    """Return the processes on a card, each once, by pid.

    :raises ProcessesUnknown: if the driver cannot tell
    """
    found: dict[int, CardProcess] = {}
    for kind, names in (
        ("graphics", ("nvmlDeviceGetGraphicsRunningProcesses_v3", "nvmlDeviceGetGraphicsRunningProcesses_v2")),
        ("compute", ("nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetComputeRunningProcesses_v2")),
        ("mps", ("nvmlDeviceGetMPSComputeRunningProcesses_v3", "nvmlDeviceGetMPSComputeRunningProcesses_v2")),
    ):
        rows = _first_list(nvml, handle, names)
        if rows is None and kind == "compute":
            raise troubles.processes_unknown("does not tell which processes use a GPU", troubles.NOT_SUPPORTED)
        for row in rows or ():
            merged = _process(row, kind, found.get(int(row.pid)))  # type: ignore[arg-type] # one of the three words
            found[merged.pid] = merged
    return tuple(found[pid] for pid in sorted(found))


def look(nvml: Any, handle: Any, *, uuid: str) -> tuple[Reading, tuple[CardProcess, ...] | None]:
    """Return a sample of a card and the processes on it; None if the driver cannot tell these."""
    reading = read(nvml, uuid, handle)
    try:
        return reading, processes(nvml, handle)
    except troubles.ProcessesUnknown:
        return reading, None


def _process(row: Any, kind: ProcessKind, earlier: CardProcess | None) -> CardProcess:
    pid, used = int(row.pid), row.usedGpuMemory
    if not 0 < pid <= _LARGEST_PID:
        raise troubles.processes_unknown(f"garbles its list of processes (pid {pid})")
    used_mib = None if used is None else int(used) // _MIB
    # A process in two lists uses one memory, which both of them tell.
    amounts = [mib for mib in (used_mib, earlier.used_mib if earlier else None) if mib is not None]
    return CardProcess(pid=pid, kind=kind, used_mib=max(amounts, default=None))


def _first_list(nvml: Any, handle: Any, names: tuple[str, ...]) -> list[Any] | None:
    """Return what the first of these functions that the driver has says; None if it has none or does not tell."""
    for name in names:
        function = getattr(nvml, name, None)
        rows = told(nvml, partial(_whole_list, nvml, handle, function)) if function is not None else None
        if rows is not None:
            return rows
    return None


def _whole_list(nvml: Any, handle: Any, function: Callable[[Any], list[Any]]) -> list[Any]:
    """Return a list that may grow between the question for its size and the one for its rows."""
    for _ in range(_LIST_TRIES - 1):
        try:
            return function(handle)
        except nvml.NVMLError as trouble:
            if int(trouble.value) != _INSUFFICIENT_SIZE:
                raise
    return function(handle)


def told(nvml: Any, ask: Callable[[], T]) -> T | None:
    """Return what `ask` returns, None if this card or driver does not tell."""
    try:
        return ask()
    except nvml.NVMLError as trouble:
        if int(trouble.value) not in troubles.CANNOT_TELL:
            raise
    except nvml.NVMLLibraryMismatchError:  # not an NVMLError: an old driver without the versioned call
        pass
    return None


def _cards(nvml: Any) -> Iterator[tuple[Any, int]]:
    """Yield (handle, 0) of each physical card, (None, the error's number) of a lost one."""
    for position in range(nvml.nvmlDeviceGetCount()):
        try:
            card, code = nvml.nvmlDeviceGetHandleByIndex(position), 0
        except nvml.NVMLError as trouble:
            card, code = None, int(trouble.value)
            if code in troubles.REOPEN:
                raise
        yield card, code


def _instances(nvml: Any, handle: Any) -> tuple[Any, ...]:
    """Return the card's MIG instances, or the card itself where MIG is off."""
    try:
        enabled, _pending = nvml.nvmlDeviceGetMigMode(handle)
        slots = nvml.nvmlDeviceGetMaxMigDeviceCount(handle) if enabled else 0
    except nvml.NVMLError as trouble:
        if int(trouble.value) not in _NO_MIG:
            raise
        return (handle,)
    if not enabled:
        return (handle,)
    found = []
    for slot in range(slots):
        try:
            found.append(nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, slot))
        except nvml.NVMLError as trouble:
            if int(trouble.value) not in (troubles.NOT_FOUND, troubles.INVALID_ARGUMENT):
                raise
    return tuple(found)


def describe(nvml: Any, uuid: str, handle: Any, index: int) -> Gpu:
    """Return what a card is."""
    return Gpu(
        key=f"{GPU_KEY_PREFIX}{index}",
        index=index,
        uuid=uuid,
        name=text(nvml.nvmlDeviceGetName(handle)),
        memory_mib=_total_mib(nvml, handle),
    )


def _total_mib(nvml: Any, handle: Any) -> int | None:
    """Return the memory of a card in MiB; None where it shares the host's and NVML cannot say."""
    return told(nvml, lambda: int(nvml.nvmlDeviceGetMemoryInfo(handle).total) // _MIB)


def _memory(nvml: Any, handle: Any) -> tuple[int | None, int | None, int | None, int | None]:
    """Return (total, reserved, free, used) in MiB; an older driver counts what is reserved as used."""
    newer = told(nvml, lambda: nvml.nvmlDeviceGetMemoryInfo(handle, _MEMORY_V2))
    info = newer if newer is not None else told(nvml, lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
    if info is None:
        return None, None, None, None
    reserved = int(newer.reserved) // _MIB if newer is not None else None
    return int(info.total) // _MIB, reserved, int(info.free) // _MIB, int(info.used) // _MIB


def _recovery(nvml: Any, handle: Any) -> str | None:
    values = told(nvml, lambda: nvml.nvmlDeviceGetFieldValues(handle, [_RECOVERY_FIELD]))
    if not values or int(values[0].nvmlReturn) != 0:
        return None
    action = int(values[0].value.uiVal)
    return _RECOVERIES.get(action, f"action_{action}")


def driver(nvml: Any) -> str:
    """Return the driver's version."""
    return text(nvml.nvmlSystemGetDriverVersion())


def _uuid(nvml: Any, handle: Any) -> str:
    return text(nvml.nvmlDeviceGetUUID(handle))


def text(value: str | bytes) -> str:
    """Return text whichever of its two types the binding's version gives."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
