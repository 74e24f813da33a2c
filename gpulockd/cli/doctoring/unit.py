"""The unit of systemd: is it installed, will it start at boot, has it failed, how often was it restarted?"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping

from gpulockd.cli.doctoring.finding import Finding, Host, fail, ok, warn

CHECK = "unit"
UNIT = "gpulockd.service"
PROPERTIES = ("LoadState", "ActiveState", "SubState", "UnitFileState", "NRestarts", "Result")
ASK_WITHIN_S = 5.0
INSTALL = "sudo gpulockd install-service"


def look(host: Host) -> Iterator[Finding]:
    """Say how the unit is; on a host without systemd there is nothing to say."""
    if not os.path.isdir("/run/systemd/system") or shutil.which("systemctl") is None:
        yield ok(CHECK, "systemd does not run here, so there is no unit to look at")
        return
    system, user = shown(()), shown(("--user",))
    if user.get("LoadState") == "loaded" and system.get("LoadState") != "loaded":
        yield from judge(user, "--user ", runs=bool(host.hello))
    else:
        yield from judge(system, "", runs=bool(host.hello))


def shown(how: tuple[str, ...]) -> dict[str, str]:
    """Return what systemd says of the unit, nothing if it cannot be asked."""
    command = ["systemctl", *how, "show", UNIT, "-p", ",".join(PROPERTIES)]
    try:
        said = subprocess.run(
            command, capture_output=True, text=True, timeout=ASK_WITHIN_S, stdin=subprocess.DEVNULL, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return dict(line.partition("=")[::2] for line in said.stdout.splitlines() if "=" in line)


def judge(unit: Mapping[str, str], how: str, *, runs: bool) -> Iterator[Finding]:
    """Say how a unit is.

    :param how: what goes between `systemctl` and its verb
    :param runs: whether a daemon answers here, whoever has started it
    """
    if not unit:
        yield warn(CHECK, "systemd does not answer", "systemctl status gpulockd says why")
        return
    if unit.get("LoadState") != "loaded":
        state = unit.get("LoadState", "not-found")
        text = (
            f"{UNIT} is {'not installed' if state == 'not-found' else state}: nobody starts the daemon after a reboot"
        )
        yield warn(CHECK, text, INSTALL if state == "not-found" else f"systemctl {how}cat {UNIT}")
        return
    journal = f"journalctl {how}-u gpulockd -e"
    active = unit.get("ActiveState")
    if active == "failed":
        text = f"{UNIT} has failed ({unit.get('Result')})"
        yield fail(CHECK, text, f"{journal} says why; then systemctl {how}restart gpulockd")
    elif active == "activating":
        text = f"{UNIT} is {active} ({unit.get('SubState')}) and does not serve yet"
        yield fail(CHECK, text, f"wait; if it stays so, {journal} says why")
    elif active != "active":
        text = f"{UNIT} is {active} ({unit.get('SubState')})"
        if runs:
            yield warn(CHECK, f"{text}, but a daemon runs that was started by hand", f"systemctl {how}start gpulockd")
        else:
            yield fail(CHECK, text, f"systemctl {how}start gpulockd")
    restarts = unit.get("NRestarts", "0")
    if restarts not in ("", "0"):
        times = "once" if restarts == "1" else f"{restarts} times"
        yield warn(CHECK, f"{UNIT} was restarted {times} because it had ended", f"{journal} says why")
    if unit.get("UnitFileState") not in ("enabled", "enabled-runtime", "static", "generated"):
        yield warn(CHECK, f"{UNIT} does not start at boot", f"systemctl {how}enable gpulockd")
    elif active == "active" and restarts in ("", "0"):
        yield ok(CHECK, f"{UNIT} is installed, enabled and active")
