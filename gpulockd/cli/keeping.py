"""The thread that keeps a run's lease: it loads the client while the command already runs, then keeps the session."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from gpulockd.cli import http
from gpulockd.cli.talk import CommandError, say
from gpulockd.cli.wish import Grant, Wish
from gpulockd.client.losses import in_words
from gpulockd.errors import GpuLockError
from gpulockd.units import parse_duration_s

if TYPE_CHECKING:  # it loads Redis, which takes longer than most short commands run
    from gpulockd.cli.holding import Holding

DEFAULT_GRACE_S = 10.0
RELEASED = "released"
SHORT_S = 0.5
"""A run that is over sooner is never kept (in seconds); every session lives longer by itself."""


class Keeping:
    """Keeps what was granted from a thread of its own; `ring` is called from there when something has happened."""

    def __init__(self, grant: Grant, wish: Wish, ring: Callable[[], None], daemon: http.Daemon) -> None:
        """:param daemon: which a run that is over before the lease is kept asks to end it"""
        self.lost = ""
        self.stop_requested = False
        self._own_grace = os.environ.get("GPULOCKD_SETTLE_GRACE")
        self.grace_s = parse_duration_s(self._own_grace or DEFAULT_GRACE_S, "settle.grace")
        self._grant = grant
        self._wish = wish
        self._ring = ring
        self._daemon = daemon
        self._holding: Holding | None = None
        self._is_short = threading.Event()
        self._begins = threading.Lock()
        self._has_begun = False
        self._is_set_up = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="gpulockd-keeping", daemon=True)

    def start(self) -> None:
        """Begin; the command has been started."""
        self._thread.start()

    def release(self, *, tell: bool) -> bool:
        """Give the lease back and end the session; return whether the ledger has confirmed it.

        :param tell: say why it was not, if it was not
        """
        with self._begins:
            self._is_short.set()
            has_begun = self._has_begun
        if not has_begun and self._given_back_by_daemon():
            return True
        if has_begun:
            self._is_set_up.wait()
        if self._holding is None:
            return give_back(self._grant, self._wish, tell=tell)
        return _said(self._holding.release, tell=tell)

    def _given_back_by_daemon(self) -> bool:
        """Whether the daemon has ended it. That is sooner than to load what talks to the store."""
        if self._grant.is_member:
            return False
        try:
            with self._daemon:
                path = f"/api/v1/leases/{http.segment(self._grant.lease)}"
                return bool(self._daemon.ask("PATCH", path, {"over": True})["token"] == self._grant.token)
        except CommandError:
            return False

    def _keep(self) -> None:
        # Who is gone at once needs no keeper, and what a keeper loads takes longer than many commands.
        self._is_short.wait(SHORT_S)
        with self._begins:
            if self._is_short.is_set():
                return
            self._has_begun = True
        try:
            from gpulockd.cli.holding import Holding

            self._holding = Holding(self._grant, self._wish)
            self._holding.open()
            if not self._own_grace:
                self.grace_s = self._holding.grace_s(self.grace_s)
        except GpuLockError as wrong:
            self._lose(wrong.message)
        except Exception as wrong:  # noqa: BLE001 # whatever it is, nobody keeps the lease, and the run must end
            self._lose(f"{type(wrong).__name__}: {wrong}")
        finally:
            self._is_set_up.set()
        if self._holding is not None and not self.lost:
            self._watch(self._holding)

    def _watch(self, holding: Holding) -> None:
        threading.Thread(target=self._hear, args=(holding,), name="gpulockd-hearing", daemon=True).start()
        threading.Thread(target=self._watch_stop, args=(holding,), name="gpulockd-stop", daemon=True).start()
        holding.entry.lost.wait_blocking()
        self._lose(holding.entry.lost_reason or "ended")

    def _hear(self, holding: Holding) -> None:
        from gpulockd.cli.hearing import hear

        hear(holding.keeper, holding.entry)

    def _watch_stop(self, holding: Holding) -> None:
        holding.entry.stopping.wait_blocking()
        self.stop_requested = True
        self._ring()

    def _lose(self, why: str) -> None:
        self.lost = why
        self._ring()


def give_back(grant: Grant, wish: Wish, *, tell: bool = True) -> bool:
    """Give back a lease that nobody keeps; return whether the ledger has confirmed it."""
    from gpulockd.cli.holding import release

    return _said(lambda: release(grant, wish), tell=tell)


def _said(release: Callable[[], str], *, tell: bool) -> bool:
    """Release, and say why if the ledger does not confirm it."""
    try:
        ended_by = release()
    except GpuLockError as away:
        say(f"the lease ends by itself soon, it could not be given back: {away.message}")
        return False
    if ended_by != RELEASED and tell:
        say(f"the lease had ended before it was given back ({in_words(ended_by)})")
    return ended_by == RELEASED
