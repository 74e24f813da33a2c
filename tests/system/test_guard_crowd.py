"""One user's crowd before the guard, and another's lease."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.daemons import Daemon, running_daemon

CROWD = """
import resource, socket, sys
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
ends = []
for _ in range(1000):
    end = socket.socket(socket.AF_UNIX)
    end.settimeout(0.2)
    try:
        end.connect(sys.argv[1])
    except OSError:
        pass
    ends.append(end)
print("here", flush=True)
sys.stdin.read()
"""

ASKS = """
import socket, sys
end = socket.socket(socket.AF_UNIX)
end.settimeout(50)
end.connect(sys.argv[1])
end.sendall(sys.argv[2].encode() + b"\\n")
print(end.makefile().readline(), flush=True)
"""


def python_with_descriptors(most: int, folder: Path) -> str:
    """A python whose processes may open only so many."""
    script = folder / "python"
    script.write_text(f'#!/bin/sh\nulimit -n {most}\nexec "{sys.executable}" "$@"\n')
    script.chmod(0o755)
    return str(script)


def open_to_all(daemon: Daemon) -> str:
    """Let every user reach the guard's socket, as in the system's folder; its path."""
    for folder in (daemon.runtime, daemon.runtime.parent):
        folder.chmod(0o755)
    return str(daemon.runtime / "guard.sock")


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to be two users")
async def test_a_thousand_connections_of_one_user_keep_no_other_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever may write to the socket must not be able to take it from the others."""
    python = sys.executable
    monkeypatch.setattr(sys, "executable", python_with_descriptors(512, tmp_path))
    async with running_daemon() as daemon:
        path = open_to_all(daemon)
        crowd = subprocess.Popen([python, "-c", CROWD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            assert crowd.stdout is not None
            assert crowd.stdout.readline() == "here\n"
            lease = {"id": "f" * 32, "token": round(time.time() * 1000) + 10**8, "gpus": ["gpu_lock:0"]}
            words = json.dumps({"verb": "admit", "session": "another", "lease": lease})
            asks = ["/usr/bin/env", "python3", "-I", "-S", "-c", ASKS, path, words]
            said = subprocess.run(asks, user=65534, capture_output=True, text=True, timeout=60, check=False)
            assert "admitted" in said.stdout, said
        finally:
            crowd.kill()
            crowd.communicate()
