"""Fixtures of the ledger's tests: a pool that model and scripts share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lua.both import Both
from tests.servers import Server


@pytest.fixture
def both(server: Server, pool: str) -> Iterator[Both]:
    """An empty pool as the model has it and as the server has it; every call compares the two."""
    with Both(server.url, pool) as both:
        yield both


@pytest.fixture
def two_cards(both: Both) -> Both:
    """A pool of two cards with 24 and 48 GiB; processes a, b and c listen, d is the daemon."""
    both.stage()
    return both
