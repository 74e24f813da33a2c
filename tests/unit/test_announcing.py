"""What the daemon says of the address that it listens on, and of another one that programs find before it."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from gpulockd.daemon import folders
from gpulockd.daemon.announcing import warn_of_clear, warn_of_other


@pytest.fixture
def base(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's runtime directory, short, since sockets lie in it."""
    made = Path(tempfile.mkdtemp(prefix="gld-", dir="/tmp"))
    monkeypatch.delenv("GPULOCKD_SOCKET", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(made))
    yield made
    shutil.rmtree(made)


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


def test_a_daemon_that_programs_do_not_find_says_so_and_how_they_do(base: Path) -> None:
    """Who has started a second one thinks that programs come to it, and they go to the first."""
    (base / "gpulockd").mkdir()
    usual = folders.resolve(state_dir=str(base))
    own = folders.resolve(str(base / "own"), str(base))
    with socket.socket(socket.AF_UNIX) as first, capture_logs() as said:
        first.bind(usual.api_socket)
        first.listen()
        warn_of_other(usual)
        assert not said
        warn_of_other(own)
    assert [line["event"] for line in said] == ["daemon.not_found_first"]
    assert usual.runtime in said[0]["message"] and f"GPULOCKD_SOCKET={own.api_socket}" in said[0]["message"]
    os.unlink(usual.api_socket)
    with capture_logs() as said:
        warn_of_other(own)
    assert not [line for line in said if usual.runtime in line["message"]]
