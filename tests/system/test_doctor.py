"""`gpulockd doctor` on trouble that is made for real: the line that it says, its level, and what to do."""

from __future__ import annotations

import asyncio
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis

from tests.daemons import QUICK, Daemon
from tests.proxies import proxied
from tests.servers import NOT_PERSISTENT, Server, valkey_binary
from tests.states import until_blocking
from tests.stub_nvml import StubCard, build
from tests.system.commands import ROOT, ask, clean_env, command, one_daemon

pytestmark = pytest.mark.timeout(300)  # a busy machine takes seconds for each start of Python

CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <time.h>
int clock_gettime(clockid_t id, struct timespec *at) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int done = real(id, at);
    if (id == CLOCK_REALTIME) at->tv_sec -= 3600;
    return done;
}
"""


class Said:
    """What the doctor has said."""

    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        assert done.returncode in (0, 1), done.stderr
        self.code = done.returncode
        self.findings: list[dict[str, Any]] = json.loads(done.stdout)["findings"]

    def line(self, check: str, level: str, *words: str) -> dict[str, Any]:
        """The one line of a check that says all of these words."""
        lines = [
            one
            for one in self.findings
            if one["check"] == check
            and one["level"] == level
            and all(word in f"{one['what']} → {one['remedy']}" for word in words)
        ]
        assert len(lines) == 1, (check, level, words, self.findings)
        return lines[0]


def doctor(
    daemon: Daemon | None,
    *,
    prefix: tuple[str, ...] = (),
    cwd: Path = Path("/"),
    folder: str = "/nonexistent",
    **env: str,
) -> Said:
    """Run the doctor where no configuration file lies; without a daemon it finds none."""
    env = {
        "GPULOCKD_SOCKET": daemon.socket if daemon else f"{folder}/api.sock",
        "XDG_CONFIG_HOME": "/nonexistent",
    } | env
    words = [*prefix, *command("doctor", "--json")]
    where = clean_env(**env)
    return Said(subprocess.run(words, env=where, cwd=cwd, capture_output=True, text=True, timeout=90))


def said_so(daemon: Daemon, check: str, words: str) -> bool:
    """Whether the doctor says these words in a line of that check."""
    return any(one["check"] == check and words in one["what"] for one in doctor(daemon).findings)


def unprivileged_namespaces(*how: str) -> bool:
    """Whether `unshare` can do that here."""
    return (
        shutil.which("unshare") is not None
        and subprocess.run(["unshare", *how, "true"], capture_output=True, timeout=60).returncode == 0
    )


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """A daemon with a private store."""
    with one_daemon() as made:
        yield made


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server of one's own, which keeps nothing on disk."""
    binary = valkey_binary()
    if binary is None:
        pytest.skip("no Valkey on this machine")
    with Server(binary) as made:
        yield made


@contextmanager
def asked(server: Server, *words: str, after: tuple[str, ...] = ()) -> Iterator[None]:
    """Send a command, and another one when the block ends."""
    with redis.Redis.from_url(server.url) as admin:
        admin.execute_command(*words)
        try:
            yield
        finally:
            if after:
                admin.execute_command(*after)


def test_a_host_where_all_is_well_has_no_failure(daemon: Daemon) -> None:
    """Who asks wants to hear that nothing is wrong, in lines that say what was looked at."""
    said = doctor(daemon)
    assert said.code == 0
    assert not [one for one in said.findings if one["level"] == "fail"]
    said.line("daemon", "ok", "is ready", "2 GPUs")
    said.line("redis", "ok", "programs here use", daemon.store_url)
    said.line("redis", "ok", "append-only file")
    said.line("clock", "ok")
    said.line("foreign keys", "ok")
    assert all(one["remedy"] for one in said.findings if one["level"] != "ok")
    text = subprocess.run(
        command("doctor"), env=clean_env(GPULOCKD_SOCKET=daemon.socket), cwd="/", capture_output=True, text=True
    )
    assert text.stdout.startswith("ok    daemon: gpulockd ")


