"""What stands on the fleet's list of pools and is no pool's name must end nobody."""

from __future__ import annotations

import logging

import pytest

from gpulockd.ledger import pools


def test_names_that_can_be_no_pool_are_passed_over_and_told_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One SADD of anybody must not end all daemons of the fleet."""
    monkeypatch.setattr(pools, "_told", set())  # another test of this process may have met some of them
    found = [b"b", b"\xff\xfe", b"a.b-c_1", b"", b"fleet", b"two words", b"x" * 65, "ü".encode(), b"a"]
    with caplog.at_level(logging.WARNING, "gpulockd"):
        assert pools.usable(found) == ["a", "a.b-c_1", "b"]
        told = len(caplog.records)
        assert told == 6 and "doctor" in caplog.text
        assert pools.usable(found) == ["a", "a.b-c_1", "b"]
    assert len(caplog.records) == told


def test_a_list_of_thousands_does_not_fill_a_log(caplog: pytest.LogCaptureFixture) -> None:
    """Whoever can write there once can write there often."""
    with caplog.at_level(logging.WARNING, "gpulockd"):
        assert pools.usable(b"no/%d" % i for i in range(1000)) == []
    assert len(caplog.records) <= pools.MOST_TOLD
