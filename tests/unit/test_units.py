"""Durations and sizes as users write them."""

from __future__ import annotations

import time

import pytest

from gpulockd.errors import ConfigError, ImpossibleRequest
from gpulockd.units import parse_duration_s, parse_memory_mib


@pytest.mark.parametrize(
    ("said", "seconds"), [("250ms", 0.25), ("5m", 300.0), ("1h30m", 5400.0), (" 2h ", 7200.0), ("7", 7.0), (0.5, 0.5)]
)
def test_a_duration_is_read_as_people_write_it(said: str | float, seconds: float) -> None:
    """The same words everywhere: file, environment, command line, API."""
    assert parse_duration_s(said) == pytest.approx(seconds)


@pytest.mark.parametrize("said", ["", "5 minutes", "-1s", "nan", "inf", "1e999", "m5", True])
def test_what_is_no_duration_is_refused(said: str | bool) -> None:
    """A typo must not become a limit."""
    with pytest.raises(ConfigError):
        parse_duration_s(said)


def test_a_text_of_digits_costs_nothing() -> None:
    """Any local user may say one; at 20,000 digits the pattern alone stopped a daemon for half a minute."""
    began = time.process_time()
    with pytest.raises(ConfigError):
        parse_duration_s("1" * 1_000_000)
    with pytest.raises(ImpossibleRequest):
        parse_memory_mib("1" * 1_000_000)
    assert time.process_time() - began < 1.0


def test_a_few_mib_must_be_said_with_their_unit() -> None:
    """Who writes memory=8 means 8 GiB, and would share the card with everybody."""
    assert parse_memory_mib("8MiB") == parse_memory_mib(64) == parse_memory_mib("64") == 256
    assert parse_memory_mib(8192) == parse_memory_mib("8GiB") == 8192
    for said in (8, "8", 0.5, " 63 "):
        with pytest.raises(ImpossibleRequest, match=r"memory=.* means [\d.]+ MiB; write '[\d.]+GiB'"):
            parse_memory_mib(said)
    with pytest.raises(ImpossibleRequest, match="--memory 8 means 8 MiB; write '8GiB'"):
        parse_memory_mib("8", "--memory")
