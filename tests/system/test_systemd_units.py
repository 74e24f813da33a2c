"""The units as systemd reads them, and what `gpulockd install-service` writes; no service is started here."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
UNITS = ROOT / "systemd"
PROGRAM = "/opt/gpulockd/bin/gpulockd"

needs_analyze = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze (apt: systemd)")


def _install(prefix: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gpulockd", "install-service", "--prefix", str(prefix), "--program", PROGRAM]
    return subprocess.run([*command, *words], cwd=ROOT, capture_output=True, text=True, timeout=60)


def _exposure(folder: Path, *files: Path) -> float:
    """What systemd says of a unit with its drop-ins: 0 is safe, 10 is open."""
    unit = folder / "gpulockd-analysed.service"
    unit.write_text("\n".join(file.read_text() for file in files))
    said = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--no-pager", str(unit)], capture_output=True, text=True
    )
    assert "Invalid" not in said.stderr and "Unknown" not in said.stderr, said.stderr
    found = re.search(r"exposure level for \S+: ([\d.]+)", said.stdout)
    assert found is not None, said.stdout + said.stderr
    return float(found[1])


@needs_analyze
def test_with_unix_sockets_only_the_daemon_is_exposed_by_at_most_one_of_ten(tmp_path: Path) -> None:
    """It may signal every process of the host, so it must have nothing else."""
    assert _exposure(tmp_path, UNITS / "gpulockd.service") <= 1.0


@needs_analyze
def test_with_a_redis_over_tcp_the_daemon_is_exposed_by_at_most_1_7(tmp_path: Path) -> None:
    """The network costs; what it costs is bounded, also with the address of another host allowed."""
    own = tmp_path / "own.conf"
    own.write_text("[Service]\nIPAddressAllow=10.1.2.3\n")
    assert _exposure(tmp_path, UNITS / "gpulockd.service", UNITS / "tcp.conf") <= 1.7
    assert _exposure(tmp_path, UNITS / "gpulockd.service", UNITS / "tcp.conf", own) <= 1.7


@needs_analyze
def test_the_store_is_exposed_less_than_the_daemon(tmp_path: Path) -> None:
    """It holds no right and no device, and no network reaches it."""
    assert _exposure(tmp_path, UNITS / "gpulockd-store.service") <= 0.5


@needs_analyze
def test_a_backup_is_exposed_no_more_than_the_store(tmp_path: Path) -> None:
    """It reads all that the store has, and needs neither right nor network."""
    assert _exposure(tmp_path, UNITS / "gpulockd-backup.service") <= 0.5


@needs_analyze
@pytest.mark.parametrize("kind", ["system", "user"])
def test_systemd_finds_no_fault_in_the_installed_units(tmp_path: Path, kind: str) -> None:
    """A misspelt directive is passed over in silence, and the right it was to take away stays."""
    files = sorted((UNITS if kind == "system" else UNITS / "user").glob("gpulockd*.[st]*"))
    copies = []
    for file in files:
        if file.suffix in (".service", ".socket", ".timer"):
            copies.append(tmp_path / file.name)
            copies[-1].write_text(file.read_text().replace("/usr/bin/gpulockd", "/bin/true"))
    assert len(copies) == (8 if kind == "system" else 4)
    manager = ["--user"] if kind == "user" else []
    env = os.environ | {"XDG_RUNTIME_DIR": str(tmp_path), "SYSTEMD_LOG_LEVEL": "warning"}
    command = ["systemd-analyze", *manager, "--man=no", "verify", *map(str, copies)]
    said = subprocess.run(command, capture_output=True, text=True, env=env)
    ours = [line for line in said.stderr.splitlines() if "gpulockd" in line]
    assert said.returncode == 0 and not ours, said.stderr


def test_the_only_right_is_to_signal() -> None:
    """Each further capability is one that a fault in the daemon would hand out."""
    text = (UNITS / "gpulockd.service").read_text()
    assert re.findall(r"^(?:CapabilityBoundingSet|AmbientCapabilities)=(.*)$", text, re.MULTILINE) == ["CAP_KILL"] * 2
    assert "User=gpulockd" in text and "NoNewPrivileges=yes" in text
    assert "FileDescriptorStoreMax=" in text and "RuntimeDirectoryPreserve=yes" in text


def test_an_installation_says_each_file_and_a_second_one_changes_nothing(tmp_path: Path) -> None:
    """An administrator can read what was done to the machine."""
    done = _install(tmp_path)
    assert done.returncode == 0, done.stderr
    written = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert written == sorted(line.removeprefix(f"writing: {tmp_path}/") for line in done.stdout.splitlines()[:-1])
    assert "etc/systemd/system/gpulockd.service" in written and "etc/sysusers.d/gpulockd.conf" in written
    unit = (tmp_path / "etc/systemd/system/gpulockd.service").read_text()
    assert f"ExecStart={PROGRAM} serve" in unit and "/usr/bin/gpulockd" not in unit
    again = _install(tmp_path)
    assert again.returncode == 0 and "writing" not in again.stdout


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    """It is for those who want to look first."""
    done = _install(tmp_path, "--dry-run")
    assert done.returncode == 0 and "would write" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_redis_of_ones_own_is_a_credential_that_only_root_reads(tmp_path: Path) -> None:
    """The URL holds a password; neither the unit nor the environment shows it."""
    done = _install(tmp_path, "--redis", "rediss://:secret@10.0.0.7:6379/0")
    assert done.returncode == 0 and "secret" not in done.stdout
    kept = tmp_path / "etc/gpulockd/credentials/redis.url"
    assert kept.read_text() == "rediss://:secret@10.0.0.7:6379/0\n"
    assert (kept.stat().st_mode & 0o777, kept.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert (tmp_path / "etc/systemd/system/gpulockd.service.d/tcp.conf").exists()
    assert _install(tmp_path, "--redis", "http://10.0.0.7").returncode == 2


def test_removal_takes_the_units_and_leaves_the_secrets(tmp_path: Path) -> None:
    """What somebody has typed in cannot be had back."""
    _install(tmp_path, "--redis", "redis://10.0.0.7")
    done = _install(tmp_path, "--uninstall")
    assert done.returncode == 0, done.stderr
    left = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()]
    assert left == ["etc/gpulockd/credentials/redis.url"]


def test_a_program_that_the_service_cannot_see_is_refused(tmp_path: Path) -> None:
    """ProtectHome= hides homes: the unit would fail at its start, with a riddle."""
    command = [sys.executable, "-m", "gpulockd", "install-service", "--prefix", str(tmp_path)]
    done = subprocess.run([*command, "--program", "/home/me/bin/gpulockd"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "cannot see it" in done.stderr and "/opt/gpulockd" in done.stderr


STRANGER = """
import os
from gpulockd.cli.install_service import main
from gpulockd.cli.talk import CommandError
os.setgid(65534)
os.setuid(65534)
try:
    main([])
except CommandError as refused:
    print(refused.code, refused.hint)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="not root: cannot become another user")
def test_without_root_it_names_the_two_ways() -> None:
    """The first thing that most people type is the command without sudo."""
    said = subprocess.run([sys.executable, "-c", STRANGER], cwd=ROOT, capture_output=True, text=True)
    ways = "sudo gpulockd install-service, or for yourself: gpulockd install-service --user"
    assert said.stdout.strip() == f"4 {ways}", said.stderr