def test_no_daemon_is_a_failure_and_how_to_start_one_the_remedy(server: Server) -> None:
    """It is the first thing that goes wrong; a host of clients alone needs none."""
    said = doctor(None)
    assert said.code == 1
    said.line("daemon", "fail", "no such socket", "gpulockd serve")
    said.line("redis", "fail", "no Redis is known here")
    said = doctor(None, GPULOCKD_REDIS_URL=server.url, GPULOCKD_POOL="shop")
    assert said.code == 0
    said.line("daemon", "warn", "have no guard")
    said.line("redis", "ok", "GPULOCKD_REDIS_URL", "pool shop")
    with redis.Redis.from_url(server.url) as store:
        assert store.dbsize() == 0, "the doctor began a pool"


def test_a_daemon_that_hangs_is_not_called_absent(daemon: Daemon) -> None:
    """Starting another one would be the wrong remedy."""
    os.kill(daemon.process.pid, signal.SIGSTOP)
    try:
        doctor(daemon).line("daemon", "fail", "takes connections and does not answer", "restart")
    finally:
        os.kill(daemon.process.pid, signal.SIGCONT)


def test_a_store_that_is_away_is_why_the_daemon_is_not_ready(server: Server) -> None:
    """One cause, said by daemon and store."""
    binary = valkey_binary()
    assert binary is not None
    with Server(binary) as own, one_daemon("--redis", own.url, config=QUICK) as daemon:
        own.kill()
        until_blocking(lambda: said_so(daemon, "daemon", "is not ready"))  # the store is seen to be away before that
        said = doctor(daemon)
        said.line("daemon", "fail", "is not ready")
        said.line("redis", "fail", "is it running?")
        own.start()


def test_what_a_pool_and_its_cards_lack_is_said(server: Server) -> None:
    """A pool that grants nothing, one without a guard, and a card that an operator has taken out and forgotten."""
    slow = {"session": {"ttl": 120}, "gpus": {"guard": False}}
    with one_daemon("--redis", server.url, "--pool", "bare", config=slow) as daemon:
        subprocess.run(command("gpu", "drain", "1"), env=clean_env(GPULOCKD_SOCKET=daemon.socket), capture_output=True)
        said = doctor(daemon)
        said.line("gpu", "warn", "GPU 1 is drained", "gpulockd gpu resume 1")
        said.line("pool", "warn", "has no guard")
        with redis.Redis.from_url(server.url) as admin:
            admin.flushall()
        until_blocking(lambda: said_so(daemon, "pool", "grants nothing for"))


def test_a_socket_that_is_mounted_alone_and_a_daemon_that_sees_no_pids(daemon: Daemon, tmp_path: Path) -> None:
    """Both work until the daemon is started again, or until a holder dies: nobody would look there then."""
    if not unprivileged_namespaces("--mount", "--pid", "--fork", "--mount-proc"):
        pytest.skip("needs root and namespaces (unshare)")
    mounts = 'touch "$1/api.sock"; mount --bind "$0" "$1/api.sock"; shift; exec "$@"'
    alone = ("unshare", "--mount", "sh", "-c", mounts, daemon.socket, str(tmp_path))
    said = doctor(None, prefix=alone, folder=str(tmp_path))
    said.line("namespaces", "warn", "is mounted alone", "mount the folder")
    said = doctor(None, prefix=("unshare", "--pid", "--fork", "--mount-proc"))
    said.line("namespaces", "warn", "no daemon's folder", "mount the folder")
    entered = ("unshare", "--pid", "--fork", "--mount-proc", *command("serve", "--simulate", "1"))
    where = ("--socket", f"{tmp_path}/run/api.sock", "--state-dir", f"{tmp_path}/state", "--listen", "127.0.0.1:0")
    with (tmp_path / "log").open("wb") as log:
        inner = subprocess.Popen(
            [*entered, *where, "--stop-store"], env=clean_env(), cwd="/", stdout=subprocess.PIPE, stderr=log, text=True
        )
    try:
        assert inner.stdout is not None and "ready" in inner.stdout.readline(), (tmp_path / "log").read_text()
        said = doctor(None, folder=f"{tmp_path}/run")
        said.line("namespaces", "warn", "outside the daemon's pid namespace", "--pid=host")
    finally:
        # The first process of a pid namespace takes all others with it.
        for child in psutil.Process(inner.pid).children():
            child.terminate()
        inner.wait(60)
        if inner.stdout is not None:
            inner.stdout.close()


