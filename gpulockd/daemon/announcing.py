"""What the daemon says of itself: that it is ready, that it was refused, who it is."""

from __future__ import annotations

import ipaddress
import os
import sys
from contextlib import suppress
from typing import TextIO

import structlog

from gpulockd import places
from gpulockd.daemon import notify
from gpulockd.daemon.folders import Folders
from gpulockd.daemon.plan import Plan
from gpulockd.errors import ConfigError, GpuLockError
from gpulockd.hardware.cards import Cards

OK, FAILED, UNUSABLE = 0, 1, 2
"""Exit codes of the daemon."""

_log = structlog.get_logger("gpulockd.daemon.serve")


def refused(trouble: GpuLockError) -> int:
    """Say why the daemon does not run, and return its exit code."""
    _log.error("daemon.refused", kind=type(trouble).__name__, message=trouble.message)
    return UNUSABLE if isinstance(trouble, ConfigError) else FAILED


def only_ours(error: BaseException) -> GpuLockError | None:
    """Return the one error of ours that task groups have wrapped, or None if there is another."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error if isinstance(error, GpuLockError) else None


def say_ready(version: str, plan: Plan, cards: Cards, gpus: int, address: str) -> None:
    """Say on one line that the daemon is ready, to the terminal, the service manager and the log."""
    line = f"gpulockd {version} ready: pool {plan.pool}, {_counted(cards, gpus)}, {address}, "
    line += plan.folders.api_socket
    with suppress(OSError):  # a terminal that is closed must not end the daemon
        print(line, flush=True)
    notify.notify("READY=1", f"STATUS={line}")
    # Where both go to one terminal, it has been said.
    if not (_is_terminal(sys.stdout) and _is_terminal(sys.stderr)):
        _log.info("daemon.ready", pool=plan.pool, gpus=gpus, message=line)
    warn_of_other(plan.folders)


def warn_of_clear(host: str, port: int, *, encrypted: bool) -> None:
    """Say that others on the network can read the token, where the API listens to them without TLS."""
    if encrypted or _is_loopback(host):
        return
    message = (
        f"the API listens on {host}:{port} without TLS: tokens go over the network in the clear, and everybody who "
        "reaches it may read; set web.tls, or listen on 127.0.0.1"
    )
    _log.warning("web.in_clear", host=host, port=port, message=message)


def warn_of_other(folders: Folders) -> None:
    """Say that programs go to another daemon of this host: whoever started this one may think that they come here."""
    found = places.find_runtime()
    if found is None or os.path.realpath(found[0]) == os.path.realpath(folders.runtime):
        return
    if places.is_answered(*found):
        message = (
            f"programs and commands of this user find another daemon first, in {found[0]}; "
            f"with GPULOCKD_SOCKET={folders.api_socket} they find this one"
        )
        _log.warning("daemon.not_found_first", other=found[0], message=message)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except ValueError:  # it is closed
        return False


def _counted(cards: Cards, count: int) -> str:
    if count == 0:
        return f"no GPU ({cards.describe()})"
    kind = "simulated " if cards.source == "simulated" else ""
    return f"{count} {kind}GPU{'' if count == 1 else 's'}"
