"""Messages to systemd (sd_notify); without systemd they go nowhere."""

from __future__ import annotations

import os
import socket


def notify(*lines: str) -> bool:
    """Tell the service manager lines such as "READY=1" or "STATUS=…"; return whether one was there to hear them."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        # A full queue must not stop the daemon: the next message says the same.
        channel.setblocking(False)
        try:
            channel.sendto("\n".join(lines).encode(), address)
        except OSError:
            return False
    return True


def watchdog_interval_s() -> float | None:
    """Return how often to send "WATCHDOG=1" (in seconds, half of what the unit allows), or None without watchdog."""
    allowed_us = os.environ.get("WATCHDOG_USEC", "")
    meant_for = os.environ.get("WATCHDOG_PID")
    if not allowed_us.isdigit() or int(allowed_us) == 0 or (meant_for and meant_for != str(os.getpid())):
        return None
    return int(allowed_us) / 1_000_000 / 2
