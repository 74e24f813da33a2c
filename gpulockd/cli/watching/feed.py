"""Hears what happens from the daemon's stream of events, and whether there is a daemon; in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable

from gpulockd.cli import http
from gpulockd.cli.records import Record
from gpulockd.cli.talk import CommandError
from gpulockd.cli.watching.picture import events_in

SILENCE_S = 40.0
"""A stream that lives says something every 15 s."""

RETRY_S = 1.0


class Feed:
    """Calls `live()` when the stream stands, `told(event)` for each event, `gone(why)` when it has broken off."""

    def __init__(
        self, path: str, *, live: Callable[[], None], told: Callable[[Record], None], gone: Callable[[str], None]
    ) -> None:
        self._path = path
        self._live = live
        self._told = told
        self._gone = gone
        self._closed = threading.Event()
        self._stream: http.Stream | None = None
        self._thread = threading.Thread(target=self._run, name="gpulockd-feed", daemon=True)

    def start(self) -> None:
        """Begin to listen."""
        self._thread.start()

    def close(self) -> None:
        """Tell nothing more."""
        self._closed.set()
        stream = self._stream
        if stream is not None:
            stream.hang_up()

    def join(self, within_s: float) -> None:
        """Wait for its end."""
        self._thread.join(within_s)

    def _run(self) -> None:
        while not self._closed.is_set():
            why = "its stream of events has ended"
            try:
                self._hear()
            except CommandError as down:
                why = down.what
            except OSError as broken:
                why = f"its stream of events broke off: {broken}"
            if not self._closed.is_set():
                self._gone(why)
            self._closed.wait(RETRY_S)

    def _hear(self) -> None:
        with http.Daemon(self._path).stream("GET", "/api/v1/events", silence_s=SILENCE_S) as stream:
            self._stream = stream
            try:
                if not self._closed.is_set():
                    self._live()
                for event in events_in(stream):
                    if self._closed.is_set():
                        return
                    self._told(event)
            finally:
                self._stream = None
