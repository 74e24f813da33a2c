"""Whose numbers of processes mean the same as ours."""

from __future__ import annotations

import os
import subprocess
import sys

import psutil
import pytest

from gpulockd.web.unendable import counts_as_we_do
from tests.states import until_blocking

ASK = "import sys; from gpulockd.web.unendable import counts_as_we_do as ask; print(ask(int(sys.argv[1])))"


def test_processes_of_this_namespace_count_as_we_do_and_gone_ones_do_not() -> None:
    """A pid that a peer names is looked up here."""
    assert counts_as_we_do(os.getpid())
    gone = subprocess.Popen(["true"])
    gone.wait()
    assert not counts_as_we_do(gone.pid)


@pytest.mark.skipif(os.getuid() != 0, reason="needs root for a pid namespace of its own")
def test_a_process_of_a_namespace_below_does_not_whoever_asks() -> None:
    """Its "7" is another process here, which a daemon without root's rights must see too."""
    outer = subprocess.Popen(["unshare", "--pid", "--fork", "sleep", "60"])
    try:
        until_blocking(lambda: bool(psutil.Process(outer.pid).children()))
        (inner,) = psutil.Process(outer.pid).children()
        assert not counts_as_we_do(inner.pid)
        assert counts_as_we_do(outer.pid)
        bare = ("setpriv", "--bounding-set", "-all", "--inh-caps", "-all", sys.executable, "-c", ASK, str(inner.pid))
        asked = subprocess.run(bare, capture_output=True, text=True, timeout=60)
        assert asked.stdout.strip() == "False", asked.stderr
    finally:
        for child in psutil.Process(outer.pid).children(recursive=True):
            child.kill()
        outer.kill()
        outer.wait()
