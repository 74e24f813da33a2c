"""The copy of the fleet's configuration that a host keeps."""

from __future__ import annotations

from pathlib import Path

from gpulockd.daemon.configkept import FILE, ConfigKept, KeptFile
from gpulockd.daemon.plan import name_of

HERE, THERE = "redis://one:6379/0", "redis://two:6379/0"


async def test_what_was_kept_of_a_store_is_read_again_for_it(tmp_path: Path) -> None:
    """It is what a store that has lost its data gets back."""
    kept = ConfigKept(current=3, live={"all": {"gpu_lock": {"poll_interval": 0.5}}})
    await KeptFile(str(tmp_path), HERE).keep(kept)
    found = KeptFile(str(tmp_path), HERE).value
    assert found is not None
    assert (found.current, found.live, found.store) == (3, kept.live, HERE)


async def test_a_daemon_that_moves_to_another_fleet_brings_nothing_along(tmp_path: Path) -> None:
    """Its copy would set a fleet that has just begun to the configuration of another; nor may it go by it itself."""
    await KeptFile(str(tmp_path), HERE).keep(ConfigKept(current=3))
    assert KeptFile(str(tmp_path), THERE).value is None
    assert KeptFile(str(tmp_path), HERE).value is None, "it is not taken up again after the others went on"
    assert (tmp_path / f"{FILE}.of-another-store").exists(), "a person may still want it"


def test_a_stores_name_has_no_secret() -> None:
    """It stands in a file."""
    assert "pass" not in name_of("redis://user:pass@one:6379/0?password=pass")
    assert name_of(None) == "embedded"
