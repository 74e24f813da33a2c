"""Cleaning up behind a lease: what a program frees when its body has ended, `torch.cuda.empty_cache` for one.

Its law: the release goes first. A clean-up runs in a daemon thread of its own, nobody waits for it, and whatever
becomes of it changes no lease. YiVideo's ran before the release: each hand-off waited for the card, and a task that was
killed meanwhile left its lock behind.
"""

from __future__ import annotations

import atexit
import contextvars
import functools
import inspect
import logging
import os
import threading
import time
from asyncio import AbstractEventLoop
from collections.abc import Callable

log = logging.getLogger("gpulockd")

Cleanup = Callable[[], object]

LONG_S = 30.0
"""A clean-up that takes longer is told of (in seconds)."""

GOODBYE_S = 5.0
"""How long a process that exits waits for its clean-ups (in seconds): a thread that dies in a driver may abort it."""


def check_cleanup(cleanup: object) -> None:
    """:raises TypeError: unless it can be called in a thread: a coroutine function cannot"""
    if cleanup is None:
        return
    if not callable(cleanup):
        raise TypeError(f"cleanup={cleanup!r}: give a function without arguments, such as torch.cuda.empty_cache")
    called = cleanup if inspect.isroutine(cleanup) or isinstance(cleanup, functools.partial) else cleanup.__call__
    if inspect.iscoroutinefunction(called) or inspect.isasyncgenfunction(called):
        raise TypeError(f"cleanup={cleanup!r} is a coroutine function; it runs in a thread, so give a plain 'def'")


class Cleaning:
    """The clean-ups of one lease that has ended, the last one given first; each once, none stops another."""

    def __init__(self, cleanups: tuple[Cleanup, ...], lease: str) -> None:
        """:param lease: what the lease is called in the log"""
        self._cleanups = cleanups
        self._lease = lease
        self._said_long = False
        self._pid = os.getpid()
        self._done = threading.Event()
        _running.add(self)
        # A context of its own: what the ended body held is not inherited, and what is set in it stays in it.
        context = contextvars.Context()
        self._thread = threading.Thread(target=context.run, args=(self._run,), name="gpulockd-cleanup", daemon=True)

    def __repr__(self) -> str:
        return f"<Cleaning of {self._lease}, {len(self._cleanups)} functions>"

    def begin(self, loop: AbstractEventLoop) -> None:
        """Start, and come back at once. Never raises.

        :param loop: the loop that tells of it, if it takes long
        """
        try:
            self._thread.start()
        except RuntimeError as full:  # no more threads, or the interpreter ends
            self._end()
            log.error("gpulockd: no clean-up after %s: %s", self._lease, full)
            return
        loop.call_later(LONG_S, self._look)

    def _look(self) -> None:
        if not self._done.is_set():
            self._say_long("has taken more than", LONG_S)

    def wait(self, timeout_s: float) -> None:
        """Wait until it is over, for `timeout_s` at most (in seconds); not in a forked child, where it never is."""
        if self._pid == os.getpid():
            self._done.wait(timeout_s)

    def _end(self) -> None:
        self._done.set()
        _running.discard(self)

    def _say_long(self, words: str, taken_s: float) -> None:
        if not self._said_long:
            self._said_long = True
            log.warning("gpulockd: the clean-up after %s %s %.0f s; no lease waits for it", self._lease, words, taken_s)

    def _run(self) -> None:
        began_s = time.monotonic()
        try:
            for cleanup in reversed(self._cleanups):
                self._call(cleanup)
        finally:
            self._end()
        taken_s = time.monotonic() - began_s
        if taken_s > LONG_S:
            self._say_long("took", taken_s)

    def _call(self, cleanup: Cleanup) -> None:
        try:
            returned = cleanup()
        except BaseException as trouble:  # nobody waits for this thread, so only the log can tell
            name = type(trouble).__name__
            log.error("gpulockd: the clean-up after %s failed: %s: %s", self._lease, name, trouble, exc_info=trouble)
            return
        if inspect.isawaitable(returned):
            log.error("gpulockd: the clean-up after %s returned %r, which nobody awaits", self._lease, returned)
            if inspect.iscoroutine(returned):
                returned.close()


_running: set[Cleaning] = set()


def _outlast() -> None:
    """At the exit: wait for what is still being cleaned, for a bounded time."""
    until_s = time.monotonic() + GOODBYE_S
    for cleaning in list(_running):
        cleaning.wait(max(0.0, until_s - time.monotonic()))


# At import, for what is registered first is called last: the sessions say goodbye before anybody waits here.
atexit.register(_outlast)
