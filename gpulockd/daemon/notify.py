"""Messages to systemd (sd_notify); without systemd they go nowhere."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence

PATIENCE_S = 0.5
"""How long a message with descriptors may wait for room in the manager's queue (in seconds)."""


def notify(*lines: str, descriptors: Sequence[int] = ()) -> bool:
    """Tell the service manager lines such as "READY=1" or "STATUS=…"; return whether it was there to take them.

    :param descriptors: open files that go with the message, for its file descriptor store
    """
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    message = "\n".join(lines).encode()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        # A full queue must not stop the daemon: the next message says the same. A descriptor is sent only once.
        channel.settimeout(PATIENCE_S if descriptors else 0)
        try:
            if descriptors:
                channel.connect(address)
                socket.send_fds(channel, [message], list(descriptors))
            else:
                channel.sendto(message, address)
        except OSError:
            return False
    return True


def reloading() -> None:
    """Say that the configuration is being read again; "READY=1" says that it is done."""
    # Systemd 253 and newer compare this time with their own; older ones pass over it.
    notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")


def watchdog_interval_s() -> float | None:
    """Return how often to send "WATCHDOG=1" (in seconds, half of what the unit allows), or None without watchdog."""
    allowed_us = os.environ.get("WATCHDOG_USEC", "")
    meant_for = os.environ.get("WATCHDOG_PID")
    if not allowed_us.isdigit() or int(allowed_us) == 0 or (meant_for and meant_for != str(os.getpid())):
        return None
    return int(allowed_us) / 1_000_000 / 2
