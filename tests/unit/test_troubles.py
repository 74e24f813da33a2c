"""What the servers of a cluster refuse with, as errors that a caller can act on."""

from __future__ import annotations

import pytest
from redis import exceptions as broken

from gpulockd.errors import ConfigError, GpuLockError, StoreUnavailable
from gpulockd.ledger.troubles import our_error
from gpulockd.ledger.wire.trouble import Moved, Refused


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        (
            Refused("CLUSTERDOWN The cluster is down"),
            "CLUSTERDOWN The cluster is down; a part of the cluster has no server",
        ),
        (broken.ClusterDownError("The cluster is down"), "CLUSTERDOWN The cluster is down; a part"),
        (broken.MasterDownError("Link with MASTER is down"), "CLUSTERDOWN Link with MASTER is down"),
        (Refused("TRYAGAIN Multiple keys request during rehashing of slot"), "keys are being moved to another server"),
        (broken.TryAgainError("Multiple keys request during rehashing of slot"), "keys are being moved"),
        (broken.MovedError("3999 10.0.0.2:7000"), "TRYAGAIN 3999 10.0.0.2:7000"),
        (Moved("another server of the cluster has its keys now"), "has its keys now"),
    ],
)
def test_what_ends_by_itself_is_waited_for(trouble: Exception, words: str) -> None:
    """redis-py cuts the code off an answer; a daemon that took it for a fault of its own ended itself."""
    ours = our_error(trouble, "redis+cluster://store")
    assert isinstance(ours, StoreUnavailable)
    assert words in str(ours)


@pytest.mark.parametrize(
    ("refusal", "words"),
    [
        ("MOVED 3999 10.0.0.2:7000", "it belongs to a cluster: write redis+cluster:// in the URL"),
        ("ERR This instance has cluster support disabled", "it is no cluster: write redis:// in the URL"),
    ],
)
def test_a_url_of_the_wrong_kind_says_which_is_right(refusal: str, words: str) -> None:
    """Waiting would not help there."""
    ours = our_error(Refused(refusal), "redis://store")
    assert isinstance(ours, GpuLockError)
    assert not isinstance(ours, StoreUnavailable | ConfigError)
    assert words in str(ours)
