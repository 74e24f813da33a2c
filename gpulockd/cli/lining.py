"""Standing in line for a run: the daemon asks on its behalf and streams its place, then the lease."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from gpulockd.cli import http, older
from gpulockd.cli.records import is_only_drained, whole_percents
from gpulockd.cli.talk import NEGATIVE, NOT_PERMITTED, USAGE, CommandError, say
from gpulockd.cli.wish import Grant, Wish
from gpulockd.clock import boottime_s

SILENCE_S = 15.0
"""The daemon says something every 5 s, so such a silence is the end of the connection."""
DAEMON_AWAY_S = 20.0
"""How long a daemon may be away during a wait before the run gives up (a restart takes a second or two)."""
RETRY_S = 0.2
FRESH_S = 8.0
"""A grant read later than this after the daemon's last word may have ended meanwhile, so it is asked for again."""
CROWDED_S = (0.5, 1.5)
"""How soon to ask again where too many requests of this user are open (in seconds): between these."""
SAY_AGAIN_S = 60.0
LEAVE_DEADLINE_S = 1.0

HINTS = {
    "busy": "say with --wait how long to wait for it, such as --wait 30m; 'gpulockd status' shows who holds it",
    "timeout": "wait longer with --wait, or go first with -p; 'gpulockd queue' shows the line",
    "impossible": "'gpulockd status' lists the GPUs that there are",
    "would_deadlock": "ask for all GPUs in the outer 'gpulockd run'",
}
"""What to do about a refusal, in the words of this command; the daemon's own hints are for HTTP."""

_EXIT_CODES = {"impossible": USAGE, "config": USAGE, "unauthorized": NOT_PERMITTED, "forbidden": NOT_PERMITTED}
"""The exit codes of commands other than `run`, which has its own."""


