"""XIDs, the error numbers of NVIDIA's driver: which say that the card is broken, and which that a program was.

Sources: NVIDIA's Xid catalog (docs.nvidia.com/deploy/xid-errors, "resolution bucket": RESET_GPU and RESTART_BM are
fatal here, RESTART_APP and IGNORE are not), and the list of application errors of NVIDIA's Kubernetes device plugin
(13, 31, 43, 45, 68, 109), which wins for 109. Where the driver tells what the card needs (recovery action, R570 and
newer), that decides and not this table.
"""

from __future__ import annotations

APPLICATION = {
    8: "the GPU stopped processing a program's work",
    11: "a program sent an invalid command buffer",
    13: "a program raised a graphics engine exception",
    31: "a program touched memory that is not its own",
    32: "a program sent a corrupted command buffer",
    43: "a program's work was stopped after its own error",
    45: "a program's work was cleaned away after an earlier error or its end",
    68: "a program raised a video processor exception",
    69: "a program raised a graphics engine class error",
    94: "a memory error was contained to one program",
    109: "a program's context switch timed out",
}
"""The card is well: restart the program."""

FATAL = {
    46: "the GPU stopped processing",
    48: "a double-bit memory error",
    62: "the GPU's internal micro-controller halted",
    64: "a bad memory row could not be remapped",
    79: "the GPU has fallen off the bus",
    95: "an uncontained memory error",
    110: "a security fault",
    119: "the GPU's system processor does not answer",
    120: "the GPU's system processor failed",
    136: "the link training failed",
    140: "an unrecovered memory error",
    143: "the GPU could not be initialized",
    155: "an NVLink error that needs a reset",
    156: "resources were retired and the GPU must be reset",
    158: "a fatal timeout of the GPU",
}
"""The card needs a reset, or more, before anybody can use it."""

OFF_THE_BUS = 79
RECOVERY_CHANGED = 154
"""Says only that the recovery action changed: read it."""


def is_fatal(xid: int) -> bool:
    """Return whether the card is broken by what the table says; an unknown number is told, not acted on."""
    return xid in FATAL


def says(xid: int) -> str:
    """Return what an XID means, for people: "XID 79: the GPU has fallen off the bus"."""
    words = FATAL.get(xid) or APPLICATION.get(xid)
    return f"XID {xid}: {words}" if words else f"XID {xid}"
