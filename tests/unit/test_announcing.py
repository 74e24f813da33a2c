"""What the daemon says of the address that it listens on."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from gpulockd.daemon.announcing import warn_of_clear


@pytest.mark.parametrize(
    ("host", "encrypted", "warns"),
    [
        ("0.0.0.0", False, True),
        ("::", False, True),
        ("gpu-1.example", False, True),
        ("0.0.0.0", True, False),
        ("127.0.0.1", False, False),
        ("::1", False, False),
        ("localhost", False, False),
    ],
)
def test_an_address_that_others_reach_without_tls_is_warned_of(host: str, encrypted: bool, warns: bool) -> None:
    """The token would be anybody's who listens on the way."""
    with capture_logs() as said:
        warn_of_clear(host, 8788, encrypted=encrypted)
    assert [line["event"] for line in said] == ["web.in_clear"] * warns
    if warns:
        assert "without TLS" in said[0]["message"] and "web.tls" in said[0]["message"]
