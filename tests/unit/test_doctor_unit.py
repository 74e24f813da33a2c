"""What the doctor says of systemd's unit, from what `systemctl show` says of it."""

from __future__ import annotations

import pytest

from gpulockd.cli.doctoring.finding import Finding
from gpulockd.cli.doctoring.unit import judge

WELL = {
    "LoadState": "loaded",
    "ActiveState": "active",
    "SubState": "running",
    "UnitFileState": "enabled",
    "NRestarts": "0",
    "Result": "success",
}


def said(*, runs: bool = True, how: str = "", **other: str) -> list[Finding]:
    """What is said of a unit that differs in this from one that is well."""
    return list(judge(WELL | other, how, runs=runs))


def test_a_unit_that_is_well_is_one_line() -> None:
    """Nothing is to be done."""
    assert [one.level for one in said()] == ["ok"]


@pytest.mark.parametrize(
    ("other", "level", "what", "remedy"),
    [
        ({"LoadState": "not-found"}, "warn", "not installed", "install-service"),
        ({"LoadState": "bad-setting"}, "warn", "bad-setting", "systemctl cat"),
        ({"ActiveState": "failed", "Result": "exit-code"}, "fail", "has failed (exit-code)", "journalctl"),
        ({"ActiveState": "activating", "SubState": "auto-restart"}, "fail", "does not serve yet", "journalctl"),
        ({"ActiveState": "inactive", "SubState": "dead"}, "warn", "started by hand", "systemctl start"),
        ({"NRestarts": "3"}, "warn", "restarted 3 times", "journalctl"),
        ({"UnitFileState": "disabled"}, "warn", "does not start at boot", "systemctl enable"),
    ],
)
def test_each_trouble_has_its_remedy(other: dict[str, str], level: str, what: str, remedy: str) -> None:
    """The line is all that many will read."""
    first = next(judge(WELL | other, "", runs=True))
    assert first.level == level
    assert what in first.what and remedy in first.remedy


def test_a_unit_that_is_stopped_is_a_failure_where_no_daemon_runs() -> None:
    """Nobody gives out GPUs then."""
    assert said(ActiveState="inactive", SubState="dead", runs=False)[0].level == "fail"


def test_a_users_unit_is_told_by_its_own_commands() -> None:
    """The system's systemctl knows nothing of it."""
    assert "systemctl --user enable" in said(how="--user ", UnitFileState="disabled")[0].remedy


def test_a_systemd_that_does_not_answer_is_said() -> None:
    """In a broken container it hangs."""
    assert [one.level for one in judge({}, "", runs=False)] == ["warn"]
