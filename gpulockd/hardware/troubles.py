"""What can go wrong with cards: the driver does not answer, one card is lost, or its processes cannot be known.

NVML's error numbers become these here and nowhere else.
"""

from __future__ import annotations

from gpulockd.errors import GpuLockError

UNINITIALIZED, INVALID_ARGUMENT, NOT_SUPPORTED, NO_PERMISSION, NOT_FOUND = 1, 2, 3, 4, 6
DRIVER_NOT_LOADED, TIMEOUT, LIBRARY_NOT_FOUND, FUNCTION_NOT_FOUND = 9, 10, 12, 13
LOST, RESET_REQUIRED, MISMATCH, NO_DATA, VERSION_MISMATCH = 15, 16, 18, 21, 25
DEPRECATED, GPU_NOT_FOUND, UNKNOWN = 26, 28, 999

REOPEN = frozenset({UNINITIALIZED, DRIVER_NOT_LOADED, MISMATCH, UNKNOWN})
"""Errors after which the library must be initialized anew before it can answer."""

CARD_LOST = frozenset({NOT_FOUND, LOST, RESET_REQUIRED, GPU_NOT_FOUND})
"""Errors that mean this one card, not the driver."""

CANNOT_TELL = frozenset(
    {INVALID_ARGUMENT, NOT_SUPPORTED, NO_PERMISSION, FUNCTION_NOT_FOUND, NO_DATA, VERSION_MISMATCH, DEPRECATED}
)
"""Errors of a single value that this card or driver does not have: no sign of a broken card."""

_WHY_AND_CURE = {
    LIBRARY_NOT_FOUND: (
        "no NVIDIA driver (NVML library not found)",
        "install the driver, or give the container its GPUs (docker run --gpus all)",
    ),
    DRIVER_NOT_LOADED: (
        "the NVIDIA driver is not loaded",
        "load it (modprobe nvidia) or reboot; `nvidia-smi` must work first",
    ),
    NO_PERMISSION: ("no permission to use the NVIDIA driver", "allow this user to open /dev/nvidiactl"),
    MISMATCH: (
        "the NVIDIA driver was upgraded while its old version runs (NVML version mismatch)",
        "reboot, or unload and load the nvidia modules and restart gpulockd",
    ),
    LOST: ("a GPU has fallen off the bus", "reboot, and check power and seating of the card"),
    RESET_REQUIRED: ("a GPU must be reset", "end what uses it and run `nvidia-smi --gpu-reset`, or reboot"),
    UNKNOWN: (
        "the NVIDIA driver answers 'unknown error'",
        "in a container: restart it (a systemd reload took its devices away); on the host: reboot",
    ),
}


class NvmlUnavailable(GpuLockError):
    """The NVIDIA driver does not answer: `nvidia-smi` must work first.

    `why` is the reason, `cure` what to do, `absent` says that this host has no driver at all, `code` is NVML's.
    """

    why: str = ""
    cure: str = ""
    absent: bool = False
    code: int = 0


class CardLost(NvmlUnavailable):
    """This card is lost to its driver, while others may be well: take it out of the pool. `uuid` says which."""

    uuid: str = ""


class CardHangs(NvmlUnavailable):
    """A call for this card does not return; those for others do. It may still come back."""


class ProcessesUnknown(NvmlUnavailable):
    """This driver does not tell which processes are on a card, so none seen does not mean none there."""


def unavailable(code: int, text: str) -> NvmlUnavailable:
    """Return the error for NVML's `code`; `text` is what NVML calls it."""
    why, cure = why_and_cure(code, text)
    absent = code in (LIBRARY_NOT_FOUND, DRIVER_NOT_LOADED)
    return NvmlUnavailable(f"{why}; {cure}", why=why, cure=cure, absent=absent, code=code)


def lost(uuid: str, code: int, text: str) -> CardLost:
    """Return the error for a card that NVML calls lost, in need of a reset, or does not find."""
    why, cure = why_and_cure(code, text)
    if code in (NOT_FOUND, GPU_NOT_FOUND):
        why, cure = "the driver no longer has this GPU", "look at `nvidia-smi -L`: was it removed, or its MIG changed?"
    return CardLost(f"{why}; {cure}", why=why, cure=cure, code=code, uuid=uuid)


def unanswered(how: str) -> CardHangs:
    """Return the error for a call that does not return; `how` completes "the NVIDIA driver ..."."""
    why, cure = f"the NVIDIA driver {how}", "look at `dmesg` for its errors; a hung driver needs a reboot"
    return CardHangs(f"{why}; {cure}", why=why, cure=cure, code=TIMEOUT)


def processes_unknown(how: str, code: int = 0) -> ProcessesUnknown:
    """Return the error for a process list that cannot be had; `how` completes "the NVIDIA driver ..."."""
    why, cure = f"the NVIDIA driver {how}", "a newer driver tells"
    return ProcessesUnknown(f"{why}; {cure}", why=why, cure=cure, code=code)


def why_and_cure(code: int, text: str) -> tuple[str, str]:
    """Return what NVML's `code` means to people and what helps; `text` is what NVML calls it."""
    return _WHY_AND_CURE.get(code, (f"the NVIDIA driver reports: {text}", "`nvidia-smi` must work first"))
