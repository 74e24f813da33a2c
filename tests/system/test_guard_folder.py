"""Programs that see the daemon's folder otherwise than the daemon: mounted elsewhere, or of another user."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.daemons import running_daemon
from tests.system.commands import clean_env
from tests.system.holders import holders

ROOT_ONLY = pytest.mark.skipif(os.getuid() != 0, reason="needs root for namespaces and other users")
CONFIG = {"session": {"ttl": 10, "keepalive": 1, "rpc_deadline": 1, "margin": 0.5, "claim_window": 2}}

RAN = "import gpulockd\nwith gpulockd.gpu_lock('gpu_lock:0') as lease: print('ran', lease.gpu.index)"
ELSEWHERE = 'mount --make-rprivate / && mount --bind "$0" "$1" && mount -t tmpfs none "$0" && shift && exec "$@"'
"""The folder $0 is at $1 only, as in a container that mounts it at another place."""


@ROOT_ONLY
async def test_the_folder_may_be_mounted_at_another_place(tmp_path: Path) -> None:
    """The daemon names its store by the path on the host, which a container need not have."""
    async with running_daemon(config=CONFIG) as daemon:
        mounted = tmp_path / "m"
        mounted.mkdir()
        with holders(tmp_path / "h", daemon, GPULOCKD_SOCKET=str(mounted)) as start:
            prefix = ("unshare", "--mount", "sh", "-c", ELSEWHERE, str(daemon.runtime), str(mounted))
            first = start.start("first", prefix=prefix)
            await first.is_in()
            second = start.start("second", "sync", prefix=prefix)
            first.leave()
            await second.is_in()
            second.leave()
            await second.is_out()
        run = ["run", "--gpu", "0", "--", sys.executable, "-c", RAN]
        inside = [*prefix, sys.executable, "-m", "gpulockd", *run]
        env = clean_env(GPULOCKD_SOCKET=str(mounted))
        said = subprocess.run(inside, env=env, capture_output=True, text=True, timeout=60, check=False)
        assert (said.returncode, said.stdout) == (0, "ran 0\n"), said


@ROOT_ONLY
async def test_a_user_who_may_not_open_the_store_is_told_at_once(tmp_path: Path) -> None:
    """Deadlines spent on a door that stays closed tell a user nothing."""
    async with running_daemon(config=CONFIG) as daemon:
        for folder in (daemon.runtime.parent, daemon.runtime):
            folder.chmod(0o755)
        program = "import os; os.setuid(65534); import gpulockd.client.finding as f; f.find_store()"
        env = clean_env(GPULOCKD_SOCKET=daemon.socket)
        asks = [sys.executable, "-c", f"import grp, gpulockd.client.finding; {program}"]
        said = subprocess.run(asks, env=env, capture_output=True, text=True, timeout=60, check=False)
        assert "ConfigError" in said.stderr
        assert "run as root; " in said.stderr and "group" not in said.stderr, "its store is for no group"
        store = daemon.store_url.removeprefix("unix://")
        os.chown(store, 0, 4243)
        os.chmod(store, 0o660)
        said = subprocess.run(asks, env=env, capture_output=True, text=True, timeout=60, check=False)
        assert "join the group 4243" in said.stderr and "docker: --group-add 4243" in said.stderr