def test_limits_that_are_too_low_are_named_with_their_setting(daemon: Daemon) -> None:
    """They are met under load, when nobody has time to look for them."""
    before = resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE, (256, before[1]))
    try:
        said = doctor(daemon, prefix=("prlimit", "--memlock=65536:65536"))
    finally:
        resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE, before)
    said.line("limits", "warn", "the daemon may open 256 files", "LimitNOFILE=65536")
    said.line("limits", "warn", "lock only 64 KiB", "LimitMEMLOCK=infinity")


def test_inotify_that_is_used_up_is_said() -> None:
    """Changes of the file are then seen late."""
    if not unprivileged_namespaces("--user", "--map-root-user"):
        pytest.skip("needs user namespaces (unshare --user)")
    none = 'echo 0 >/proc/sys/user/max_inotify_instances && exec "$@"'
    said = doctor(None, prefix=("unshare", "--user", "--map-root-user", "sh", "-c", none, "sh"))
    said.line("limits", "warn", "no inotify instances are left", "max_user_instances")


def test_slips_of_the_hand_in_the_environment_are_named(daemon: Daemon) -> None:
    """A variable that means nothing is silent: the program runs with the default."""
    said = doctor(
        daemon,
        GPULOCKD_POLL="x",
        GPU_LOCK_MAX_WAIT_TIEM="5m",
        GPU_LOCK_POLL_INTERVAL="often",
        GPULOCKD_DISABLE="1",
        GPULOCKD_POOL="shop",
    )
    assert said.code == 1
    said.line("environment", "warn", "GPU_LOCK_MAX_WAIT_TIEM means nothing", "did you mean GPU_LOCK_MAX_WAIT_TIME?")
    said.line("environment", "warn", "GPULOCKD_POLL means nothing")
    said.line("environment", "fail", "GPU_LOCK_POLL_INTERVAL", "often")
    said.line("environment", "warn", "GPULOCKD_DISABLE=1", "no lock at all")
    said.line("environment", "warn", "GPULOCKD_POOL=shop is not the pool", "default")


def test_which_file_is_read_and_what_is_wrong_in_it(daemon: Daemon, tmp_path: Path) -> None:
    """Two files that might be meant are the usual reason why a change has no effect."""
    (tmp_path / "gpulockd").mkdir()
    (tmp_path / "gpulockd/config.yml").write_text("gpu_lock:\n  max_wait_time: 5m\n")
    home = str(tmp_path)
    doctor(daemon, XDG_CONFIG_HOME=home).line("config", "ok", f"reads {tmp_path}/gpulockd/config.yml")
    (tmp_path / "config.yml").write_text("gpu_lock:\n  max_wait_time: 5m\n")
    said = doctor(daemon, cwd=tmp_path, XDG_CONFIG_HOME=home)
    said.line("config", "warn", f"{tmp_path}/gpulockd/config.yml is not read here", "--config")
    (tmp_path / "config.yml").write_text("gpu_lock:\n  max_wiat_time: 5m\n")
    said = doctor(daemon, cwd=tmp_path, XDG_CONFIG_HOME=home)
    assert said.code == 1
    said.line("config", "fail", "config.yml:2:3", "did you mean", "gpulockd config check")


