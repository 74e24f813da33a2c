"""What a process that has said goodbye leaves in its other loops."""

from __future__ import annotations

import logging

import pytest
import redis

from gpulockd import gpu_lock
from gpulockd.client import process
from tests.pools import client_here, offer, simulated
from tests.servers import Server
from tests.states import until_blocking


def connections_of(server: Server, pool: str) -> list[str]:
    """The subscriptions to sessions of a pool, and nothing of other tests'."""
    with redis.Redis.from_url(server.url) as raw:
        return [channel.decode() for channel in raw.pubsub_channels(f"*{{{pool}}}*")]


def test_a_goodbye_hangs_up_the_portals_line_too(server: Server, pool: str, caplog: pytest.LogCaptureFixture) -> None:
    """A listener of an ended session waits for echoes that never come, and says so for ever."""
    offer(server, pool, simulated(1))
    with client_here(server.url, pool), caplog.at_level(logging.INFO, "gpulockd"):
        with gpu_lock():
            assert connections_of(server, pool)
        process.say_goodbye()
        until_blocking(lambda: not connections_of(server, pool))
        with gpu_lock(max_wait_time=20) as again:
            assert again.token
        assert "notifications from Redis" not in caplog.text
