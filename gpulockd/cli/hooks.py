"""`gpulockd run --hook`: a line of shell that is called when something happens to the run, with JSON on its stdin.

A hook is no part of the run: nobody keeps a GPU for it, and its exit code means nothing.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any, Literal

from gpulockd.cli.talk import say

Event = Literal["granted", "stopping", "lost", "ended"]

WITHIN_S = 10.0
"""How long the hooks may go on after the run (in seconds)."""
LOOK_S = 0.02
SHELL = "/bin/sh"


class Hook:
    """One line of shell, called at each event. Without a line nothing is called."""

    def __init__(self, line: str | None, mask: Collection[int]) -> None:
        """:param mask: the signals that the hook is to find blocked"""
        self._line = line
        self._mask = set(mask)
        self._pids: list[int] = []

    def call(self, event: Event, said: Mapping[str, Any], env: Mapping[str, str]) -> int | None:
        """Start the line, and return its pid without waiting for it. `$GPULOCKD_EVENT` is the event."""
        if self._line is None:
            return None
        text = json.dumps({"event": event, **said}) + "\n"
        try:
            # A file, not a pipe: whether the hook reads it or not is its own affair.
            told = os.memfd_create("gpulockd-hook")
            try:
                os.write(told, text.encode())
                os.lseek(told, 0, os.SEEK_SET)
                pid = self._spawn(told, {**env, "GPULOCKD_EVENT": event})
            finally:
                os.close(told)
        except OSError as wrong:
            say(f"the hook could not be started: {wrong.strerror or wrong}")
            return None
        self._pids.append(pid)
        return pid

    def _spawn(self, told: int, env: Mapping[str, str]) -> int:
        assert self._line is not None
        # Other threads run, so nothing of this interpreter may run between fork and exec. What a hook prints goes to
        # stderr, for stdout is the command's; a group of its own is not hit by the terminal's Ctrl-C.
        return os.posix_spawn(
            SHELL,
            ["sh", "-c", self._line],
            env,
            file_actions=[(os.POSIX_SPAWN_DUP2, told, 0), (os.POSIX_SPAWN_DUP2, 2, 1)],
            setpgroup=0,
            setsigmask=self._mask,
            setsigdef=[signal.SIGINT, signal.SIGPIPE],
        )

    def wait(self) -> None:
        """Wait for all that were called, then end those that do not."""
        ends_at = time.monotonic() + WITHIN_S
        for pid in self._pids:
            while not _has_ended(pid):
                if time.monotonic() >= ends_at:
                    say(f"a hook has not ended within {WITHIN_S:g} s: it is killed")
                    with suppress(OSError):
                        os.killpg(pid, signal.SIGKILL)
                    break
                time.sleep(LOOK_S)


def _has_ended(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:  # the run has reaped it
        return True