def test_a_change_that_the_daemon_has_not_taken_is_said(tmp_path: Path) -> None:
    """Its file and what it goes by differ then, and the next start fails."""
    with one_daemon(config=QUICK) as own:
        file = own.state.parent / "config.yml"
        said = doctor(own)
        said.line("config", "ok", f"the daemon goes by {file}")
        file.write_text("gpu_lock:\n  max_wiat_time: 5m\n")
        os.kill(own.process.pid, signal.SIGHUP)
        # Half of what is written may have been read first.
        until_blocking(lambda: said_so(own, "config", "config.yml:2:3"))
        said = doctor(own)
        said.line("config", "fail", "has not taken the last change", "config.yml:2:3", f"config check {file}")


def test_another_store_than_the_daemons_is_said(daemon: Daemon, server: Server) -> None:
    """Programs there and here would not keep each other out."""
    said = doctor(daemon, GPULOCKD_REDIS_URL=server.url)
    said.line("redis", "warn", "uses another store", daemon.store_url, "unset GPULOCKD_REDIS_URL")
    said.line("redis", "warn", "no append-only file", "appendonly yes")


def test_a_server_that_evicts_or_is_full_or_a_replica_is_a_failure(server: Server) -> None:
    """Each of them loses locks, or grants none."""

    def look() -> Said:
        return doctor(None, GPULOCKD_REDIS_URL=server.url)

    with asked(
        server,
        *("CONFIG", "SET", "maxmemory-policy", "allkeys-lru"),
        after=("CONFIG", "SET", "maxmemory-policy", "noeviction"),
    ):
        look().line("redis", "fail", "maxmemory-policy is allkeys-lru", "noeviction")
    with asked(server, *("CONFIG", "SET", "maxmemory", "1mb"), after=("CONFIG", "SET", "maxmemory", "0")):
        look().line("redis", "fail", "of its maxmemory", "CONFIG SET maxmemory")
    with asked(server, "REPLICAOF", "127.0.0.1", "1", after=("REPLICAOF", "NO", "ONE")):
        look().line("redis", "fail", "is a replica", "primary")


def test_a_server_that_cannot_save_is_a_failure() -> None:
    """It refuses writes as soon as that counts, often after years."""
    binary = valkey_binary()
    if binary is None:
        pytest.skip("no Valkey on this machine")
    with Server(binary, args=("--appendonly", "no")) as server, redis.Redis.from_url(server.url) as admin:
        (server.folder / "dump.rdb").mkdir()
        admin.bgsave()
        until_blocking(lambda: admin.info("persistence")["rdb_last_bgsave_status"] == "err")
        doctor(None, GPULOCKD_REDIS_URL=server.url).line("redis", "fail", "could not save", "disk full")
        (server.folder / "dump.rdb").rmdir()


def test_rights_that_a_user_lacks_are_named(server: Server) -> None:
    """The error of the first lock would name one command."""
    with redis.Redis.from_url(server.url) as admin:
        admin.execute_command("ACL", "SETUSER", "poor", "on", ">word", "~*", "+@read", "+@connection", "+info", "+time")
        try:
            said = doctor(None, GPULOCKD_REDIS_URL=f"unix://poor:word@{server.socket_path}")
            said.line("redis", "fail", "may not write the pool's keys", "gpulockd doctor --redis-acl")
            said.line("redis", "fail", "may not hear the pool's channels")
            said = doctor(None, GPULOCKD_REDIS_URL=f"unix://poor:wrong@{server.socket_path}")
            said.line("redis", "fail", "refused", "--redis-acl")
            assert "wrong@" not in json.dumps(said.findings), "a password was shown"
        finally:
            admin.execute_command("ACL", "DELUSER", "poor")


