"""Breaks what can break, by the dice of the world; each fault ends before the time of faults is over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from tests.faults.judge import NEMESIS
from tests.faults.simulator.client import Client
from tests.faults.simulator.daemon import Daemon
from tests.faults.simulator.site import Site
from tests.faults.simulator.store import Store
from tests.faults.simulator.world import World

FAULTS_S = 55.0
"""How long things break, in true seconds."""

BEGIN_S = 25.0
"""Within which they begin to break: what lasts longer than a session must find its time."""

JUMP_EVERY_S = 25.0
"""Belief outlasts one jump of the store's clock in a session's life, as the documentation says."""

NARROW = 0.03
"""Rates of clocks within which a jump of the store's clock is bearable beside them."""

BACK_IN_TIME = "its clock was set back"
"""A store that forgets everything and whose clock was set back has no token to go on from, unless a guard has."""


class Nemesis:
    """The faults of one schedule, planned at its beginning."""

    def __init__(self, world: World, store: Store, sites: Sequence[Site], *, may_jump: bool) -> None:
        self.world = world
        self.store = store
        self.sites = sites
        self.plan: list[str] = []
        self.over = False
        self._daemons = 0
        self._jumped_at = -JUMP_EVERY_S
        kinds: list[Fault] = [self.kill, self.stop, self.cut_one, self.cut_host, self.slow, self.restart, self.stall]
        kinds += [self.kill, self.stop, self.trap, self.trap, self.cut_one, self.forget, self.roll_back, self.flush]
        kinds += [self.hang_up, self.slow_bells]
        if may_jump:
            kinds.append(self.jump)
        if any(site.is_guarded for site in sites):
            kinds += [self.kill_daemon, self.kill_daemon, self.stop_daemon, self.cut_daemon]
        for _ in range(world.dice.randint(1, 7)):
            at_s, kind = world.dice.uniform(1.0, BEGIN_S), world.dice.choice(kinds)
            world.after(at_s, self._do, kind)
        world.after(FAULTS_S, self.end)

    def _do(self, kind: Fault) -> None:
        if self.over:
            return
        site = self.world.dice.choice(self.sites)
        self.plan.append(f"{self.world.now:.1f} {kind.__name__} {kind(site) or ''}")

    def end(self) -> None:
        """Nothing is broken any more."""
        if self.over:
            return
        self.over = True
        for site in self.sites:
            site.host.cut_to = site.host.cut_from = site.host.slow_until = 0.0
            for client in site.clients.values():
                client.cut_until = client.trapped_s = 0.0
                client.go_on()
            if site.is_guarded and (site.daemon is None or not site.daemon.alive):
                self.start_daemon(site)
            if site.daemon is not None:
                site.daemon.cut_until = 0.0
                site.daemon.go_on()
        self.store.stalled_until = self.store.slow_bells_until = 0.0
        self.world.note(NEMESIS, "over")

    def _lasts(self, most_s: float) -> float:
        """How long a fault lasts: not beyond the time of faults (in seconds)."""
        return max(0.1, min(self.world.dice.uniform(0.1, most_s), FAULTS_S - self.world.now))

    def _one(self, site: Site) -> Client | None:
        living = [client for client in site.clients.values() if client.alive and client.name in site.processes]
        return self.world.dice.choice(living) if living else None

    # Programs

    def _victim(self, site: Site) -> Client | None:
        """A holder rather than a waiter."""
        holders = [client for client in site.clients.values() if client.alive and client.in_body]
        return self.world.dice.choice(holders) if holders and self.world.dice.random() < 0.7 else self._one(site)

    def kill(self, site: Site) -> str:
        """A program dies."""
        client = self._victim(site)
        if client is not None:
            site.kill(client)
        return str(client)

    def stop(self, site: Site) -> str:
        """A program stands still for a while."""
        client = self._victim(site)
        if client is not None:
            client.stop()
            self.world.after(self._lasts(45.0), client.go_on)
        return str(client)

    def trap(self, site: Site) -> str:
        """A program stands still with its answer unread."""
        client = self._one(site)
        if client is not None:
            client.trapped_s = self.world.dice.uniform(0.1, 45.0)
        return str(client)

    def cut_one(self, site: Site) -> str:
        """One program's connections are dead."""
        client = self._victim(site)
        if client is not None:
            client.cut_until = self.world.now + self._lasts(40.0)
        return str(client)

    # The network

    def cut_host(self, site: Site) -> str:
        """The host does not reach the store, is not reached, or both."""
        until_s, way = self.world.now + self._lasts(40.0), self.world.dice.choice(("to", "from", "both"))
        if way != "from":
            site.host.cut_to = until_s
        if way != "to":
            site.host.cut_from = until_s
        return way

    def slow(self, site: Site) -> None:
        """Messages take up to seconds, and pass each other."""
        site.host.slow_until = self.world.now + self._lasts(20.0)

    def hang_up(self, site: Site) -> None:
        """Subscriptions break; some peers do not notice."""
        for session in list(self.store.subscribed):
            if self.world.dice.random() < 0.7:
                self.store.hang_up(session, silently=self.world.dice.random() < 0.5)

    def slow_bells(self, site: Site) -> None:
        """Doorbells come late."""
        self.store.slow_bells_until = self.world.now + self._lasts(30.0)

    # The store

    def restart(self, site: Site) -> None:
        """It dies, and comes back as it was."""
        if self.store.up:
            self.store.crash(self._lasts(15.0))

    def forget(self, site: Site) -> str:
        """It dies, and comes back empty."""
        if self.store.jumped_ms < 0:
            return BACK_IN_TIME
        if self.store.up:
            self.store.crash(self._lasts(15.0), empty=True)
        return ""

    def flush(self, site: Site) -> str:
        """FLUSHALL."""
        if self.store.jumped_ms < 0:
            return BACK_IN_TIME
        self.store.flush()
        return ""

    def roll_back(self, site: Site) -> str:
        """It loses the last second."""
        if self.store.jumped_ms < 0:
            return BACK_IN_TIME
        state = self.store.saved()
        down_s = self._lasts(10.0)

        def crash() -> None:
            if self.store.up and self.store.jumped_ms >= 0:
                self.store.crash(down_s, state)

        self.world.after(self.world.dice.uniform(0.1, 1.0), crash)
        return ""

    def stall(self, site: Site) -> None:
        """It answers nobody for a while."""
        self.store.stalled_until = self.world.now + self._lasts(40.0)

    def jump(self, site: Site) -> str:
        """Its wall clock jumps, forwards or back."""
        if self.world.now - self._jumped_at < JUMP_EVERY_S:
            return "not so soon"
        self._jumped_at = self.world.now
        jump_s = self.world.dice.choice((5.0, 3600.0) if self.store.forgot else (-3600.0, -5.0, 5.0, 3600.0))
        self.store.jumped_ms += round(jump_s * 1000)
        return f"{jump_s:g} s"

    # The daemon

    def start_daemon(self, site: Site) -> None:
        """A new one on the record of the old one."""
        if site.daemon is None or not site.daemon.alive:
            self._daemons += 1
            site.daemon = Daemon(site, self._daemons)
            site.daemon.begin()

    def kill_daemon(self, site: Site) -> str:
        """It dies; mostly it is back soon."""
        if site.daemon is None or not site.daemon.alive:
            return "there is none"
        site.daemon.kill()
        away_s = self._lasts(self.world.dice.choice((1.0, 5.0, 5.0, 60.0)))
        self.world.after(away_s, self.start_daemon, site)
        return f"for {away_s:.1f} s"

    def stop_daemon(self, site: Site) -> str:
        """It stands still."""
        if site.daemon is not None and site.daemon.alive:
            site.daemon.stop()
            self.world.after(self._lasts(30.0), site.daemon.go_on)
        return ""

    def cut_daemon(self, site: Site) -> str:
        """It does not reach the store, and often no holder does."""
        if site.daemon is None or not site.daemon.alive:
            return "there is none"
        site.daemon.cut_until = self.world.now + self._lasts(45.0)
        holders = [client for client in site.clients.values() if client.alive and client.in_body]
        cut = [client for client in holders if self.world.dice.random() < 0.7]
        for client in cut:
            client.cut_until = site.daemon.cut_until
        return f"with {cut}"


Fault = Callable[[Site], str | None]


class Ground(NamedTuple):
    """What a schedule is played on."""

    world: World
    store: Store
    sites: list[Site]
    may_jump: bool
