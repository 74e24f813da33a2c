"""What mutants of the Lua that nobody had seen have taught (docs/mutation.md): keys deleted by hand, cards of several
sizes, and which old bases are kept."""

from __future__ import annotations

import pytest

from gpulockd.ledger import revisions as r
from tests.lua.both import Both, budget, card, on
from tests.lua.fleet import Fleet
from tests.lua.test_revisions import many
from tests.servers import Server

ZERO = on("gpu_lock:0")
OF_A_WAITER = ("queue", "queue:exclusive:1:0:gpu_lock:0", "heads:gpu_lock:0")
"""The three keys in which a waiter stands."""


@pytest.mark.parametrize("name", OF_A_WAITER)
def test_a_waiter_comes_back_with_its_keepalive_whichever_of_its_keys_was_deleted(two_cards: Both, name: str) -> None:
    """It would wait for ever in a queue that knows it no more."""
    both = two_cards
    both.request("a", "held", ZERO)
    both.request("b", "next", ZERO)
    key = f"gpulockd:{{{both.keys.pool}}}:{name}"
    assert both.ledger._client.delete(key) == 1
    both.keepalive("b")
    both.end("a", "held", both.token("held"))
    assert both.state("next") == "claim"


def test_a_budget_takes_the_first_of_empty_cards_whatever_their_sizes(both: Both) -> None:
    """Only whole cards are chosen by their size; budgets are packed, so they all begin on the same one."""
    both.stage(card(0, 48), card(1, 24))
    assert both.request("a", "one", budget(8))[2] == {"gpu_lock:0"}
    assert both.request("b", "two", budget(8))[2] == {"gpu_lock:0"}


async def test_of_old_bases_the_one_that_the_stable_revision_had_is_kept(server: Server) -> None:
    """A rollback to it needs what the files said then, however long ago that was."""
    with Fleet(server.url) as fleet:
        await many(fleet, 4)
        await r.mark(fleet.ask, 2, stable=True)
        bases = dict.fromkeys((0, 1, 3, *range(500, 500 + r.MOST_REVISIONS)), "{}")
        fleet.raw.hset(f"{fleet.base}bases:gpu-1", mapping=bases)
        fleet.raw.hset(f"{fleet.base}config", "current", "1500")
        await r.set_base(fleet.ask, "gpu-1", {})
        kept = set(await r.bases(fleet.ask, "gpu-1"))
        assert kept == {1, *range(501, 1501)}