def test_a_socket_that_is_closed_to_this_user_is_told_from_one_that_is_not_there() -> None:
    """The remedy is a group, not another daemon."""
    closed = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
    if os.getuid() != 0 or subprocess.run([*closed, "true"], capture_output=True).returncode != 0:
        pytest.skip("needs root and setpriv")
    with one_daemon(config=QUICK) as daemon:
        os.chown(daemon.socket, 65534, 65534)
        os.chmod(daemon.socket, 0o600)
        store = daemon.store_url.removeprefix("unix://")
        os.chown(store, 65534, 65534)
        os.chmod(store, 0o700)
        said = doctor(daemon, prefix=closed)
        said.line("daemon", "fail", "not permitted", "as root")
        said.line("redis", "fail", "is closed to user", "as root")
        assert not [one for one in said.findings if one["level"] == "fail" and "serve" in one["remedy"]]


def test_a_command_of_another_version_than_the_daemon_is_said(daemon: Daemon) -> None:
    """After an upgrade the old daemon runs on until somebody restarts it."""
    program = (
        "import gpulockd; gpulockd.__version__ = '99.0'; from gpulockd.cli import main; main(['doctor', '--json'])"
    )
    env = clean_env(GPULOCKD_SOCKET=daemon.socket)
    done = subprocess.run([sys.executable, "-c", program], env=env, cwd="/", capture_output=True, text=True)
    Said(done).line("daemon", "warn", "this command is 99.0", "restart the daemon")


def test_a_card_that_has_failed_is_a_failure(tmp_path: Path) -> None:
    """It is not given out, and nobody sees why jobs wait."""
    stub = build(tmp_path)
    stub.set([StubCard("GPU-aaaa"), StubCard("GPU-bbbb")])
    env: dict[str, Any] = dict(stub.env)
    with one_daemon(config=QUICK | {"gpu_lock_monitor": {"monitor_interval": 1}}, env=env, simulate=0) as daemon:
        doctor(daemon, **env).line("nvml", "ok", "2 GPUs")
        stub.set([StubCard("GPU-aaaa"), StubCard("GPU-bbbb", error=15)])
        until_blocking(lambda: "lost" in [gpu["state"] for gpu in ask(daemon, "gpus")])
        doctor(daemon, **env).line("gpu", "fail", "GPU 1 is lost", "Xid")


async def test_a_slow_server_is_said(server: Server) -> None:
    """Each hand-off costs at least as much."""
    async with proxied(server) as proxy:
        proxy.delay_s = 0.05
        process = await _started(GPULOCKD_REDIS_URL=proxy.url)
        said = Said(process)
    said.line("redis", "warn", "answers after", "hand-off")


async def _started(**env: str) -> subprocess.CompletedProcess[str]:
    """Run the doctor while this loop goes on."""
    where = clean_env(GPULOCKD_SOCKET="/nonexistent/api.sock", **env)
    pipe = asyncio.subprocess.PIPE
    words = command("doctor", "--json")
    made = await asyncio.create_subprocess_exec(*words, env=where, cwd="/", stdout=pipe, stderr=pipe)
    out, err = await asyncio.wait_for(made.communicate(), 90)
    return subprocess.CompletedProcess(words, made.returncode or 0, out.decode(), err.decode())


