"""The times of a drill: what its daemon goes by, and by when each recovery is promised."""

from __future__ import annotations

import msgspec

from gpulockd.settings import Tree


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """All in seconds. `slack` is what a busy machine may add to any promise; `cut` is how long the store is away."""

    ttl: float = 20.0
    keepalive: float = 5.0
    rpc_deadline: float = 2.0
    margin: float = 1.0
    claim_window: float = 3.0
    hard: float = 3.0
    grace: float = 1.0
    cut: float = 15.0
    slack: float = 2.0

    @property
    def tree(self) -> Tree:
        """The configuration of the drill's daemon."""
        return {
            "session": {
                "ttl": self.ttl,
                "keepalive": self.keepalive,
                "rpc_deadline": self.rpc_deadline,
                "margin": self.margin,
                "claim_window": self.claim_window,
            },
            "gpu_lock": {"lock_timeout": 3600.0, "poll_interval": 0.5, "max_poll_interval": 2.0},
            "settle": {"grace": self.grace},
        }

    @property
    def seen_out(self) -> float:
        """A holder beyond its hard limit: told, asked after half of the grace, killed after a whole one."""
        return self.hard + 1.5 * self.grace

    @property
    def woken(self) -> float:
        """No wake-up is lost for longer than two keepalives and a round trip."""
        return 2 * self.keepalive + self.rpc_deadline

    @property
    def told_anew(self) -> float:
        """After the store lost everything the guard tells it who is inside, once waiters are back."""
        return self.keepalive + self.rpc_deadline


DEFAULTS = Terms()
QUICK = Terms(ttl=6.0, keepalive=1.0, rpc_deadline=0.8, margin=0.5, claim_window=1.5, hard=1.5, grace=0.5, cut=2.0)
