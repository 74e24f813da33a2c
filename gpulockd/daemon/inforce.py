"""What this daemon goes by: its file and environment under the fleet's live document, and what its pool publishes.

Nothing here waits or asks anybody: it is checked whole, then taken up in one step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import structlog

from gpulockd.config.change import values_of
from gpulockd.config.live import Live, live_for
from gpulockd.config.results import Candidate
from gpulockd.daemon.configkept import KeptFile
from gpulockd.daemon.configuration import Layers, Origin
from gpulockd.daemon.current import Current
from gpulockd.errors import ConfigError
from gpulockd.settings import Settings, Tree, needs_restart, nested, settings_from, value_at

_log = structlog.get_logger(__name__)

PUBLISHED = ("gpu_lock", "tasks")
"""Blocks that a client reads below its own environment, which live revisions go over again."""

PUBLISHED_IN_FORCE = ("session", "gpu_lock_monitor", "settle")
"""Blocks of which the daemon's word counts."""


def for_clients(live: Tree) -> Tree:
    """Return the part of a live document that clients read. All else may hold secrets, and anybody who may take a
    lock can read what is published."""
    return {name: live[name] for name in PUBLISHED if name in live}


class InForce:
    """The layers of one daemon. `trouble` says why what its file says now was not taken, empty if it was."""

    def __init__(self, pool: str, current: Current, layers: Layers) -> None:
        self.pool = pool
        self.current = current
        self.layers = layers
        self.live: Live = {}
        self.candidate: Candidate | None = None
        self.trouble = ""
        self._started = current.settings
        self._first = values_of(layers.settings())

    def __repr__(self) -> str:
        return f"<InForce {self.pool} {self.current}>"

    @property
    def here(self) -> Live:
        """What this daemon goes by live: of a candidate that the whole pool tries, if there is one."""
        candidate = self._whole
        return live_for(self.live if candidate is None else candidate.live, self.pool)

    @property
    def _whole(self) -> Candidate | None:
        return self.candidate if self.candidate is not None and self.candidate.is_whole else None

    def settings_under(self, live: Live, layers: Layers | None = None) -> Settings:
        """Return the settings under a live document; what needs a restart stays as it was at the start.

        :raises ConfigError: if they do not fit together
        """
        return self._kept((layers or self.layers).settings(live_for(live, self.pool)))

    def _kept(self, said: Settings) -> Settings:
        started, values = values_of(self._started), values_of(said)
        waiting = {
            path for path in {*started, *values} if needs_restart(path) and started.get(path) != values.get(path)
        }
        if not waiting:
            return said
        kept = {path: value for path, value in values.items() if path not in waiting}
        kept |= {path: started[path] for path in waiting if path in started}
        return settings_from(nested(kept))

    @property
    def waits_for_restart(self) -> tuple[str, ...]:
        """What the file and the environment say otherwise than at the start, and only a restart can take up."""
        now = values_of(self.layers.settings())
        paths = {path for path in {*now, *self._first} if now.get(path) != self._first.get(path)}
        return tuple(sorted(path for path in paths if needs_restart(path)))

    def take(self, live: Live, revision: int, layers: Layers | None = None) -> bool:
        """Go by a live document from now on. Returns whether settings differ.

        :raises ConfigError: if it does not fit this host's file; then all stays as it was
        """
        candidate = self._whole
        settings = self.settings_under(candidate.live if candidate is not None else live, layers)
        self.live, self.layers = live, layers or self.layers
        return self.current.become(settings, revision)

    def try_out(self, candidate: Candidate | None, revision: int) -> bool:
        """Go by a candidate, or by none any more. Returns whether settings differ.

        :raises ConfigError: if it does not fit this host's file; then all stays as it was
        """
        before, self.candidate = self.candidate, candidate
        try:
            return self.take(self.live, revision)
        except ConfigError:
            self.candidate = before
            raise

    def origins(self, said_in: Callable[[str], int] | None = None) -> dict[str, Origin]:
        """Where each value comes from.

        :param said_in: the number of the revision that has set a leaf live
        """
        candidate, live = self._whole, live_for(self.live, self.pool)

        def called(path: str) -> str:
            if candidate is not None and value_at(live, path) != value_at(self.here, path):
                return f"rollout {candidate.rollout}"
            return f"revision {self.current.revision if said_in is None else said_in(path)}"

        return self.layers.origins(self.here, called=called)

    def published(self, revision: int) -> dict[str, Any]:
        """Return what the pool tells its clients: defaults, file and environment of this host, and what is live."""
        base, now = self.layers.settings(), self.current.settings
        said: dict[str, Any] = {name: msgspec.to_builtins(getattr(base, name)) for name in PUBLISHED}
        said |= {name: msgspec.to_builtins(getattr(now, name)) for name in PUBLISHED_IN_FORCE}
        said |= {"live": for_clients(live_for(self.live, self.pool)), "revision": revision}
        said["require_guard"] = now.gpus.require_guard
        candidate = self.candidate
        if candidate is not None:
            said["candidate"] = {
                "live": for_clients(live_for(candidate.live, self.pool)),
                "revision": candidate.revision,
                "rollout": candidate.rollout,
                "below": candidate.below,
            }
        return said


def in_force_of(pool: str, settings: Settings, layers: Layers, kept: KeptFile) -> InForce:
    """Return what a daemon goes by at its start: its settings, under the live document that it has kept.

    :param settings: file, environment and command line
    """
    in_force = InForce(pool, Current(settings), layers)
    if kept.value is not None:
        try:
            in_force.take(kept.value.live, kept.value.current)
        except ConfigError as wrong:
            _log.error("config.does_not_fit", message=f"the kept live settings are left out: {wrong.message}")
    return in_force
