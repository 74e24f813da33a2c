"""`gpulockd gpu drain|resume` as processes, against a real daemon."""

from __future__ import annotations

import json

from gpulockd.cli.talk import NEGATIVE, OK
from tests.daemons import running_daemon
from tests.system.commands import call


async def test_a_drained_gpu_takes_nobody_until_it_is_resumed() -> None:
    """An operator changes a card while the host goes on."""
    async with running_daemon(simulate=2) as daemon:
        said = call(daemon, "gpu", "drain", "0")
        assert said.returncode == OK, said.stderr
        assert "GPU 0 is drained" in said.stdout
        gpus = (await daemon.get("/api/v1/gpus")).json["gpus"]
        assert [gpu["state"] for gpu in gpus] == ["drained", "ready"]
        ran = call(daemon, "run", "-q", "--no-wait", "--", "sh", "-c", "echo $CUDA_VISIBLE_DEVICES")
        assert ran.stdout.strip() == gpus[1]["uuid"]
        busy = call(daemon, "run", "-q", "--no-wait", "--gpu", "0", "--", "true")
        assert busy.returncode == 75
        assert "GPU 0 is drained ('gpulockd gpu resume 0' ends that)" in busy.stderr
        assert "hint:" not in busy.stderr  # no waiting helps
        late = call(daemon, "run", "-q", "--wait", "100ms", "--gpu", "0", "--", "true")
        assert late.returncode == 124
        assert "'gpulockd gpu resume 0' ends that" in late.stderr
        assert "wait longer" not in late.stderr
        said = call(daemon, "gpu", "resume", gpus[0]["uuid"], "--json")
        assert json.loads(said.stdout) == {"key": "gpu_lock:0", "state": "ready", "was": "drained"}
        assert call(daemon, "run", "-q", "--no-wait", "--gpu", "0", "--", "true").returncode == OK
        assert call(daemon, "gpu", "resume", "0").stdout == "GPU 0 is in the pool, as before\n"


async def test_a_gpu_that_is_not_there_is_named() -> None:
    """The cure is the list of those that are."""
    async with running_daemon(simulate=1) as daemon:
        said = call(daemon, "gpu", "drain", "7")
        assert said.returncode == NEGATIVE
        assert "there is no GPU '7' here" in said.stderr
        assert call(daemon, "gpu", "paint", "0").returncode == 2
