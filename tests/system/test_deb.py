"""The Debian package: built from this tree, looked through, and installed for real over a copy of this host."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.packages import ROOT, UNREACHABLE, built

INSIDE = """
set -ex
dpkg -i /package/gpulockd.deb
gpulockd version
gpulockd install-service --dry-run >/dev/null
id gpulockd
test "$(stat -c %U /run/gpulockd)" = gpulockd
test -L /etc/systemd/system/multi-user.target.wants/gpulockd.service
test -L /etc/systemd/system/timers.target.wants/gpulockd-backup.timer
dpkg -i /package/gpulockd.deb
dpkg -r gpulockd
test ! -e /usr/lib/gpulockd
dpkg -P gpulockd
test ! -e /etc/gpulockd
echo all of it
"""

OVER_THIS_HOST = """
set -e
mount -t tmpfs tmpfs "$1/over"
mkdir "$1/over/upper" "$1/over/work" "$1/over/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/over/upper,workdir=$1/over/work" "$1/over/root"
exec systemd-nspawn --quiet --directory="$1/over/root" --register=no --keep-unit --link-journal=no --private-network \
    --pipe --bind-ro="$1/package:/package" sh -c "$2"
"""

pytestmark = [pytest.mark.slow, pytest.mark.system, pytest.mark.timeout(900)]  # a package index may be slow


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package, packed quickly."""
    if shutil.which("dpkg-deb") is None or not os.access("/usr/bin/python3", os.X_OK):
        pytest.skip("no dpkg-deb or no /usr/bin/python3")
    if subprocess.run(["/usr/bin/python3", "-c", "import ensurepip, venv"], capture_output=True).returncode:
        pytest.skip("no python3-venv (apt-get install python3-venv)")
    folder = tmp_path_factory.mktemp("deb")
    wheel = built(folder, "wheel")
    done = subprocess.run(
        [str(ROOT / "packaging/deb/build"), str(wheel)],
        env={"PATH": os.environ["PATH"], "DEB_TO": str(folder), "DEB_PACKED": "-Zgzip", **_index()},
        capture_output=True,
        text=True,
        timeout=800,
    )
    if done.returncode and any(word in done.stderr for word in UNREACHABLE):
        pytest.skip(f"no package index is reached: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


def _index() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("PIP_")}


def test_it_has_the_units_the_manual_and_an_environment_of_its_own(package: Path) -> None:
    """What is forgotten here is missed on a host that has no pip."""
    done = subprocess.run(["dpkg-deb", "--contents", package], capture_output=True, text=True, check=True)
    names = {line.split()[5].removeprefix("./") for line in done.stdout.splitlines()}
    units = [*(ROOT / "systemd").glob("*.service"), *(ROOT / "systemd").glob("*.socket")]
    assert {f"usr/lib/systemd/system/{unit.name}" for unit in units} <= names
    assert {"usr/bin/gpulockd", "usr/share/man/man1/gpulockd.1.gz", "usr/lib/sysusers.d/gpulockd.conf"} <= names
    assert any(name.endswith("site-packages/gpulockd/ledger/lua/request.lua") for name in names)
    assert any(name.endswith("/valkey-server") for name in names)
    assert not [name for name in names if "__pycache__" in name]


def test_what_it_installs_runs_from_where_it_was_put(package: Path, tmp_path: Path) -> None:
    """Paths of the build would be found nowhere on another host."""
    subprocess.run(["dpkg-deb", "--extract", package, tmp_path], check=True)
    program = tmp_path / "usr/lib/gpulockd/bin/gpulockd"
    assert program.read_text().startswith("#!/usr/lib/gpulockd/bin/python3\n")
    python = tmp_path / "usr/lib/gpulockd/bin/python3"
    code = "import gpulockd.daemon.serve, gpulockd.web, sys; print(gpulockd.__file__)"
    done = subprocess.run([python, "-c", code], env={}, cwd="/", capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith(str(tmp_path)), done.stderr


def test_it_installs_upgrades_and_goes_without_a_trace(package: Path, tmp_path: Path) -> None:
    """The scripts of a package run as root on other people's machines."""
    if os.getuid() != 0 or shutil.which("systemd-nspawn") is None:
        pytest.skip("not root, or no systemd-nspawn (apt-get install systemd-container)")
    (tmp_path / "over").mkdir()
    (tmp_path / "package").mkdir()
    shutil.copy(package, tmp_path / "package/gpulockd.deb")
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", OVER_THIS_HOST, "sh", str(tmp_path), INSIDE],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
    )
    if "+ dpkg -i" not in done.stderr:
        pytest.skip(f"no throw-away copy of this host: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0 and done.stdout.endswith("all of it\n"), done.stdout + done.stderr


def test_the_manual_page_is_one(tmp_path: Path) -> None:
    """A page that groff complains about is shown with holes."""
    if shutil.which("groff") is None:
        pytest.skip("no groff (apt-get install groff-base)")
    page = tmp_path / "gpulockd.1"
    subprocess.run([sys.executable, str(ROOT / "scripts/reference.py"), "--man", str(page)], check=True)
    done = subprocess.run(
        ["groff", "-man", "-Tutf8", "-ww", "-z", str(page)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
