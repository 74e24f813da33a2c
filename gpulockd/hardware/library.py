"""The NVML library in this process: opened once, opened anew when it must be, and loaded anew after a driver upgrade.

Its law: a handle is only used with the library that gave it. So the library is exchanged while no call is under way.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from gpulockd.hardware import troubles
from gpulockd.hardware.troubles import NvmlUnavailable

QUIET_WITHIN_S = 2.0
"""How long an exchange waits for the calls under way (in seconds)."""

_FILE = "libnvidia-ml.so.1"

T = TypeVar("T")


class Library:
    """All that goes to NVML goes through `call`, from any number of threads. `generation` counts the exchanges."""

    def __init__(self) -> None:
        self.generation = 0
        self.handles: dict[str, Any] = {}
        self._opened = False
        self._inits = 0
        self._opening = threading.Lock()
        self._under_way = 0
        self._changed = threading.Condition()
        self._exchanging = False

    def __repr__(self) -> str:
        return f"<Library {'open' if self._opened else 'closed'}, {len(self.handles)} cards>"

    def call(self, function: Callable[[Any], T], uuid: str = "") -> T:
        """Return `function(pynvml)`; blocks for as long as the driver does.

        :param uuid: the card that this is about
        :raises CardLost: if NVML says that this card is lost
        :raises NvmlUnavailable: for everything else that NVML refuses
        """
        nvml = _binding()
        with self._in_use():
            try:
                self._open(nvml)
                return function(nvml)
            except nvml.NVMLError as trouble:
                code = int(trouble.value)
                if code in troubles.REOPEN:
                    self._opened = False
                if uuid and code in troubles.CARD_LOST:
                    raise troubles.lost(uuid, code, str(trouble)) from None
                raise troubles.unavailable(code, str(trouble)) from None
            except nvml.NVMLLibraryMismatchError as trouble:  # not an NVMLError
                raise troubles.unavailable(troubles.FUNCTION_NOT_FOUND, str(trouble)) from None

    def reopen(self) -> None:
        """Close the library and load the one that lies on the disk now; the next call opens it.

        :raises NvmlUnavailable: if a call is under way that does not return
        """
        nvml = _binding()
        with self._alone():
            # NVML counts: only the last of as many shutdowns as there were inits lets go of its cards.
            for _ in range(self._inits):
                with suppress(nvml.NVMLError):
                    nvml.nvmlShutdown()
            self._inits = 0
            folder = _loaded_from()
            # By a name that it has seen the loader gives the library of before; by a new one it looks at the file.
            # The old one stays in memory: a driver is upgraded seldom, and unloading it under its own threads kills.
            self.generation += 1
            if folder is not None and hasattr(nvml, "_nvmlGetFunctionPointer_cache"):
                with suppress(OSError):
                    nvml.nvmlLib = ctypes.CDLL(os.path.join(folder + "/." * self.generation, _FILE))
                    nvml._nvmlGetFunctionPointer_cache.clear()
            self._opened = False
            self.handles.clear()

    def _open(self, nvml: Any) -> None:
        if not self._opened:
            with self._opening:
                if not self._opened:
                    nvml.nvmlInit()
                    self._inits += 1
                    self._opened = True

    @contextmanager
    def _in_use(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._exchanging)
            self._under_way += 1
        try:
            yield
        finally:
            with self._changed:
                self._under_way -= 1
                self._changed.notify_all()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._exchanging)
            self._exchanging = True
            quiet = self._changed.wait_for(lambda: self._under_way == 0, QUIET_WITHIN_S)
        try:
            if not quiet:
                raise troubles.unanswered("cannot be opened anew while an earlier call hangs")
            yield
        finally:
            with self._changed:
                self._exchanging = False
                self._changed.notify_all()


def _binding() -> Any:
    try:
        return importlib.import_module("pynvml")
    except ImportError:
        why, cure = "the NVML binding is not installed", "pip install 'gpulockd[server]'"
        raise NvmlUnavailable(f"{why}; {cure}", why=why, cure=cure, absent=True) from None


def _loaded_from() -> str | None:
    """Return the folder of the NVML library that this process has loaded, or None."""
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        for line in maps:
            path = line.split(maxsplit=5)[5].strip() if "libnvidia-ml.so" in line else ""
            if path.startswith("/"):
                return os.path.dirname(path)
    return None
