"""Breaks what can break, by the dice of the world; each fault ends before the time of faults is over."""

from __future__ import annotations

from collections.abc import Callable

from tests.faults.dst.program import Program
from tests.faults.dst.site import Site
from tests.faults.judge import NEMESIS

FAULTS_S = 55.0
"""How long things break, in true seconds."""

BEGIN_S = 25.0
"""Within which they begin to break: what lasts longer than a session must find its time."""

CANCELS_S = 3.0
"""Within which it is cancelled some times."""

JUMP_EVERY_S = 25.0
"""Belief outlasts one jump of the store's clock in a session's life, as the documentation says."""

NARROW = 0.03
"""Rates of clocks within which a jump of the store's clock is bearable beside them."""

BACK_IN_TIME = "its clock was set back"
"""A store that forgets everything and whose clock was set back has no token to go on from, unless a guard has."""


class Nemesis:
    """The faults of one schedule, planned at its beginning."""

    def __init__(self, site: Site, *, may_jump: bool) -> None:
        self.world = site.world
        self.store = site.store
        self.site = site
        self.plan: list[str] = []
        self.over = False
        self._jumped_at = -JUMP_EVERY_S
        kinds: list[Fault] = [self.kill, self.kill, self.stop, self.stop, self.trap, self.trap, self.trap]
        kinds += [self.cancel, self.cancel, self.cut, self.cut, self.slow, self.slow_bells, self.reset]
        kinds += [self.vanish, self.vanish, self.hang_up, self.lose_reply, self.stall, self.unload, self.flush]
        dice = self.world.dice
        if may_jump:
            kinds.append(self.jump)
        if dice.random() < 0.2:  # a real restart takes real time
            kinds += [self.restart, self.forget, self.roll_back]
        chosen = dice.sample(kinds, dice.randint(1, 4))  # few kinds, often: some bugs need the same twice
        for _ in range(dice.randint(2, 10)):
            self.world.after(dice.uniform(1.0, BEGIN_S), self._do, dice.choice(chosen))
        self.world.after(FAULTS_S, self.end)

    def _do(self, kind: Fault) -> None:
        if not self.over:
            self.plan.append(f"{self.world.now:.1f} {kind.__name__} {kind() or ''}")

    def end(self) -> None:
        """Nothing is broken any more."""
        if self.over:
            return
        self.over = True
        for way in self.site.network.ways.values():
            way.cut_to = way.cut_from = way.slow_until = way.bells_slow_until = 0.0
        for program in self.site.programs.values():
            program.process.trapped_s = 0.0
            program.process.go_on()
        self.store.stalled_until = 0.0
        self.world.note(NEMESIS, "over")

    def _lasts(self, most_s: float) -> float:
        """How long a fault lasts: not beyond the time of faults (in seconds)."""
        return max(0.1, min(self.world.dice.uniform(0.1, most_s), FAULTS_S - self.world.now))

    def _one(self) -> Program | None:
        living = [program for program in self.site.programs.values() if program.process.alive]
        return self.world.dice.choice(living) if living else None

    def _victim(self) -> Program | None:
        """A holder rather than a waiter."""
        holders = [one for one in self.site.programs.values() if one.process.alive and one.in_body]
        return self.world.dice.choice(holders) if holders and self.world.dice.random() < 0.6 else self._one()

    # Programs

    def kill(self) -> str:
        """A program dies."""
        program = self._victim()
        if program is not None:
            self.site.kill(program)
        return f"{program and program.name}"

    def stop(self) -> str:
        """A program stands still for a while."""
        program = self._victim()
        if program is None:
            return "there is none"
        lasts_s = self._lasts(45.0)
        program.process.stop()
        self.world.after(lasts_s, program.process.go_on)
        return f"{program.name} for {lasts_s:.1f} s"

    def trap(self) -> str:
        """A program stands still with its answer unread."""
        program = self._victim()
        if program is None:
            return "there is none"
        program.process.trapped_s = self.world.dice.choice((3.0, 45.0)) * self.world.dice.uniform(0.6, 1.0)
        return f"{program.name} for {program.process.trapped_s:.1f} s"

    def cancel(self) -> str:
        """Somebody cancels what a program does, some times while its answers are slow."""
        program = self._one()
        if program is None:
            return "there is none"
        way = self.site.network.way(program.process)
        way.slow_until, way.slowest_s = self.world.now + CANCELS_S, 0.5
        for _ in range(self.world.dice.randint(1, 4)):
            self.world.after(self.world.dice.uniform(0.0, CANCELS_S), self._cancel_one, program)
        return program.name

    def _cancel_one(self, program: Program) -> None:
        if program.process.alive and not self.over:
            program.cancel_one()

    # The network

    def cut(self) -> str:
        """A program does not reach the store, is not reached, or both."""
        program = self._victim()
        if program is None:
            return "there is none"
        way, lasts_s = self.site.network.way(program.process), self._lasts(40.0)
        which = self.world.dice.choice(("to", "from", "both"))
        if which != "from":
            way.cut_to = self.world.now + lasts_s
        if which != "to":
            way.cut_from = self.world.now + lasts_s
        return f"{program.name} {which} for {lasts_s:.1f} s"

    def slow(self) -> str:
        """Messages take up to seconds, and those of different connections pass each other."""
        program = self._one()
        if program is None:
            return "there is none"
        way = self.site.network.way(program.process)
        way.slow_until = self.world.now + self._lasts(20.0)
        way.slowest_s = self.world.dice.choice((0.05, 0.5, 3.0))
        return program.name

    def slow_bells(self) -> None:
        """Doorbells come late."""
        for program in self.site.programs.values():
            way = self.site.network.way(program.process)
            way.bells_slow_until = self.world.now + self._lasts(30.0)
            way.slowest_s = self.world.dice.choice((0.5, 3.0, 8.0))

    def reset(self) -> str:
        """Connections of a program break, some or all."""
        program = self._one()
        if program is None:
            return "there is none"
        share = self.world.dice.choice((0.5, 1.0))
        for connection in self.site.network.of(program.process):
            if self.world.dice.random() < share:
                connection.reset()
        return program.name

    def vanish(self) -> str:
        """Connections of a program are forgotten on the way: what is sent there is gone, others are as they were."""
        program = self._victim()
        if program is None:
            return "there is none"
        for connection in self.site.network.of(program.process):
            if self.world.dice.random() < 0.4:
                connection.vanish()
        return program.name

    def hang_up(self) -> None:
        """Subscriptions break; some peers do not notice."""
        for connection in list(self.site.network.connections):
            if connection.is_ear and not connection.is_over and self.world.dice.random() < 0.7:
                if self.world.dice.random() < 0.5:
                    connection.hang_up_unheard()
                else:
                    connection.reset()

    def lose_reply(self) -> str:
        """The next command of some connections is run, and its reply is lost with the connection."""
        program = self._victim()
        if program is None:
            return "there is none"
        for connection in self.site.network.of(program.process):
            if not connection.is_ear and self.world.dice.random() < 0.7:
                connection.dies_with_reply = True
        return program.name

    # The store

    def stall(self) -> str:
        """It answers nobody for a while."""
        lasts_s = self._lasts(40.0)
        self.store.stalled_until = self.world.now + lasts_s
        return f"for {lasts_s:.1f} s"

    def unload(self) -> None:
        """FUNCTION FLUSH."""
        self.store.ask("FUNCTION", "FLUSH")

    def flush(self) -> str:
        """FLUSHALL."""
        if self.store.jumped_s < 0:
            return BACK_IN_TIME
        if self.store.ask("FLUSHALL") is not None:
            self.store.forgot = True
        return ""

    def restart(self) -> None:
        """It dies, and comes back as it was."""
        if self.store.up:
            self.store.save()
            self.store.come_back(self._lasts(15.0), keeps=True)

    def forget(self) -> str:
        """It dies, and comes back empty."""
        if self.store.jumped_s < 0:
            return BACK_IN_TIME
        if self.store.up:
            self.store.come_back(self._lasts(15.0), keeps=False)
        return ""

    def roll_back(self) -> str:
        """It loses the last second."""
        if self.store.jumped_s < 0 or not self.store.up:
            return BACK_IN_TIME
        self.store.save()
        down_s = self._lasts(10.0)

        def crash() -> None:
            if self.store.up and self.store.jumped_s >= 0:
                self.store.forgot = True
                self.store.come_back(down_s, keeps=True)

        self.world.after(self.world.dice.uniform(0.1, 1.0), crash)
        return ""

    def jump(self) -> str:
        """Its wall clock jumps, forwards or back."""
        if self.world.now - self._jumped_at < JUMP_EVERY_S:
            return "not so soon"
        self._jumped_at = self.world.now
        jump_s = self.world.dice.choice((5.0, 3600.0) if self.store.forgot else (-3600.0, -5.0, 5.0, 3600.0))
        self.store.jumped_s += jump_s
        return f"{jump_s:g} s"


Fault = Callable[[], str | None]
