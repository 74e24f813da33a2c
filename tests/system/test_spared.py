"""What is of no run although it descends from a holder: the store that a daemon before this one has left."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from gpulockd.daemon import fdstore
from gpulockd.daemon.kept import Kept
from gpulockd.daemon.opening import open_guard
from gpulockd.hardware.processes.identity import identify
from tests.states import until


async def test_the_store_of_the_daemon_before_is_ended_with_no_run(tmp_path: Path) -> None:
    """A daemon that was started in a shell that holds now has its store there; the queue of all would go with it."""
    told = tmp_path / "pids"
    body = f"sleep 60 & sleep 60 & jobs -p | xargs echo $$ > {told}.new; mv {told}.new {told}; wait"
    subprocess.run(["sh", "-c", 'setsid bash -c "$0" &', body], check=True)  # what descends from us is spared anyway
    await until(told.exists)
    pids = [int(word) for word in told.read_text().split()]
    try:
        holder, store, other = (identify(pid) for pid in pids)
        assert holder is not None
        assert store is not None
        with open_guard(str(tmp_path), "p", Kept(fdstore.receive()), store.pid) as guard:
            guard.runs.hold("lease", holder)
            await guard.runs.scan()
            assert guard.runs.members("lease") == {holder, other}
    finally:
        for pid in pids:
            os.kill(pid, 9)
