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
    moved = KeptFile(str(tmp_path), THERE)
    assert moved.value is None
    await moved.keep(ConfigKept(current=1))
    assert KeptFile(str(tmp_path), HERE).value is None, "it is not taken up again after the others went on"
    assert (tmp_path / f"{FILE}.of-another-store").exists(), "a person may still want it"


async def test_a_mistyped_store_leaves_the_kept_configuration_where_it_is(tmp_path: Path) -> None:
    """A start that fails must change nothing: the next one, with the right URL, goes by the copy again."""
    await KeptFile(str(tmp_path), HERE).keep(ConfigKept(current=3))
    assert KeptFile(str(tmp_path), THERE).value is None
    found = KeptFile(str(tmp_path), HERE).value
    assert found is not None
    assert found.current == 3


def test_a_stores_name_has_no_secret() -> None:
    """It stands in a file."""
    assert "pass" not in name_of("redis://user:pass@one:6379/0?password=pass")
    assert name_of(None) == "embedded"
