"""The daemon as a process of its host: its signals, how many files it may have open, and its garbage."""

from __future__ import annotations

import gc
import resource
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress

import anyio
import anyio.abc
import structlog

from gpulockd.daemon.notify import notify, reloading
from gpulockd.errors import GpuLockError

Reload = Callable[[], Awaitable[None]]

_log = structlog.get_logger(__name__)


async def take_signals(
    stopping: anyio.Event,
    starting: anyio.CancelScope,
    everything: anyio.CancelScope,
    *,
    reload: Reload | None = None,
    ready: anyio.Event | None = None,
    task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """SIGTERM and SIGINT end the daemon cleanly, also while it starts; the second one at once; SIGHUP reloads.

    :param reload: reads the configuration again; what it refuses with a GpuLockError leaves everything as it was
    :param ready: set once READY has been said; a SIGHUP before that is answered by the start itself
    """
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        task_status.started()
        async for number in signals:
            if number == signal.SIGHUP:
                if ready is None or ready.is_set():
                    await reloaded(reload)
            elif stopping.is_set():
                everything.cancel()
            else:
                stopping.set()
                starting.cancel()


async def reloaded(reload: Reload | None) -> None:
    """Read the configuration again between RELOADING and READY; the service manager waits for the second."""
    if reload is None:
        return
    reloading()
    try:
        await reload()
        _log.info("config.reloaded", message="the configuration was read again")
    except GpuLockError as wrong:
        _log.error("config.reload_refused", message=f"the old configuration stays: {wrong.message}")
    finally:
        notify("READY=1")


class Later:
    """A reload that is known only once the daemon has come so far; until then the start itself reads all."""

    def __init__(self) -> None:
        self.reload: Reload | None = None
        self.ready = anyio.Event()

    async def __call__(self) -> None:
        """:raises ConfigError: if what is read cannot be used"""
        if self.reload is not None:
            await self.reload()


def allow_many_files() -> None:
    """Every stream costs descriptors, and the usual soft limit of 1024 is for programs that use select."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def keep_what_the_start_made() -> None:
    """Let no collection look through what stays as long as the daemon: each would stop everything for some 50 ms."""
    gc.freeze()
