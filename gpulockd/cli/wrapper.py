"""What the wrapper does while its run lives: pass signals through, keep the lease, and end the run when it must.

One thread waits for everything with `sigtimedwait`: deaths of children, signals of the terminal and of people, and the
keeping thread, which rings with a SIGCHLD.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable

from gpulockd.cli.child import Run
from gpulockd.cli.hooks import Event
from gpulockd.cli.keeping import Keeping
from gpulockd.cli.processes import signal_name
from gpulockd.cli.talk import say
from gpulockd.client.losses import in_words
from gpulockd.units import format_duration

SI_KERNEL = 0x80
"""The code of a signal that the terminal sent, to the whole foreground group."""

PASSED = (
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGWINCH,
    signal.SIGCONT,
    signal.SIGTSTP,
)
WATCHED = (*PASSED, signal.SIGCHLD)
FROM_TERMINAL = (signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP, signal.SIGWINCH)

LEFTOVERS_SAID_AFTER_S = 0.5
KILL_AGAIN_S = 0.1
LONGEST_PAUSE_S = 3600.0

CLOCKS_DIFFER_S = 2.0
"""How much earlier than here a hold may have begun for the daemon (in seconds): it counts from the grant."""


class Wrapper:
    """Waits until a run is over.

    :param limit_s: age at which the run is ended (in seconds), None for no limit
    :param soft_signal: what the run gets when it is asked to stop
    :param tell: told when the run is asked to stop, or ended before its time, and the outcome so far
    """

    def __init__(
        self, run: Run, keeping: Keeping, *, limit_s: float | None, soft_signal: int, tell: Callable[[Event, str], None]
    ) -> None:
        self.outcome = "exited"
        self._run = run
        self._keeping = keeping
        self._limit_s = limit_s
        self._soft_signal = soft_signal
        self._tell = tell
        self._started_at = time.monotonic()
        self._kill_at: float | None = None
        self._command_ended_at: float | None = None
        self._said_leftovers = False
        self._said_stop = False

    def wait(self) -> int:
        """Return the exit code of the run, once all of it is gone."""
        while not self._run.reap():
            self._look_at_lease()
            self._look_at_clock()
            info = signal.sigtimedwait(_watched(), self._pause_s())
            if info is not None and info.si_signo != signal.SIGCHLD:
                self._heed(info)
        code = self._run.exit_code
        if self.outcome != "exited" and code == 0:
            return 128 + signal.SIGTERM  # it was stopped, so it has not finished, whatever it says
        return code

    def _heed(self, info: signal.struct_siginfo) -> None:
        number = info.si_signo
        command_has_it = info.si_code == SI_KERNEL and number in FROM_TERMINAL
        if self._run.status is not None and number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            # The command itself has ended; background jobs of shells ignore SIGINT, so that would not end them.
            self._run.signal_all(signal.SIGTERM if self._kill_at is None else signal.SIGKILL)
            self._kill_at = self._kill_at or time.monotonic() + self._keeping.grace_s
            return
        if not command_has_it:
            self._run.signal_command(number)
        if number == signal.SIGTSTP:
            self._stop_too()

    def _stop_too(self) -> None:
        """Stop like the command, so that the shell gets its terminal back."""
        limit = "" if self._limit_s is None else f" of {format_duration(self._limit_s)}"
        say(f"stopped; the GPU stays taken until the hard limit{limit}: 'fg' or 'bg' goes on, 'kill %%' ends it")
        os.kill(os.getpid(), signal.SIGTSTP)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTSTP])
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTSTP])

    def _look_at_lease(self) -> None:
        if self._keeping.lost and self.outcome == "exited":
            if self._limit_is_near():
                self._end("hard_timeout", f"the limit of {format_duration(self._limit_s or 0.0)} is over")
            else:
                self._end("lost", f"the lease was lost: {in_words(self._keeping.lost)}")
        elif self._keeping.stop_requested and not self._said_stop:
            self._said_stop = True
            say(f"asked to stop: {signal_name(self._soft_signal)} to the command")
            self._run.signal_command(self._soft_signal)
            self._tell("stopping", "running")

    def _limit_is_near(self) -> bool:
        """Whether it was for the limit that the daemon took the lease: its count began a little earlier."""
        left_s = float("inf") if self._limit_s is None else self._started_at + self._limit_s - time.monotonic()
        return left_s <= CLOCKS_DIFFER_S and self._keeping.lost in ("revoked", "hard_timeout")

    def _look_at_clock(self) -> None:
        now = time.monotonic()
        if self._limit_s is not None and now >= self._started_at + self._limit_s and self.outcome == "exited":
            self._end("hard_timeout", f"the limit of {format_duration(self._limit_s)} is over")
        if self._kill_at is not None and now >= self._kill_at:
            self._run.signal_all(signal.SIGKILL)
            self._kill_at = now + KILL_AGAIN_S  # until nothing is left that forked meanwhile
        if self._run.status is None:
            return
        self._command_ended_at = self._command_ended_at or now
        if not self._said_leftovers and now >= self._command_ended_at + LEFTOVERS_SAID_AFTER_S:
            self._say_leftovers()

    def _say_leftovers(self) -> None:
        self._said_leftovers = True
        left = self._run.members()
        names = ", ".join(f"{member.name} (pid {member.pid})" for member in left[:4])
        if left:
            say(f"the command has ended, the GPU is kept until its processes end too: {names}; Ctrl-C ends them")

    def _end(self, outcome: str, why: str) -> None:
        grace_s = self._keeping.grace_s
        self.outcome = outcome
        say(f"{why}: SIGTERM to the command, SIGKILL after {grace_s:g} s")
        self._run.signal_all(signal.SIGTERM)
        self._kill_at = time.monotonic() + grace_s
        self._tell("lost", outcome)

    def _pause_s(self) -> float:
        now = time.monotonic()
        moments = [now + LONGEST_PAUSE_S]
        if self._kill_at is not None:
            moments.append(self._kill_at)
        if self._limit_s is not None and self.outcome == "exited":
            moments.append(self._started_at + self._limit_s)
        if self._command_ended_at is not None and not self._said_leftovers:
            moments.append(self._command_ended_at + LEFTOVERS_SAID_AFTER_S)
        return max(0.0, min(moments) - now)


def block_signals() -> None:
    """Let the signals of a run wait until `Wrapper.wait` takes them."""
    # An ignored SIGCHLD, which some parents leave behind, would reap our children for us.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_BLOCK, _watched())


def _watched() -> set[signal.Signals]:
    """What is waited for. Who was started to outlive a hang-up, as by `nohup`, does not hear of it."""
    ignored = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else set()
    return set(WATCHED) - ignored


def ring() -> None:
    """Wake the main thread's `Wrapper.wait`, from another thread."""
    thread = threading.main_thread().ident
    assert thread is not None
    signal.pthread_kill(thread, signal.SIGCHLD)
