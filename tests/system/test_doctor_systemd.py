"""What the doctor says of the unit on a machine that real systemd runs."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.system import machine
from tests.system.machine import PROGRAM, Machine

pytestmark = [
    pytest.mark.system,
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(machine.lacking() is not None, reason=machine.lacking() or ""),
]

BROKEN = "[Service]\nExecStart=\nExecStart=/bin/false\nRestart=no\n"


def _said(box: Machine) -> list[dict[str, Any]]:
    done = box.run(PROGRAM, "doctor", "--json", check=False)
    findings: list[dict[str, Any]] = json.loads(done.stdout)["findings"]
    return [one for one in findings if one["check"] == "unit"]


def test_a_unit_is_missing_then_well_then_not_enabled_then_failed() -> None:
    """One machine through what happens to a unit in its life."""
    with machine.booted() as box:
        assert "not installed" in _said(box)[0]["what"]
        box.run(PROGRAM, "install-service", "--program", PROGRAM)
        assert [(one["level"], one["what"]) for one in _said(box)] == [
            ("ok", "gpulockd.service is installed, enabled and active")
        ]
        box.run("systemctl", "kill", "-s", "KILL", "--kill-whom=main", "gpulockd")
        box.until(lambda: box.show("gpulockd", "NRestarts") == "1" and box.show("gpulockd", "ActiveState") == "active")
        assert "was restarted once" in _said(box)[0]["what"]
        box.run("systemctl", "disable", "gpulockd")
        assert any("does not start at boot" in one["what"] for one in _said(box))
        box.write("/etc/systemd/system/gpulockd.service.d/broken.conf", BROKEN)
        box.run("systemctl", "daemon-reload")
        box.run("systemctl", "restart", "gpulockd", check=False)
        box.until(lambda: box.show("gpulockd", "ActiveState") == "failed")
        failed = _said(box)[0]
        # Its sockets may start it once more, for whom the doctor asks.
        assert failed["level"] == "fail" and "journalctl" in failed["remedy"], failed
