"""Who else means the same real cards."""

from __future__ import annotations

import secrets
import subprocess
import sys

import pytest

from gpulockd.daemon import neighbours
from gpulockd.errors import ConfigError
from tests.pools import daemon_here

CLAIMS = """
import sys, time
from gpulockd.daemon.neighbours import claim
claim([sys.argv[1]])
print("claimed", flush=True)
time.sleep(60)
"""


def test_a_real_card_is_offered_by_one_daemon_of_the_host_whatever_store_it_has() -> None:
    """Two daemons with two stores would give the same card to two programs; a killed one must not stand in the way."""
    uuid = f"GPU-of-this-test-{secrets.token_hex(6)}"  # another run on this host has its own
    with subprocess.Popen([sys.executable, "-c", CLAIMS, uuid], stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout is not None
            other.stdout.readline()
            with pytest.raises(ConfigError, match="another daemon of this host"):
                neighbours.claim([uuid])
        finally:
            other.kill()
    with daemon_here():
        neighbours.claim([uuid])
        neighbours.claim([uuid])
