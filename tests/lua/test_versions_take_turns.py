"""Two versions of the library at work on one pool: what one remembers of its last call, the other has changed since."""

from __future__ import annotations

import itertools

import pytest

from gpulockd.errors import GpuLockError
from gpulockd.ledger.lua_files import library, lua_text
from tests.lua.both import Both, Disagreement, card, on
from tests.lua.harness import TURNED_BY_HAND, planted
from tests.servers import Server

ZERO = on("gpu_lock:0")


def take_turns(both: Both, bug: dict[str, str] | None = None) -> None:
    """Let every call go to the version that did not run the call before it; model and keys are compared after each."""
    server = lua_text("_server") + TURNED_BY_HAND
    versions = itertools.cycle(library({"_server": f"{server}\n-- version {n}\n"} | (bug or {})) for n in (1, 2))

    def turn() -> Both:
        both.ledger._library = next(versions)
        both.pass_time(10)
        return both

    both.stage(card(0), card(1, 48))
    for n in range(3):
        held, winner, last = f"held-{n}", f"winner-{n}", f"last-{n}"
        turn().request("a", held, ZERO)
        turn().request("b", winner, ZERO, priority=n)
        turn().request("c", last, ZERO)
        turn().end("a", held, both.token(held))
        turn().confirm("b", winner, both.token(winner))
        turn().keepalive("b", [(winner, both.token(winner))])
        turn().end("b", winner, both.token(winner))
        turn().end("c", last, None, "abandoned")


def test_two_versions_of_the_library_take_turns(server: Server, pool: str) -> None:
    """Clients of different versions share a pool during every upgrade, and each call goes by what the store says."""
    with Both(server.url, pool) as both:
        take_turns(both)


def test_a_memory_that_is_not_compared_is_caught(server: Server, pool: str) -> None:
    """The same with a library that believes its own memory must fail: the stream of events takes no number twice."""
    bug = planted("if state ~= names.state then", "if not names.state then", "_books")
    with pytest.raises((Disagreement, GpuLockError)), Both(server.url, pool, bug) as both:
        take_turns(both, bug)