def test_a_clock_that_is_wrong_is_said(server: Server, tmp_path: Path) -> None:
    """Locks do not mind; who compares the logs of two hosts does."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler (apt-get install gcc libc6-dev)")
    (tmp_path / "clock.c").write_text(CLOCK)
    library = str(tmp_path / "clock.so")
    built = subprocess.run(
        [compiler, "-shared", "-fPIC", "-o", library, str(tmp_path / "clock.c")], capture_output=True
    )
    if built.returncode != 0:
        pytest.skip("no C library headers (apt-get install libc6-dev)")
    said = doctor(None, GPULOCKD_REDIS_URL=server.url, LD_PRELOAD=library)
    warned = said.line("clock", "warn", " s ahead of", "set-ntp")
    found = re.search(r"(\d+) s ahead of", warned["what"])
    assert found is not None and 3590 <= int(found[1]) <= 3630, "less or more where the machine stalls meanwhile"


def test_locks_of_others_in_the_store_are_named(server: Server) -> None:
    """They do not keep our holders out, nor ours theirs: two programs would be on one card."""
    with redis.Redis.from_url(server.url, db=2) as two, redis.Redis.from_url(server.url) as zero:
        two.set("gpu_lock:0", "locked_by_paddleocr.perform_ocr", ex=600)
        lock = zero.lock("gpu_lock:1", timeout=600)
        assert lock.acquire()
        said = doctor(None, GPULOCKD_REDIS_URL=server.url)
        assert said.code == 1
        said.line(
            "foreign keys", "fail", "'gpu_lock:0' in database 2", "paddleocr.perform_ocr", "docs/migrate-yivideo.md"
        )
        said.line("foreign keys", "fail", "'gpu_lock:1' in database 0", "redis-py", "docs/migrate-redis-lock.md")
        two.flushdb()
        lock.release()


def test_many_locks_of_others_are_counted_and_a_name_that_is_no_pools_is_named(server: Server) -> None:
    """Thirty thousand lines say nothing, and take a minute."""
    with redis.Redis.from_url(server.url) as zero:
        zero.mset({f"gpu_lock:{number}": "x" for number in range(3_000)})
        zero.sadd("gpulockd:{fleet}:pools", b"\xff\xfe", "good")
        try:
            said = doctor(None, GPULOCKD_REDIS_URL=server.url)
        finally:
            zero.flushdb()
    assert sum(one["check"] == "foreign keys" for one in said.findings) == 11
    said.line("foreign keys", "fail", "and 2,990 more")
    said.line("redis", "warn", r"\xff\xfe", "SREM gpulockd:{fleet}:pools")


def test_the_redis_that_yivideos_variables_name_is_looked_at_too(server: Server) -> None:
    """Its workers have one of their own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    with Server(server.binary, args=(*NOT_PERSISTENT, "--port", port)) as theirs:
        with redis.Redis.from_url(theirs.url, db=2) as two:
            two.set("gpu_lock:0", "locked_by_faster_whisper", ex=600)
        said = doctor(None, GPULOCKD_REDIS_URL=server.url, REDIS_HOST="127.0.0.1", REDIS_PORT=port)
        said.line("foreign keys", "fail", "'gpu_lock:0' in database 2", "faster_whisper")


def test_the_driver_is_asked_and_what_it_says_is_told(daemon: Daemon, tmp_path: Path) -> None:
    """A driver that was upgraded under a running host is the most frequent trouble of all."""
    stub = build(tmp_path)
    env: dict[str, Any] = dict(stub.env)
    stub.set([StubCard("GPU-aaaa"), StubCard("GPU-bbbb")])
    said = doctor(daemon, **env)
    said.line("nvml", "ok", "2 GPUs", "NVIDIA driver")
    said.line("nvml", "warn", "does not offer", "without --simulate")
    stub.set(init=18)
    doctor(daemon, **env).line("nvml", "fail", "version mismatch", "reboot")
    stub.set(init=4)
    doctor(daemon, **env).line("nvml", "fail", "no permission", "/dev/nvidiactl")
    stub.set(init=9)
    doctor(daemon, **env).line("nvml", "warn", "only simulated GPUs", "modprobe nvidia")


def test_the_doctor_needs_no_redis_before_its_turn() -> None:
    """Its first lines come at once, also where Redis and its library are what is broken."""
    program = (
        "import sys\n"
        "from gpulockd.cli.doctoring import daemon, limits, namespaces, unit\n"
        "from gpulockd.cli.doctoring.finding import Host\n"
        "host = Host()\n"
        "for part in (daemon, unit, namespaces, limits): list(part.look(host))\n"
        "print([name for name in ('redis', 'anyio', 'asyncio', 'pynvml', 'structlog') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], env=clean_env(), cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
