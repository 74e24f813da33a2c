"""`gpulockd config …` and the rollback script as processes: what they print, their exit codes, what they load."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpulockd.cli import http, main
from gpulockd.cli.config import SUBCOMMANDS
from gpulockd.cli.configuring.telling import value_text, yaml_lines
from tests.daemons import STEADY, Daemon
from tests.system.commands import ROOT, call, clean_env, command, one_daemon
from tests.system.test_cli import HEAVY

pytestmark = pytest.mark.timeout(300)  # a busy machine takes seconds for each start of Python

SCRIPT = ROOT / "scripts/rollback_gpu_lock_config.sh"
SHORT = ("show", "history", "rollout")


@pytest.fixture(scope="module")
def running() -> Iterator[Daemon]:
    """A daemon whose file sets one value."""
    with one_daemon(config=STEADY | {"gpu_lock": {"max_wait_time": 900}}) as daemon:
        yield daemon


@pytest.fixture
def daemon(running: Daemon) -> Daemon:
    """That daemon with nothing set live."""
    with http.Daemon(running.socket) as asked:
        asked.ask("POST", "/api/v1/config", {"replace": True, "unvalidated": True})
    return running


def run(daemon: Daemon | None, words: tuple[str, ...], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run `gpulockd config …` to its end."""
    found = {"GPULOCKD_SOCKET": daemon.socket} if daemon is not None else {}
    return subprocess.run(
        command("config", *words),
        env=clean_env(**found | env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


def ok(daemon: Daemon | None, *words: str, **env: str) -> str:
    """What `gpulockd config …` prints when all is well."""
    done = run(daemon, words, env)
    assert done.returncode == 0, done.stderr
    return done.stdout


def said(daemon: Daemon, *words: str) -> Any:
    """What it prints as JSON."""
    return json.loads(ok(daemon, *words, "--json"))


def refused(daemon: Daemon | None, code: int, *words: str, **env: str) -> str:
    """What it says when it refuses with that exit code."""
    done = run(daemon, words, env)
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    return done.stderr


# Seeing.


def test_show_prints_a_file_that_says_the_same(daemon: Daemon, tmp_path: Path) -> None:
    """What is shown can be checked and kept."""
    text = ok(daemon, "show")
    assert text.startswith(f"# pool {daemon.pool}, revision ")
    assert "  max_wait_time: 900\n" in text
    copy = tmp_path / "shown.yml"
    copy.write_text(text)
    assert "can be used" in ok(None, "check", str(copy))
    assert ok(daemon, "show", "gpu_lock_monitor.heartbeat").endswith("heartbeat:\n    interval: 60\n    timeout: 300\n")


def test_show_origin_tells_which_layer_says_each_value(daemon: Daemon) -> None:
    """A person with three layers asks that first."""
    ok(daemon, "set", "gpu_lock.poll_interval=500ms")
    rows = {line.split()[0]: line.split()[1:] for line in ok(daemon, "show", "--origin").splitlines()}
    assert rows["gpu_lock.poll_interval"][:2] == ["0.5", "live"]
    assert rows["gpu_lock.max_wait_time"][:2] == ["900", "file"]
    assert "config.yml:1:" in rows["gpu_lock.max_wait_time"][2]
    assert rows["gpu_lock.lock_timeout"] == ["3600", "default", "default"]


def test_get_prints_one_value(daemon: Daemon) -> None:
    """For scripts."""
    assert ok(daemon, "get", "gpu_lock.max_wait_time") == "900\n"
    assert ok(daemon, "get", "web.writes") == "token\n"
    assert said(daemon, "get", "gpu_lock")["max_wait_time"] == 900
    for slip in ("gpu_lock.pol_interval", "gpu_lock.pol"):
        assert "did you mean 'gpu_lock.poll_interval'?" in refused(daemon, 1, "get", slip)


def test_values_read_as_yaml() -> None:
    """What looks like another type must be quoted."""
    assert [
        value_text(value) for value in (2.0, 0.5, True, None, "a b", "yes", "1.5", "x: y", "", "k:", ["a", 1.0])
    ] == [
        "2",
        "0.5",
        "true",
        "null",
        "a b",
        '"yes"',
        '"1.5"',
        '"x: y"',
        '""',
        '"k:"',
        "[a, 1]",
    ]
    assert list(yaml_lines({"a": {"b": 1, "c": {}}, "d": [{"e": 1}]})) == [
        "a:",
        "  b: 1",
        "  c: {}",
        "d:",
        '  - {"e": 1}',
    ]


# Changing.


def test_set_unset_and_no_change(daemon: Daemon) -> None:
    """The three answers of a change."""
    done = ok(daemon, "set", "gpu_lock.poll_interval=1.0", "gpu_lock.max_wait_time=5m", "--reason", "less load")
    assert "  gpu_lock.poll_interval: 2 -> 1\n" in done
    assert "  gpu_lock.max_wait_time: 900 -> 300\n" in done
    assert ok(daemon, "set", "gpu_lock.poll_interval", "1s").startswith("no change")
    assert ok(daemon, "get", "gpu_lock.poll_interval") == "1\n"
    assert "gpu_lock.max_wait_time: 300 -> 900" in ok(daemon, "unset", "gpu_lock.max_wait_time")
    assert "tasks.w.max_wait_time: (unset) -> 7200" in ok(daemon, "set", "tasks.w={max_wait_time: 2h}")
    ok(daemon, "unset", "tasks.w")
    newest = said(daemon, "history")["revisions"][2:]
    assert newest[1]["reason"] == "less load"
    assert newest[0]["origin"] == "cli"


def test_a_dry_run_shows_the_difference_only(daemon: Daemon) -> None:
    """Nothing is in force that was not said to be."""
    text = ok(daemon, "set", "gpu_lock.poll_interval=9", "--dry-run")
    assert "-gpu_lock.poll_interval: 2\n+gpu_lock.poll_interval: 9\n" in text
    assert ok(daemon, "get", "gpu_lock.poll_interval") == "2\n"


def test_one_pool_may_differ(daemon: Daemon) -> None:
    """For the one host that is slow."""
    ok(daemon, "set", "gpu_lock.poll_interval=3", "--pool", daemon.pool)
    assert f"[{daemon.pool}] gpu_lock.poll_interval: 2 -> 3" in ok(daemon, "history")
    ok(daemon, "unset", "gpu_lock", "--pool", daemon.pool)
    assert "nowhere" in refused(daemon, 2, "set", "gpu_lock.poll_interval=3", "--pool", "nowhere")


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("set", "gpu_lock.pol_interval=1"), 2, "did you mean 'poll_interval'"),
        (("set", "gpu_lock.poll_interval=soon"), 2, "'soon'"),
        (("set", "gpu_lock.poll_interval"), 2, "SETTING=VALUE"),
        (("set",), 2, "required"),
        (("set", "gpu_lock.lock_timeout="), 2, "'gpulockd config unset gpu_lock.lock_timeout'"),
        (("set", "gpu_lock.poll_interval=1", "gpu_lock.poll_interval=2"), 2, "said twice"),
        (("set", "tasks.whisper={max_wait_time: "), 2, "is not YAML"),
        (("set", "notify.webhooks.x.url=ftp://x"), 2, "https://host/path"),
        (("rollback", "-1"), 2, "'-1' is no revision"),
        (("set", "redis.url=redis://h"), 2, "restart"),
        (("set", "gpu_lock.poll_interval=1", "--expect", "999"), 1, "999"),
        (("unset", "gpu_lok"), 2, "gpu_lok"),
        (("apply",), 2, "--profile"),
        (("apply", "/nowhere.yml"), 2, "/nowhere.yml"),
        (("apply", "--profile", "optimised"), 2, "did you mean 'optimized'"),
        (("apply", "--profile", "optimized", "--canary", "10%"), 2, "--hold"),
        (("apply", "--profile", "optimized", "--hold", "1h"), 2, "--canary"),
        (("apply", "--profile", "optimized", "--then", "10%"), 2, "--canary"),
        (("apply", "--profile", "optimized", "--canary", "much", "--hold", "1h"), 2, "'much'"),
        (("apply", "--profile", "optimized", "--canary", "10%", "--hold", "1h", "--dry-run"), 2, "--dry-run"),
        (("diff", "0", "99999"), 1, "99999"),
        (("rollback", "99999"), 1, "99999"),
        (("rollback", "x"), 2, "no revision"),
        (("show", "gpu_lock", "--live"), 2, "--live"),
        (("sett",), 2, "did you mean 'set'"),
        ((), 2, ""),
    ],
)
def test_errors_say_what_was_meant(
    running: Daemon,
    words: tuple[str, ...],
    code: int,
    says: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """2 for what was said wrongly, 1 for a negative answer."""
    monkeypatch.setenv("GPULOCKD_SOCKET", running.socket)
    assert main(["config", *words]) == code
    assert says in capsys.readouterr().err


def test_without_a_daemon_it_says_how_to_start_one(tmp_path: Path) -> None:
    """3, as for every command."""
    for words in (("show",), ("set", "gpu_lock.poll_interval=1"), ("rollback",)):
        assert "gpulockd serve" in refused(None, 3, *words, GPULOCKD_SOCKET=str(tmp_path / "none.sock"))


def test_apply_takes_files_standard_input_and_profiles(daemon: Daemon, tmp_path: Path) -> None:
    """The file sets what it says and leaves the rest."""
    file = tmp_path / "candidate.yml"
    file.write_text("gpu_lock:\n  poll_interval: 700ms  # a comment\ntasks:\n  whisper: {max_wait_time: 2h}\n")
    assert "tasks.whisper.max_wait_time: (unset) -> 7200" in ok(daemon, "apply", str(file))
    assert ok(daemon, "apply", str(file)).startswith("no change")
    assert "gpu_lock.max_wait_time: 900 -> 300" in ok(daemon, "apply", "--profile", "optimized")
    text = f"cat | {sys.executable} -m gpulockd config apply - --replace"
    env = clean_env(GPULOCKD_SOCKET=daemon.socket)
    done = subprocess.run(
        ["sh", "-c", text], input=b"queue: {priority_step: 5}", env=env, capture_output=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert said(daemon, "show")["live"]["all"] == {"queue": {"priority_step": 5}}


def test_a_whole_file_can_be_applied(daemon: Daemon) -> None:
    """It names settings that need a restart; those it leaves as they are do no harm."""
    done = run(daemon, ("apply", str(ROOT / "config.yml"), "--reason", "the shipped one"), {})
    assert done.returncode == 0, done.stderr
    assert "in force anyway" in done.stderr
    assert ok(daemon, "get", "gpu_lock.max_wait_time") == "1800\n"


def test_check_names_the_place_and_needs_no_daemon(tmp_path: Path) -> None:
    """Before it is copied to the fleet."""
    none = str(tmp_path / "none.sock")
    good, bad = tmp_path / "good.yml", tmp_path / "bad.yml"
    good.write_text("gpu_lock: {poll_interval: 1}\n")
    bad.write_text("gpu_lock:\n  poll_interval: 1\n  max_wait_tim: 5\n")
    assert ok(None, "check", str(good), GPULOCKD_SOCKET=none) == f"{good}: can be used (1 settings)\n"
    said = refused(None, 2, "check", str(bad), GPULOCKD_SOCKET=none)
    assert f"{bad}:3:3: unknown key 'gpu_lock.max_wait_tim'; did you mean 'max_wait_time'?" in said
    done = call(None, "config", "check", str(bad), "--json")
    assert (done.returncode, json.loads(done.stdout)["ok"]) == (2, False)
    bad.write_text(bad.read_text() + "notify: {webhooks: {a: {url: 'ftp://x'}}}\nalerts:\n  - {name: X}\n")
    lines = refused(None, 2, "check", str(bad)).splitlines()
    assert [line.split(":")[2:4] for line in lines[:3]] == [["3", "3"], ["6", "5"], ["4", "25"]], lines
    certificate, key = tmp_path / "tls.pem", tmp_path / "tls.key"
    for file in (certificate, key):
        file.touch(mode=0o644)
    bad.write_text(f"web: {{tls: {{certificate: {certificate}, key: {key}}}}}\n")
    assert f"others may read {key}; run: chmod 600" in refused(None, 2, "check", str(bad))
    bad.write_text("- a\n")
    assert "not a list" in refused(None, 2, "check", str(bad))
    bad.write_text("\n")
    assert "it is empty" in refused(None, 1, "check", str(bad)), "as a daemon that runs would say"
    bad.write_text("{}\n")
    assert ok(None, "check", str(bad)) == f"{bad}: can be used (0 settings)\n"
    assert ok(None, "check", str(ROOT / "config.yml")).startswith(str(ROOT / "config.yml"))


def test_a_broken_file_is_not_applied(daemon: Daemon, tmp_path: Path) -> None:
    """Nothing of it."""
    bad = tmp_path / "bad.yml"
    bad.write_text("gpu_lock:\n  poll_interval: 1\n  max_wait_time: soon\n")
    assert f"{bad}:3:3" in refused(daemon, 2, "apply", str(bad))
    assert ok(daemon, "get", "gpu_lock.poll_interval") == "2\n"


def test_edit_applies_what_the_editor_left(daemon: Daemon, tmp_path: Path) -> None:
    """A changed line changes, a deleted line goes back, the rest stays."""
    ok(daemon, "set", "gpu_lock.poll_interval=1", "gpu_lock.max_wait_time=60", "queue.priority_step=7")
    done = ok(daemon, "edit", EDITOR="sed -i -e s/max_wait_time:.*/max_wait_time:\\ 2m/ -e /poll_interval/d")
    assert "gpu_lock.max_wait_time: 60 -> 120" in done
    assert "gpu_lock.poll_interval: 1 -> 2" in done
    assert ok(daemon, "get", "queue.priority_step") == "7\n"
    assert ok(daemon, "edit", EDITOR="true") == "no change\n"
    assert "nothing was changed" in refused(daemon, 1, "edit", EDITOR="false", TMPDIR=str(tmp_path))
    broken = refused(daemon, 2, "edit", EDITOR="sed -i s/max_wait_time/max_wait_tim/", TMPDIR=str(tmp_path))
    assert "did you mean 'max_wait_time'" in broken
    assert str(tmp_path) in broken
    assert ok(daemon, "edit", EDITOR="sed -i d").count(" -> ") == 2


# Looking back.


def test_history_diff_and_audit(daemon: Daemon) -> None:
    """Who, when, why, what."""
    number = said(daemon, "show")["revision"]["number"]
    ok(daemon, "set", "gpu_lock.poll_interval=1", "--reason", "less load")
    refused(daemon, 2, "history", "-n", "0")
    first = ok(daemon, "history", "-n", "1").splitlines()[1]
    assert first.startswith(f"> {' ' * 0}")
    assert "gpu_lock.poll_interval: 2 -> 1 (less load)" in first
    text = ok(daemon, "diff", str(number), str(number + 1))
    assert text == f"--- revision {number}\n+++ revision {number + 1}\n+gpu_lock.poll_interval: 1\n"
    assert "no difference" in ok(daemon, "diff", str(number), str(number))
    assert "less load" in ok(daemon, "audit").splitlines()[-1]
    assert said(daemon, "audit", "-n", "1")["audit"][0]["revision"] == number + 1
    assert said(daemon, "diff", "0")["older"] == 0


def test_impact_reads_as_a_table(daemon: Daemon) -> None:
    """Did my change help?"""
    ok(daemon, "set", "gpu_lock.poll_interval=1")
    text = ok(daemon, "impact")
    assert text.startswith("changed at 2")
    assert "\n  gpu_lock.poll_interval: 2 -> 1\n" in text
    assert [line.split() for line in text.splitlines() if line.startswith("poll_interval")] == [
        ["poll_interval", "2", "s", "1", "s"]
    ]
    assert said(daemon, "impact")["impact_summary"]


def test_rollout_without_one(daemon: Daemon) -> None:
    """Nothing to see, nothing to steer."""
    assert ok(daemon, "rollout") == "no rollout yet\n"
    for verb in ("approve", "pause", "resume", "abort"):
        assert refused(daemon, 1, verb)


# Rolling back.


def test_rollback_asks_nothing_and_prints_overall_status(daemon: Daemon, tmp_path: Path) -> None:
    """B-401 … B-409: one command."""
    ok(daemon, "set", "gpu_lock.poll_interval=9")
    restarted = tmp_path / "restarted"
    text = ok(daemon, "rollback", "0", "--reason", "too slow", "--restart", f"touch {restarted}")
    assert "  gpu_lock.poll_interval: 9 -> 2\n" in text
    assert text.endswith("overall_status: healthy\n")
    assert restarted.exists()
    assert ok(daemon, "get", "gpu_lock.poll_interval") == "2\n"
    assert said(daemon, "rollback")["changed"] is False
    assert "ended with code 1" in refused(daemon, 1, "rollback", "--restart", "false")


def script(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the documented script."""
    home = {"XDG_RUNTIME_DIR": "/nonexistent", "GPULOCKD_URL": "http://localhost:9"}
    return subprocess.run(
        [str(SCRIPT), *words], env=clean_env(**home | env), capture_output=True, text=True, timeout=60, cwd="/"
    )


needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


@needs_curl
def test_the_script_rolls_back_by_socket(daemon: Daemon) -> None:
    """B-406: ./scripts/rollback_gpu_lock_config.sh, as documented."""
    ok(daemon, "set", "gpu_lock.poll_interval=9")
    done = script("0", "drill: 'quotes\" and \\ all'", GPULOCKD_SOCKET=daemon.socket)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("overall_status: healthy\n")
    assert "\n  gpu_lock.poll_interval: 9 -> 2\n" in done.stdout and "{" not in done.stdout
    assert said(daemon, "history")["revisions"][0]["reason"] == "drill: quotes and all"
    unknown = script("99999", GPULOCKD_SOCKET=daemon.socket)
    assert (unknown.returncode, unknown.stdout) == (1, "") and "99999" in unknown.stderr
    assert ok(daemon, "get", "gpu_lock.poll_interval") == "2\n"
    again = script(GPULOCKD_SOCKET=daemon.socket)
    assert (again.returncode, "no change" in again.stdout) == (0, True)


@needs_curl
def test_the_script_rolls_back_over_tcp_with_the_token(daemon: Daemon, tmp_path: Path) -> None:
    """From a container that has the port only."""
    ok(daemon, "set", "gpu_lock.poll_interval=9")
    nowhere = {"GPULOCKD_SOCKET": str(tmp_path / "none.sock"), "GPULOCKD_URL": f"http://localhost:{daemon.port}"}
    denied = script("0", GPULOCKD_TOKEN="wrong", **nowhere)
    assert (denied.returncode, "not permitted" in denied.stderr) == (4, True)
    done = script("0", GPULOCKD_TOKEN=daemon.token, **nowhere)
    assert (done.returncode, done.stdout.endswith("overall_status: healthy\n")) == (0, True), done.stderr
    assert script(GPULOCKD_SOCKET=str(tmp_path / "none.sock"), GPULOCKD_TOKEN="x").returncode == 3
    assert script("--yes").returncode == 2


def test_the_script_uses_the_command_where_there_is_no_curl(daemon: Daemon, tmp_path: Path) -> None:
    """A minimal container has no curl."""
    for name in ("bash", "sed", "env", "dirname"):
        found = shutil.which(name)
        assert found
        (tmp_path / name).symlink_to(found)
    ours = tmp_path / "gpulockd"
    ours.write_text(f'#!{shutil.which("bash")}\nPYTHONPATH={ROOT} exec {sys.executable} -m gpulockd "$@"\n')
    ours.chmod(0o755)
    ok(daemon, "set", "gpu_lock.poll_interval=9")
    done = script("0", PATH=str(tmp_path), GPULOCKD_SOCKET=daemon.socket)
    assert (done.returncode, done.stdout.endswith("overall_status: healthy\n")) == (0, True), done.stderr


# What they load.


@pytest.mark.parametrize("name", SHORT)
def test_short_commands_load_the_standard_library_only(daemon: Daemon, name: str) -> None:
    """They answer in under 80 ms; Redis alone takes 145 ms to load."""
    program = (
        f"import sys\nfrom gpulockd.cli import main\ncode = main(['config', {name!r}])\n"
        f"assert code == 0, code\nprint(sorted({{name.split('.')[0] for name in sys.modules}} & set({HEAVY!r})))"
    )
    env = clean_env(GPULOCKD_SOCKET=daemon.socket)
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stderr


def test_every_sub_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a daemon."""
    for name in SUBCOMMANDS:
        assert main(["config", name, "--help"]) == 0
        assert f"usage: gpulockd config {name}" in capsys.readouterr().out


def test_docs_name_only_commands_that_exist() -> None:
    """Every command in docs/config.md works."""
    lines = (ROOT / "docs/config.md").read_text().splitlines()
    words = [line.split() for line in lines if line.startswith("gpulockd config ")]
    assert {line[2] for line in words} == set(SUBCOMMANDS)
    assert os.access(SCRIPT, os.X_OK)
