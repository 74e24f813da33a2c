"""How much of what is finite one user may have: whoever has more than what is left gets no more.

So nobody takes all, and nobody can be kept out by another: the first may have half, the second a third, and so on.
"""

from __future__ import annotations

import resource
from collections import Counter
from collections.abc import Mapping

OWN_DESCRIPTORS = 128
"""What the daemon needs besides the guard's callers: the store, the web, the watch over files and cards."""

EACH_DESCRIPTORS = 2
"""A caller costs its connection, and one to watch its process."""


def may_have(uid: int, taken: Mapping[int, int], most: int) -> bool:
    """Whether a user may have one more.

    :param taken: how much each user has, by uid
    :param most: how much there is
    """
    return taken.get(uid, 0) < most - sum(taken.values())


def room_for_callers(most: int) -> int:
    """How many connections the descriptors of this process are enough for; `most` at most, a few in any case."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return most
    return max(16, min(most, (limit - OWN_DESCRIPTORS) // EACH_DESCRIPTORS))


class Shares:
    """What the users have of something of which there is `most`."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._taken: Counter[int] = Counter()

    def __repr__(self) -> str:
        return f"<Shares {self._taken.total()} of {self.most}, {len(self._taken)} users>"

    def take(self, uid: int) -> bool:
        """Give a user one more; False if that would be too much of what is left."""
        if not may_have(uid, self._taken, self.most):
            return False
        self._taken[uid] += 1
        return True

    def give_back(self, uid: int) -> None:
        """A user has one less."""
        self._taken[uid] -= 1
        if not self._taken[uid]:
            del self._taken[uid]
