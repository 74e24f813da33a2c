"""`gpulockd drill`: real faults on a private daemon, a drill that can fail, and nothing left behind."""

from __future__ import annotations

import json
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from gpulockd.settings import settings_from
from gpulockd.trial.drill.holder import witnessed
from gpulockd.trial.drill.site import KEY, Site
from gpulockd.trial.drill.terms import DEFAULTS, QUICK
from tests.states import until_blocking
from tests.system.commands import clean_env, command

WITHIN_S = 240.0
pytestmark = pytest.mark.timeout(600)

SLACK = "20s"
"""The machine of the tests may be busy: what is late by less is no fault of the lock."""

FAULTS = (
    "a holder is killed",
    "a holder is stopped beyond its hard limit",
    "the daemon is killed under a holder",
    "the daemon is killed, and then a holder",
    "the store is killed",
    "the store cannot be reached",
    "the store is emptied",
    "a configuration is rolled back",
)


@pytest.fixture
def own() -> Iterator[dict[str, str]]:
    """The environment of a drill whose folders can be told from those of others."""
    folder = Path(tempfile.mkdtemp(prefix="gldr-", dir="/tmp"))
    yield clean_env(TMPDIR=str(folder), GPULOCKD_SOCKET=str(folder / "no.sock"))
    until_blocking(lambda: not _processes_of(folder))
    subprocess.run(["rm", "-rf", str(folder)], check=True)


def _processes_of(folder: Path) -> list[int]:
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        with suppress(psutil.Error):
            if any(str(folder) in word for word in process.info["cmdline"] or ()):
                found.append(process.pid)
    return found


def test_every_promise_is_kept_and_nothing_is_left(own: dict[str, str]) -> None:
    """A recovery that was never tried is a hope. The running daemon is not needed, so it is not touched."""
    done = subprocess.run(
        command("drill", "--quick", "--slack", SLACK, "--json"),
        env=own,
        capture_output=True,
        text=True,
        timeout=WITHIN_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert tuple(one["fault"] for one in report["measured"]) == FAULTS
    assert report["ok"] and report["troubles"] == [] and report["untried"] == []
    assert all(one["took_s"] <= one["limit_s"] for one in report["measured"])
    folder = Path(own["TMPDIR"])
    assert list(folder.iterdir()) == [] and _processes_of(folder) == []


def test_a_promise_that_is_not_kept_ends_with_1(own: dict[str, str]) -> None:
    """A drill that cannot fail shows nothing: the daemon is stopped during the first measure."""
    with subprocess.Popen(
        command("drill", "--quick", "--plant"), env=own, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as drill:
        shown, _ = drill.communicate(timeout=WITHIN_S)
    assert drill.returncode == 1
    first = next(line for line in shown.splitlines() if line.startswith(FAULTS[0]))
    assert "NOT KEPT" in first and "too late" in first


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_drill_that_is_ended_leaves_no_process(own: dict[str, str], number: int) -> None:
    """It has a daemon, a store and programs, one of them perhaps stopped."""
    with subprocess.Popen(
        command("drill", "--quick"), env=own, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as drill:
        assert drill.stderr is not None
        for line in drill.stderr:
            if FAULTS[1] in line:
                break
        drill.send_signal(number)
        code = drill.wait(60)
    assert code == {signal.SIGTERM: 1, signal.SIGKILL: -9}[signal.Signals(number)]
    until_blocking(lambda: not _processes_of(Path(own["TMPDIR"])))


def test_the_witnesses_see_two_at_once_and_a_token_that_does_not_grow(tmp_path: Path) -> None:
    """The kernel's lock says it, whatever the ledger believes."""
    with witnessed(str(tmp_path), KEY) as first, witnessed(str(tmp_path), KEY) as second:
        assert (first, second) == (True, False)
    with witnessed(str(tmp_path), KEY) as again:
        assert again
    site = Site({})
    site.folder.rmdir()
    site.note({"alone": True, "key": KEY, "token": 7})
    assert site.troubles == []
    site.note({"alone": False, "key": KEY, "token": 7})
    assert len(site.troubles) == 2


def test_its_times_are_ones_that_a_daemon_takes() -> None:
    """The promises follow from them: two keepalives and a round trip, a keepalive and a deadline."""
    for terms in (DEFAULTS, QUICK):
        assert settings_from(terms.tree).session.ttl == terms.ttl
    assert (DEFAULTS.woken, DEFAULTS.told_anew) == (12.0, 7.0)
    session = settings_from({}).session
    assert (DEFAULTS.ttl, DEFAULTS.keepalive, DEFAULTS.rpc_deadline) == (
        session.ttl,
        session.keepalive,
        session.rpc_deadline,
    )
