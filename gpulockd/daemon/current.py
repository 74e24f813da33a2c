"""The settings in force in this daemon: one place, read at each use, so that a change reaches every service at once."""

from __future__ import annotations

from collections.abc import Callable

from gpulockd.settings import Settings

Listener = Callable[[Settings, Settings], None]
"""Told of a change: the settings before, and those in force now. It must not raise."""

NO_REVISION = -1


class Current:
    """The settings in force, and the number of the revision that they are of (-1: the store was not read yet)."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.revision = NO_REVISION
        self._listeners: list[Listener] = []

    def __repr__(self) -> str:
        return f"<Current revision {self.revision}>"

    def tell(self, listener: Listener) -> None:
        """Call `listener` after each change from now on."""
        self._listeners.append(listener)

    def become(self, settings: Settings, revision: int) -> bool:
        """Take settings up, and tell of them if they differ. Returns whether they do."""
        before, self.settings, self.revision = self.settings, settings, revision
        if settings == before:
            return False
        for listener in self._listeners:
            listener(before, settings)
        return True
