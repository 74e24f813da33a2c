"""NVIDIA's management library (NVML), each call in a thread with a deadline, its errors turned into ours here only.

A call into a hung driver never returns, so while one hangs the next is refused instead of filling up threads.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import anyio
import anyio.to_thread

from gpulockd.errors import GpuLockError
from gpulockd.model import GPU_KEY_PREFIX, Gpu

CALL_DEADLINE_S = 10.0
"""How long one call may take (in seconds); the first one after boot loads the driver, which takes seconds."""

_MIB = 1024 * 1024
_UNINITIALIZED, _NOT_SUPPORTED, _NO_PERMISSION, _NOT_FOUND = 1, 3, 4, 6
_DRIVER_NOT_LOADED, _LIBRARY_NOT_FOUND, _FUNCTION_NOT_FOUND, _LOST = 9, 12, 13, 15
_MISMATCH, _UNKNOWN = 18, 999
_NO_MIG = {2, _NOT_SUPPORTED, _FUNCTION_NOT_FOUND}
_REOPEN = {_UNINITIALIZED, _DRIVER_NOT_LOADED, _MISMATCH, _UNKNOWN}

_WHY_AND_CURE = {
    _LIBRARY_NOT_FOUND: (
        "no NVIDIA driver (NVML library not found)",
        "install the driver, or give the container its GPUs (docker run --gpus all)",
    ),
    _DRIVER_NOT_LOADED: (
        "the NVIDIA driver is not loaded",
        "load it (modprobe nvidia) or reboot; `nvidia-smi` must work first",
    ),
    _NO_PERMISSION: ("no permission to use the NVIDIA driver", "allow this user to open /dev/nvidiactl"),
    _MISMATCH: (
        "the NVIDIA driver was upgraded while its old version runs (NVML version mismatch)",
        "reboot, or unload and load the nvidia modules and restart gpulockd",
    ),
    _LOST: ("a GPU has fallen off the bus", "reboot, and check power and seating of the card"),
    _UNKNOWN: (
        "the NVIDIA driver answers 'unknown error'",
        "in a container: restart it (a systemd reload took its devices away); on the host: reboot",
    ),
}

T = TypeVar("T")


class NvmlUnavailable(GpuLockError):
    """The NVIDIA driver does not answer: `nvidia-smi` must work first.

    `why` is the reason, `cure` what to do, `absent` says that this host has no driver at all, `code` is NVML's.
    """

    why: str = ""
    cure: str = ""
    absent: bool = False
    code: int = 0


class NvmlCards:
    """The cards that the NVIDIA driver knows, MIG instances as GPUs of their own."""

    source: Literal["nvml"] = "nvml"

    def __init__(self, deadline_s: float = CALL_DEADLINE_S) -> None:
        self._deadline_s = deadline_s
        self._limiter = anyio.CapacityLimiter(1)
        self._lock = threading.Lock()
        self._hanging = 0
        self._opened = False
        self._state = "not asked yet"

    async def list(self) -> tuple[Gpu, ...]:
        """Return the cards in NVML's order (PCI bus); a lost card leaves a hole in the numbers.

        :raises NvmlUnavailable: if the driver does not answer; the next call tries anew
        """
        try:
            gpus, driver = await self._call(lambda nvml: (_enumerate(nvml), _driver(nvml)))
        except NvmlUnavailable as trouble:
            self._state = f"{trouble.why}; {trouble.cure}"
            raise
        self._state = f"{len(gpus)} GPU{'' if len(gpus) == 1 else 's'} (NVIDIA driver {driver})"
        return gpus

    def describe(self) -> str:
        """Return one sentence: the number of GPUs and the driver, or why there are none and the cure."""
        return self._state

    def __repr__(self) -> str:
        return f"<NvmlCards {self._state}>"

    async def _call(self, function: Callable[[Any], T]) -> T:
        """Run `function(pynvml)` in a thread: the one funnel through which all of NVML goes."""
        async with self._limiter:
            if self._hanging:
                raise _unanswered("still hangs in an earlier call")
            try:
                with anyio.fail_after(self._deadline_s):
                    return await anyio.to_thread.run_sync(
                        self._in_thread, function, abandon_on_cancel=True, limiter=anyio.CapacityLimiter(1)
                    )
            except TimeoutError:
                raise _unanswered(f"has not answered for {self._deadline_s:g} s") from None

    def _in_thread(self, function: Callable[[Any], T]) -> T:
        with self._lock:
            self._hanging += 1
        try:
            nvml = _binding()
            try:
                if not self._opened:
                    nvml.nvmlInit()
                    self._opened = True
                return function(nvml)
            except nvml.NVMLError as trouble:
                code = int(trouble.value)
                self._opened = self._opened and code not in _REOPEN
                raise _unavailable(code, str(trouble)) from None
            except nvml.NVMLLibraryMismatchError as trouble:  # not an NVMLError
                raise _unavailable(_FUNCTION_NOT_FOUND, str(trouble)) from None
        finally:
            with self._lock:
                self._hanging -= 1


def _binding() -> Any:
    try:
        return importlib.import_module("pynvml")
    except ImportError:
        why, cure = "the NVML binding is not installed", "pip install 'gpulockd[server]'"
        raise NvmlUnavailable(f"{why}; {cure}", why=why, cure=cure, absent=True) from None


def _unavailable(code: int, text: str) -> NvmlUnavailable:
    fallback = (f"the NVIDIA driver reports: {text}", "`nvidia-smi` must work first")
    why, cure = _WHY_AND_CURE.get(code, fallback)
    absent = code in (_LIBRARY_NOT_FOUND, _DRIVER_NOT_LOADED)
    return NvmlUnavailable(f"{why}; {cure}", why=why, cure=cure, absent=absent, code=code)


def _unanswered(how: str) -> NvmlUnavailable:
    why, cure = f"the NVIDIA driver {how}", "look at `dmesg` for its errors; a hung driver needs a reboot"
    return NvmlUnavailable(f"{why}; {cure}", why=why, cure=cure)


def _enumerate(nvml: Any) -> tuple[Gpu, ...]:
    """Return all GPUs. They are read one by one, so that one lost card does not hide the others."""
    gpus: list[Gpu] = []
    index = 0
    for position in range(nvml.nvmlDeviceGetCount()):
        # A lost card keeps its number: were those behind it to move up, their keys would name other cards.
        count = 1
        try:
            handles = _instances(nvml, nvml.nvmlDeviceGetHandleByIndex(position))
            count = len(handles)
            gpus += [_gpu(nvml, handle, index + offset) for offset, handle in enumerate(handles)]
        except nvml.NVMLError as trouble:
            if int(trouble.value) in _REOPEN:
                raise
        index += count
    return tuple(gpus)


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
            if int(trouble.value) not in (_NOT_FOUND, 2):
                raise
    return tuple(found)


def _gpu(nvml: Any, handle: Any, index: int) -> Gpu:
    return Gpu(
        key=f"{GPU_KEY_PREFIX}{index}",
        index=index,
        uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
        name=_text(nvml.nvmlDeviceGetName(handle)),
        memory_mib=_memory_mib(nvml, handle),
    )


def _memory_mib(nvml: Any, handle: Any) -> int | None:
    """Return the memory of a card in MiB; None where it shares the host's and NVML cannot say."""
    try:
        return int(nvml.nvmlDeviceGetMemoryInfo(handle).total) // _MIB
    except nvml.NVMLError as trouble:
        if int(trouble.value) not in (_NOT_SUPPORTED, _FUNCTION_NOT_FOUND):
            raise
        return None


def _driver(nvml: Any) -> str:
    return _text(nvml.nvmlSystemGetDriverVersion())


def _text(value: str | bytes) -> str:
    """Return text whichever of its two types the binding's version gives."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