class Interrupted(BaseException):
    """A signal ended the wait. `grant`: what was granted at the same moment and must be given back."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number
        self.grant: Grant | None = None


class NotGranted(CommandError):
    """The line has ended without a lease; `kind` is busy, timeout, impossible, would_deadlock, store or config."""

    def __init__(self, kind: str, what: str, hint: str = "") -> None:
        super().__init__(what, hint, _EXIT_CODES.get(kind, NEGATIVE))
        self.kind = kind


class Line:
    """One wait, over as many connections as it takes."""

    def __init__(self, daemon: http.Daemon, wish: Wish, *, quiet: bool) -> None:
        self._daemon = daemon
        self._wish = wish
        self._teller = Teller(quiet)
        self._deadline = None if wish.wait_s is None else time.monotonic() + wish.wait_s
        self._heard_at: float | None = None
        self._asked = 0
        self.ticket = wish.ticket
        """Of the last request: it stays the same unless its place was lost; "": the daemon takes none."""

    def wait(self) -> Grant:
        """Return what was granted.

        :raises NotGranted: if it was not
        :raises Interrupted: if a signal came first; the place in the queue is given up
        """
        try:
            with _interruptible():
                return self._wait()
        finally:
            self._teller.clear()

    def _wait(self) -> Grant:
        while True:
            try:
                grant = self._listen()
                fresh = self._wish.is_kept_for_us or (grant is not None and boottime_s() - grant.asked_at <= FRESH_S)
                if grant is not None and fresh:
                    return grant
            except http.DaemonDown as down:
                # A first connection that fails is an answer; one that breaks may be a restart of the daemon.
                if down.was_there and self._heard_at is None:
                    self._heard_at = time.monotonic()
                if not self._may_come_back():
                    raise
                self._teller.say_away(down)
                time.sleep(RETRY_S)

    def _may_come_back(self) -> bool:
        """Whether the daemon has been away for so short a time that it may be restarting."""
        return self._heard_at is not None and time.monotonic() - self._heard_at <= DAEMON_AWAY_S

    def _listen(self) -> Grant | None:
        """Ask, and hear until the lease comes, or (None) the connection breaks."""
        left_s = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
        asked_at = boottime_s()
        self._asked += 1
        body = self._wish._replace(ticket=self.ticket).body(left_s)
        try:
            stream = self._daemon.stream("POST", "/api/v1/leases", body, silence_s=SILENCE_S)
        except http.Refused as refused:
            if self._is_to_begin_again(refused.kind) or self._is_asked_simpler(refused.what):
                return None
            if refused.kind == "store" and self._may_come_back():
                raise http.DaemonDown(self._daemon.path, refused.what) from refused
            if refused.kind == "too_many" and (left_s is None or left_s > 0):
                self._stand_outside(refused)
                return None
            self._refuse(refused.problem)
        with stream:
            try:
                return self._hear(stream, asked_at)
            except Interrupted as interrupted:
                if not (self._wish.is_kept_for_us and self.ticket):
                    interrupted.grant = self._granted_meanwhile(stream)
                raise
            except OSError:
                return None

    def _hear(self, stream: http.Stream, asked_at: float) -> Grant | None:
        """Hear what is said of the place until the lease comes; None: ask again.

        :raises OSError: if the connection breaks, or is silent for too long
        """
        for line in stream.lines():
            said = json.loads(line) if line else {}
            self._heard_at = time.monotonic()
            if said.get("state") == "granted":
                return Grant.of(said, self._wish.inside, asked_at)
            if said.get("state") == "failed":
                problem = said.get("problem") or {}
                if self._is_to_begin_again(problem.get("kind")):
                    return None
                self._refuse(problem)
            asked_at = boottime_s()
            self._teller.tell(said)
        if self._heard_at is None:
            raise http.DaemonDown(self._daemon.path, "its answer broke off", was_there=True)
        time.sleep(RETRY_S)
        return None

    def _is_to_begin_again(self, kind: object) -> bool:
        """Whether the place was lost with a connection that broke; then the next try is for a new one."""
        if kind != "ended" or self._asked == 1 or not self._wish.is_kept_for_us:
            return False
        self._asked, self.ticket = 0, os.urandom(16).hex()
        return True

    def _is_asked_simpler(self, refused: str) -> bool:
        """Whether an older daemon may be asked without a ticket of ours; then the next try is so."""
        if not (self.ticket and self._wish.is_kept_for_us and older.takes_no_ticket(refused)):
            return False
        self.ticket = ""
        return True

    def _stand_outside(self, refused: http.Refused) -> None:
        """The daemon takes no more requests of this user now: wait for one of them to be over, then ask again."""
        self._teller.say_crowded(refused)
        # Many must not come back together; the pid is as good as a die, and `random` takes long to load.
        early_s, late_s = CROWDED_S
        time.sleep(early_s + (late_s - early_s) * (os.getpid() % 100) / 100)

    def _refuse(self, problem: dict[str, Any]) -> NoReturn:
        kind = str(problem.get("kind") or "store")
        if kind == "busy" and self._wish.wait_s:
            kind = "timeout"  # the wait limit ran out while the daemon was away
        what = whole_percents(str(problem.get("detail") or problem.get("title") or "not granted"))
        hint = HINTS.get(kind) or older.cure_of(what) or str(problem.get("hint") or "")
        if kind == "impossible" and "gpulockd status" in what:  # the text itself says where to look
            hint = "name others with --gpu, or leave it out for any GPU" if self._wish.gpus else ""
        raise NotGranted(kind, what, "" if is_only_drained(what) else hint)

    def _granted_meanwhile(self, stream: http.Stream) -> Grant | None:
        for line in stream.leave(LEAVE_DEADLINE_S):
            try:
                said = json.loads(line or b"{}")
            except ValueError:
                continue
            if said.get("state") == "granted":
                return Grant.of(said, self._wish.inside, boottime_s())
        return None


class Teller:
    """Tells the place: one line refreshed in place on a terminal, else when the own place changes and once a minute."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._is_shown = False
        self._told: object = None
        self._told_at = 0.0

    def tell(self, said: dict[str, Any]) -> None:
        """Say what a line of the stream says."""
        text = whole_percents(str(said.get("text") or f"place {said.get('place')} of {said.get('queued')}"))
        if self._quiet or said.get("state") != "waiting":
            return
        if _is_in_foreground():
            self._refresh(text)
            return
        # Holders and the queue behind change all the time; the own place is what matters in a log, and the turn.
        told, now = (said.get("place"), said.get("expected_start") is not None), time.monotonic()
        if told != self._told or now - self._told_at >= SAY_AGAIN_S:
            self._told, self._told_at = told, now
            say(f"waiting: {text}")

    def say_away(self, down: http.DaemonDown) -> None:
        """Say once that the daemon is away."""
        self._say_once("away", f"{down.what}; keeping the place for {DAEMON_AWAY_S:g} s")

    def say_crowded(self, refused: http.Refused) -> None:
        """Say once that there is no place in the queue yet."""
        if not self._quiet:
            self._say_once("crowded", f"waiting for a place in the queue: {refused.what}")

    def clear(self) -> None:
        """Take the line that is refreshed in place away."""
        if self._is_shown:
            self._is_shown = False
            _show("\r\033[K")

    def _say_once(self, told: str, text: str) -> None:
        if self._told != told:
            self._told, self._told_at = told, time.monotonic()
            self.clear()
            say(text)

    def _refresh(self, text: str) -> None:
        try:
            width = os.get_terminal_size(sys.stderr.fileno()).columns
        except (OSError, ValueError):
            width = 0
        # A line that wraps could not be taken back; an unknown width says 0.
        _show("\r\033[K" + f"gpulockd: waiting: {text}  [Ctrl-C leaves the queue]"[: (width or 80) - 1])
        self._is_shown = True


def _is_in_foreground() -> bool:
    """Whether stderr is a terminal that this command has for itself; a background job must not scribble on it."""
    try:
        return sys.stderr.isatty() and os.tcgetpgrp(sys.stderr.fileno()) == os.getpgrp()
    except (OSError, ValueError):
        return False


def _show(text: str) -> None:
    """Write to the terminal. One that has hung up is no reason to leave the queue."""
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except (OSError, ValueError):
        return


ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let the signals that end a wait raise `Interrupted`. What the caller ignores, as `nohup` does, stays ignored, but
    for SIGINT: every shell script has it ignored in its background jobs, and Ctrl-C shall end their waiting too."""

    def interrupt(number: int, _: object) -> None:
        # One is enough: a second would cut short the leaving.
        for other in caught:
            signal.signal(other, signal.SIG_IGN)
        came.append(number)
        raise Interrupted(number)

    came: list[int] = []
    handlers = {number: signal.getsignal(number) for number in ENDS}
    caught = {n: was for n, was in handlers.items() if was is not signal.SIG_IGN or n == signal.SIGINT}
    for number in caught:
        signal.signal(number, interrupt)
    try:
        yield
        if came:  # what it was raised in has swallowed it
            raise Interrupted(came[0])
    finally:
        # What comes between two handlers waits for the next one, and ends as the command's own signal.
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDS)
        for number, handler in caught.items():
            signal.signal(number, handler)
