"""The page about Celery says what works: its application is written to a file, its worker started, its calls made."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.daemons import ROOT
from tests.servers import Server
from tests.system.celery_shop import RESULT_WITHIN_S, open_shop

pytestmark = pytest.mark.timeout(300)  # a busy machine takes seconds for each start of Python


def blocks(kind: str) -> list[str]:
    """The page's blocks of code of that kind, in their order."""
    return re.findall(rf"```{kind}\n(.*?)```", (ROOT / "docs/celery.md").read_text(), re.DOTALL)


def test_what_the_page_shows_runs(valkey_server: Server, tmp_path: Path) -> None:
    """Whoever copies it line by line must get what it says."""
    pytest.importorskip("celery")
    application, calls = blocks("python")
    (_, start) = blocks("sh")
    (tmp_path / "tasks.py").write_text(application)
    waits = "\nprint([r.get(timeout=60) for r in results])\n"
    said = re.sub(r"^(\w+\.(?:apply_async|send_task|delay)\(.*\))$", r"results.append(\1)", calls, flags=re.MULTILINE)
    (tmp_path / "calls.py").write_text("results = []\n" + said + waits)
    with open_shop(valkey_server) as shop:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        env = shop.env | {"BROKER_URL": shop.env["CELERY_BROKER"], "PATH": path, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
        with (tmp_path / "log").open("wb") as log:
            worker = subprocess.Popen(shlex.split(start), cwd=tmp_path, env=env, stdout=log, stderr=log)
        try:
            command = [sys.executable, "calls.py"]
            done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=90)
            assert done.stdout.strip() == "['a.wav', 'b.wav', 'thumbnail of c.png', 'd.wav']", (
                done.stderr + (tmp_path / "log").read_text()
            )
        finally:
            worker.terminate()
            worker.wait(RESULT_WITHIN_S)
