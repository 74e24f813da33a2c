"""`gpulockd backup` and `restore` as a user runs them, on a real daemon and its store."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from gpulockd.cli import main
from gpulockd.cli.backups import pack
from gpulockd.cli.backups.unsaid import filled, unsaid
from tests.daemons import Daemon
from tests.states import until_blocking
from tests.system.commands import call, clean_env, command, one_daemon

pytestmark = pytest.mark.timeout(300)  # a busy machine takes seconds for each start of Python

HOOK = "https://127.0.0.1:9/very-secret"
SECRET = "very-secret"
CONFIG: dict[str, Any] = {"notify": {"webhooks": {"chat": {"url": HOOK}}}}


def said(daemon: Daemon | None, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    """A command in this process, which spares the start of another one."""
    out, err, before = io.StringIO(), io.StringIO(), dict(os.environ)
    named = {} if daemon is None else {"GPULOCKD_SOCKET": daemon.socket}
    os.environ.clear()
    os.environ.update(clean_env(**named, **env))
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(words)
    finally:
        os.environ.clear()
        os.environ.update(before)
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """A daemon whose file names a secret, and whose statistics have begun."""
    with one_daemon(config=CONFIG) as running:
        for task in ("ocr", "train"):
            assert call(running, "run", "--task", task, "--", "true").returncode == 0
        until_blocking(lambda: _attempts(running) >= 2)
        yield running


def _attempts(daemon: Daemon) -> int:
    shown = said(daemon, "backup", "--json", "--folder", str(daemon.state / "looks"), "--keep", "1")
    book = _parts(json.loads(shown.stdout)["file"], "book")
    return int(book[0]["book"]["total"][1].get("acquired", 0)) if book else 0


def _backup(daemon: Daemon, *words: str) -> Path:
    done = said(daemon, "backup", "--json", *words, "--state-dir", str(daemon.state))
    assert done.returncode == 0, done.stderr
    return Path(json.loads(done.stdout)["file"])


def _parts(path: str | Path, part: str) -> list[dict[str, Any]]:
    with gzip.open(path, "rt") as file:
        return [line for line in map(json.loads, file) if line.get("part") == part]


def _value(daemon: Daemon, path: str) -> str:
    return said(daemon, "config", "get", path).stdout.strip()


def _revision(daemon: Daemon) -> int:
    return int(json.loads(said(daemon, "config", "history", "--json").stdout)["revisions"][0]["number"])


def test_a_backup_is_for_its_owner_alone_and_reads_with_zcat(daemon: Daemon, tmp_path: Path) -> None:
    """What nobody can open with the tools at hand is no backup."""
    file = tmp_path / "one.jsonl.gz"
    assert call(daemon, "backup", str(file)).returncode == 0
    assert file.stat().st_mode & 0o777 == 0o600
    shown = subprocess.run(["zcat", str(file)], capture_output=True, text=True, check=True).stdout
    head, *_, last = map(json.loads, shown.splitlines())
    assert head["gpulockd_backup"] == 1 and head["pool"] == daemon.pool and head["secrets"] is False
    assert last["end"] is True and last["lines"] == len(shown.splitlines()) - 1
    for part in ("file", "state", "revision", "base", "published", "audit", "book", "tasks", "hour", "day", "event"):
        assert _parts(file, part), part
    assert {event["event"]["type"] for event in _parts(file, "event")} >= {"lock_acquired", "lock_released"}


def test_secrets_are_only_in_it_when_they_are_asked_for(daemon: Daemon, tmp_path: Path) -> None:
    """A backup is copied to places that a webhook must not reach."""
    assert said(daemon, "config", "set", f"notify.webhooks.chat.url={HOOK}-live", "--reason", "x").returncode == 0
    plain = gzip.decompress(_backup(daemon, str(tmp_path / "plain.gz")).read_bytes())
    whole = gzip.decompress(_backup(daemon, str(tmp_path / "whole.gz"), "--with-secrets").read_bytes())
    assert SECRET.encode() not in plain and b"***" in plain
    assert f"{HOOK}-live".encode() in whole and f"{HOOK}\\".encode() in whole
    assert said(daemon, "config", "unset", "notify.webhooks.chat.url").returncode == 0
    assert said(daemon, "restore", str(tmp_path / "plain.gz"), "--only", "config").returncode == 0
    after = _parts(_backup(daemon, str(tmp_path / "after.gz"), "--with-secrets"), "state")[0]
    assert "***" not in json.dumps(after["live"])


def test_old_backups_go_and_all_are_listed(daemon: Daemon, tmp_path: Path) -> None:
    """A timer must not fill the disk, and a damaged backup must be seen before it is needed."""
    folder = tmp_path / "kept"
    foreign = folder / "notes.txt"
    for _ in range(4):
        assert said(daemon, "backup", "--folder", str(folder), "--keep", "3").returncode == 0
        foreign.write_text("mine")
    found = sorted(folder.glob("gpulockd-*.gz"))
    assert len(found) == 3 and foreign.exists()
    assert said(daemon, "backup", "--list", "--folder", str(folder)).returncode == 0
    found[0].write_bytes(found[0].read_bytes()[:-40])
    listed = said(daemon, "backup", "--list", "--folder", str(folder), "--json")
    assert listed.returncode == 1
    assert [row["trouble"] is None for row in json.loads(listed.stdout)].count(False) == 1


def test_without_a_name_it_lies_in_the_state_folder_of_the_daemon_that_runs(daemon: Daemon) -> None:
    """Where the next person looks for it, however the daemon was started."""
    done = said(daemon, "backup", "--json")
    assert done.returncode == 0, done.stderr
    assert Path(json.loads(done.stdout)["file"]).parent == daemon.state / "backups"


def test_a_restored_configuration_is_a_revision_that_a_rollback_undoes(daemon: Daemon, tmp_path: Path) -> None:
    """It is a change like any other: with an author, a reason, and a way back."""
    assert said(daemon, "config", "set", "gpu_lock.max_wait_time=600").returncode == 0
    file = str(_backup(daemon, str(tmp_path / "ten.gz")))
    assert said(daemon, "config", "set", "gpu_lock.max_wait_time=700").returncode == 0
    before = _revision(daemon)
    dry = said(daemon, "restore", file, "--dry-run")
    assert "gpu_lock.max_wait_time: 700 -> 600" in dry.stdout and _revision(daemon) == before
    done = said(daemon, "restore", file, "--reason", "a bad night")
    assert done.returncode == 0, done.stderr
    until_blocking(lambda: _value(daemon, "gpu_lock.max_wait_time") == "600")
    history = json.loads(said(daemon, "config", "history", "--json").stdout)["revisions"]
    assert (history[0]["number"], history[0]["reason"], history[0]["origin"]) == (before + 1, "a bad night", "restore")
    assert "a bad night" in said(daemon, "config", "audit").stdout
    assert said(daemon, "restore", file).stdout.count("as it is") == 1
    undone = said(daemon, "config", "rollback", str(before), "--all")
    assert undone.returncode == 0, undone.stdout + undone.stderr
    assert _value(daemon, "gpu_lock.max_wait_time") == "700"


def test_a_holder_and_a_waiter_do_not_notice_a_restoration(daemon: Daemon, tmp_path: Path) -> None:
    """A restoration is done in the middle of the working day."""
    file = str(_backup(daemon, str(tmp_path / "held.gz")))
    words = (
        "run",
        "--gpu",
        "0",
        "--",
        "sh",
        "-c",
        f"touch {tmp_path}/in; while [ ! -e {tmp_path}/go ]; do sleep 0.1; done",
    )
    with _started(daemon, *words) as holder:
        until_blocking((tmp_path / "in").exists)
        with _started(daemon, "run", "--gpu", "0", "--", "true") as waiter:
            until_blocking(lambda: json.loads(said(daemon, "queue", "--json").stdout)["queued"] == 1)
            before = json.loads(said(daemon, "status", "--json").stdout)["leases"]
            assert said(daemon, "config", "set", "gpu_lock.poll_interval=3").returncode == 0
            assert said(daemon, "restore", file).returncode == 0
            after = json.loads(said(daemon, "status", "--json").stdout)["leases"]
            assert [(one["id"], one["token"]) for one in after] == [(one["id"], one["token"]) for one in before]
            (tmp_path / "go").touch()
            assert (holder.wait(60), waiter.wait(60)) == (0, 0)


@contextlib.contextmanager
def _started(daemon: Daemon, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        command(*words),
        env=clean_env(GPULOCKD_SOCKET=daemon.socket),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def test_what_is_torn_foreign_or_newer_is_refused_and_changes_nothing(daemon: Daemon, tmp_path: Path) -> None:
    """Half a restoration would be worse than none."""
    file = _backup(daemon, str(tmp_path / "good.gz"))
    assert said(daemon, "config", "set", "gpu_lock.poll_interval=4").returncode == 0
    before = _revision(daemon)
    content = gzip.decompress(file.read_bytes())
    lines = content.splitlines(keepends=True)
    newer = content.replace(b'"gpulockd_backup":1', b'"gpulockd_backup":99', 1)
    wrong = {
        "torn": (file.read_bytes()[: len(file.read_bytes()) // 2], 1, "damaged"),
        "cut": (gzip.compress(b"".join(lines[:-1])), 1, "damaged"),
        "changed": (gzip.compress(content.replace(b"ocr", b"0cr")), 1, "checksum"),
        "flipped": (
            file.read_bytes()[:-8] + bytes([file.read_bytes()[-8] ^ 0xFF]) + file.read_bytes()[-7:],
            1,
            "damaged",
        ),
        "newer": (gzip.compress(newer), 2, "update gpulockd"),
        "foreign": (gzip.compress(b'{"a": 1}\n'), 2, "no backup"),
        "text": (b"hello", 2, "no backup"),
        "empty": (b"", 2, "no backup"),
    }
    for name, (data, code, says) in wrong.items():
        (tmp_path / name).write_bytes(data)
        refused = said(daemon, "restore", str(tmp_path / name))
        assert refused.returncode == code and says in refused.stderr, (name, refused.returncode, refused.stderr)
    assert said(daemon, "restore", str(tmp_path / "nowhere")).returncode == 2
    assert _revision(daemon) == before
    over = said(daemon, "backup", str(tmp_path / "text"))
    assert over.returncode == 2 and (tmp_path / "text").read_bytes() == b"hello"


def _forged(file: Path, target: Path, lines: list[dict[str, Any]]) -> str:
    """A backup of these lines whose checksum fits."""
    head, *rest = lines
    target.write_bytes(pack.packed(head, rest))
    return str(target)


def test_a_backup_that_was_meddled_with_is_refused_in_words_and_changes_nothing(daemon: Daemon, tmp_path: Path) -> None:
    """A checksum can be made by anybody: what is written must be of the form that gpulockd writes."""
    file = _backup(daemon, str(tmp_path / "good.gz"), "--with-secrets")
    before, stored = _revision(daemon), _everything(daemon)
    whole = [json.loads(line) for line in gzip.decompress(file.read_bytes()).splitlines()[:-1]]
    deep: Any = 1
    for _ in range(200):
        deep = {"a": deep}
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("state", {"live": None}),
        ("state", {"live": {"all": {"gpu_lock": deep}}}),
        ("state", {"hidden": [["all", "nowhere"]]}),
        ("state", {"hidden": [[]]}),
        ("state", {"current": "3"}),
        ("revision", {"diff": "none"}),
        ("audit", {"id": "*"}),
        ("book", {"book": {"since_ms": -1}}),
        ("tasks", {"tasks": []}),
        ("hour", {"fields": {"a": "zz"}}),
        ("hour", {"number": 10**30}),
        ("day", {"fields": {"ocr": [1, {}, [1, 1, 1, 1, {"4000": 1}]]}}),
        ("file", {"text": 7}),
        ("file", {"text": "\ud800"}),
    ]
    for part, change in wrong:
        lines = [{**line, **change} if line.get("part") == part else line for line in whole]
        assert lines != whole, part
        forged = tmp_path / "forged.gz"
        with contextlib.suppress(UnicodeEncodeError):
            _forged(file, forged, lines)
            refused = said(daemon, "restore", str(forged), "--config-to", str(tmp_path / "config.yml"))
            assert refused.returncode == 1 and "nothing that gpulockd has written" in refused.stderr, (part, change)
            assert "Traceback" not in refused.stderr and not (tmp_path / "config.yml").exists()
    for at in ("now", -1, True, None, 1e300, [1]):
        refused = said(daemon, "restore", _forged(file, tmp_path / "at.gz", [{**whole[0], "at": at}, *whole[1:]]))
        assert refused.returncode == 1 and "line 1" in refused.stderr, at
    assert _revision(daemon) == before and _everything(daemon) == stored


def _everything(daemon: Daemon) -> dict[bytes, Any]:
    """What the configuration says, and which hours and days there are: the daemon writes on in the newest of them."""
    with redis.Redis.from_url(daemon.store_url) as store:
        fleet = [name for name in store.keys("gpulockd:{fleet}:*") if b":alerts" not in name]
        return contents(store, fleet) | dict.fromkeys(store.keys("*:recorded:[0-9]*"), b"")


def contents(store: redis.Redis, names: list[bytes]) -> dict[bytes, Any]:
    """What these keys say. Their dumps may differ where nothing has: a hash grows in the background."""
    read: dict[Any, Callable[[bytes], Any]] = {
        b"hash": store.hgetall,
        b"list": lambda name: store.lrange(name, 0, -1),
        b"none": lambda name: None,
        b"set": store.smembers,
        b"stream": store.xrange,
        b"string": store.get,
        b"zset": lambda name: store.zrange(name, 0, -1, withscores=True),
    }
    return {name: read[store.type(name)](name) for name in names}


def test_a_name_that_is_no_pools_ends_neither_daemon_nor_backup(daemon: Daemon, tmp_path: Path) -> None:
    """One SADD of anybody must not take the fleet down."""
    wrong = (b"\xff\xfe", b"fleet", b"two words", b"never-opened")
    with redis.Redis.from_url(daemon.store_url) as store:
        store.sadd("gpulockd:{fleet}:pools", *wrong)
        try:
            assert said(daemon, "config", "set", "gpu_lock.poll_interval=6").returncode == 0
            until_blocking(lambda: daemon.process.poll() is not None or "passed over" in daemon.log)
            assert daemon.process.poll() is None
            assert _backup(daemon, str(tmp_path / "listed.gz")).exists()
            assert said(daemon, "restore", str(tmp_path / "listed.gz"), "--dry-run").returncode == 0
        finally:
            store.srem("gpulockd:{fleet}:pools", *wrong)


def test_what_is_no_file_is_not_waited_for(daemon: Daemon, tmp_path: Path) -> None:
    """A pipe in the folder of backups would hold the timer for ever."""
    folder = tmp_path / "pipes"
    folder.mkdir()
    pipe = folder / "gpulockd-default-20260101T000000Z.jsonl.gz"
    os.mkfifo(pipe)
    (folder / "gpulockd-default-20260101T000001Z.jsonl.gz").symlink_to("nowhere")
    refused = call(daemon, "restore", str(pipe))
    assert refused.returncode == 2 and "it is no file" in refused.stderr
    assert call(daemon, "backup", str(pipe)).returncode == 2
    listed = call(daemon, "backup", "--list", "--folder", str(folder))
    assert listed.returncode == 1 and "it is no file" in listed.stdout


def test_a_backup_needs_no_daemon_and_says_when_the_store_is_away(tmp_path: Path) -> None:
    """The store lives on when the daemon is down, and that is when one wants a copy."""
    with one_daemon() as running:
        running.process.send_signal(signal.SIGKILL)
        running.process.wait(30)
        assert _backup(running, str(tmp_path / "down.gz")).exists()
    away = said(None, "backup", str(tmp_path / "none.gz"), GPULOCKD_SOCKET=str(tmp_path / "no.sock"))
    assert away.returncode == 3 and not (tmp_path / "none.gz").exists()
    assert list(tmp_path.glob(".backup-*")) == []


def test_a_new_machine_gets_everything_back(tmp_path: Path) -> None:
    """The host is gone with its store: revisions, audit and statistics come back by one command."""
    with one_daemon() as old:
        assert call(old, "run", "--task", "ocr", "--", "true").returncode == 0
        assert said(old, "config", "set", "gpu_lock.max_wait_time=611", "--reason", "of old").returncode == 0
        assert said(old, "config", "set", "gpu_lock.max_wait_time=612").returncode == 0
        until_blocking(lambda: _attempts(old) >= 1)
        file = str(_backup(old, str(tmp_path / "moved.gz")))
    with one_daemon() as new:
        done = said(new, "restore", file)
        assert done.returncode == 0, done.stderr
        until_blocking(lambda: _value(new, "gpu_lock.max_wait_time") == "612")
        history = json.loads(said(new, "config", "history", "--json").stdout)["revisions"]
        assert [one["number"] for one in history] == [3, 2, 1, 0]
        assert "of old" in said(new, "config", "audit").stdout
        assert _attempts(new) >= 1
        again = said(new, "restore", file)
        assert "configuration: as it is" in again.stdout and "statistics: all there" in again.stdout
        # Events of the new machine are counted beside those of the old one, once.
        assert call(new, "run", "--task", "after", "--", "true").returncode == 0
        until_blocking(lambda: _attempts(new) == 2)
        undone = said(new, "config", "rollback", "0", "--all")
        assert undone.returncode == 0 and _value(new, "gpu_lock.max_wait_time") == "1800"


def test_statistics_of_another_pool_are_only_taken_when_it_is_said(daemon: Daemon, tmp_path: Path) -> None:
    """Two pools' numbers in one would belong to neither."""
    with one_daemon("--pool", "other") as other:
        file = str(_backup(other, str(tmp_path / "other.gz")))
    refused = said(daemon, "restore", file)
    assert refused.returncode == 2 and "'other'" in refused.stderr and "--pool" in refused.stderr
    assert said(daemon, "restore", file, "--dry-run", "--pool", daemon.pool).returncode == 0


def test_the_kept_config_yml_is_written_where_no_file_is(daemon: Daemon, tmp_path: Path) -> None:
    """The daemon's own file is a person's, so it is handed over and never overwritten."""
    file = str(_backup(daemon, str(tmp_path / "file.gz"), "--with-secrets"))
    target = tmp_path / "config.yml"
    assert said(daemon, "restore", file, "--dry-run", "--config-to", str(target)).returncode == 0
    assert not target.exists()
    assert said(daemon, "restore", file, "--only", "history", "--config-to", str(target)).returncode == 0
    assert json.loads(target.read_text()) == CONFIG and target.stat().st_mode & 0o777 == 0o600
    assert said(daemon, "restore", file, "--config-to", str(target)).returncode == 2


def test_marks_never_come_into_force() -> None:
    """What a backup does not say is what is set now, or nothing."""
    tree = {"all": {"notify": {"a.b": {"url": HOOK}, "on": True}}, "pools": {"p": {"web": {"token": "x"}}}}
    marked, ways = unsaid(tree)
    assert SECRET not in json.dumps(marked) and len(ways) == 2
    whole, missing = filled(marked, ways, tree)
    assert whole == tree and missing == []
    bare, missing = filled(marked, ways, {})
    assert "***" not in json.dumps(bare) and len(missing) == 2 and bare["all"]["notify"] == {"on": True}
