"""The configuration's file, its environment and its errors; the folders and the small services around them."""

from __future__ import annotations

import io
import json
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import structlog

from gpulockd import places
from gpulockd.daemon import folders, logs
from gpulockd.daemon.configuration import environment, load, load_layers, parsed, variables
from gpulockd.daemon.notify import notify, watchdog_interval_s
from gpulockd.daemon.plan import Options, said_by
from gpulockd.errors import ConfigError
from gpulockd.settings import Settings, checked, fitted, flat, leaves, value_at


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """The path of a configuration file to write."""
    return tmp_path / "config.yml"


@pytest.fixture
def _plain_logging() -> Iterator[None]:
    root = logging.getLogger()
    before = root.handlers[:], root.level, logging.raiseExceptions
    yield
    root.handlers[:], logging.raiseExceptions = before[0], before[2]
    root.setLevel(before[1])
    structlog.reset_defaults()


def test_without_a_file_the_defaults_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon starts with nothing configured."""
    monkeypatch.chdir(tmp_path)
    loaded = load(environ={"XDG_CONFIG_HOME": str(tmp_path)})
    assert loaded.settings.gpu_lock.poll_interval == 2.0
    assert loaded.file is None or loaded.file.startswith("/etc/")


def test_environment_goes_over_file_and_durations_may_have_units(config: Path) -> None:
    """Each layer covers the one below, value by value."""
    config.write_text("gpu_lock:\n  poll_interval: 500ms\n  max_wait_time: 5m\nsession:\n  ttl: 40\n")
    env = {
        "GPU_LOCK_POLL_INTERVAL": "0.5",
        "GPU_LOCK_MONITOR_TIMEOUT_LEVELS_WARNING": "5m",
        "GPU_LOCK_MONITOR_CLEANUP_MAX_RETRY": "7",
        "GPU_LOCK_EXPONENTIAL_BACKOFF": "no",
        "GPULOCKD_SESSION_TTL": "30s",
        "GPULOCKD_REDIS_URL": "redis://h/1",
        "GPULOCKD_WEB_ALLOWED_HOSTS": "a.example, b.example",
        "GPULOCKD_GPUS_SIMULATE": "0",
        "GPULOCKD_POOL": "lab",
        "GPULOCKD_SETTLE_GRACE": "",
        "GPULOCKD_LEASE": "not ours to read here",
    }
    settings = load(str(config), env).settings
    assert (settings.gpu_lock.poll_interval, settings.gpu_lock.max_wait_time) == (0.5, 300.0)
    assert settings.gpu_lock_monitor.timeout_levels.warning == 300.0
    assert settings.gpu_lock_monitor.cleanup.max_retry == 7
    assert settings.gpu_lock.exponential_backoff is False
    assert (settings.session.ttl, settings.redis.url, settings.pool) == (30.0, "redis://h/1", "lab")
    assert settings.web.allowed_hosts == ("a.example", "b.example")
    assert (settings.gpus.simulate, settings.settle.grace) == (0, 10.0)


def test_every_setting_has_one_variable() -> None:
    """Two settings under one name would make the environment ambiguous; what users name is JSON under one."""
    named = {path.partition(".*")[0] for path in leaves()}
    assert {path for path, _ in variables().values()} == named
    assert len(variables()) == len(named)
    assert variables()["GPU_LOCK_MONITOR_HEARTBEAT_INTERVAL"][0] == "gpu_lock_monitor.heartbeat.interval"


def test_every_default_can_be_said_by_its_variable() -> None:
    """`config show` must be a list that can be put into a unit file."""
    whole = msgspec.to_builtins(Settings())
    said = {}
    for name, (path, _) in variables().items():
        value = value_at(whole, path)
        if value is not None:
            said[name] = value if isinstance(value, str) else json.dumps(value)
    assert flat(environment.read(said).tree) == flat(checked(whole))


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("gpu_lock:\n  pol_interval: 1\n", "2:3", "unknown key 'gpu_lock.pol_interval'; did you mean 'poll_interval'"),
        ("gpu_lok: {}\n", "1:1", "did you mean 'gpu_lock'"),
        ("alert: []\n", "1:1", "did you mean 'alerts'"),
        ("gpu_lock_monitor:\n  heartbeat: {intervall: 5}\n", "2:15", "did you mean 'interval'"),
        ("pool: a\nsession:\n  keepalive: soon\n", "3:3", "'soon' is not a duration"),
        ("gpu_lock_monitor:\n  cleanup:\n    max_retry: many\n", "3:5", "'many' is not a whole number"),
        ("session:\n  ttl: 5\n", "2:3", "set ttl to at least"),
        ("gpu_lock: 5\n", "1:1", "5 is not a block"),
        ("settle: {policy: sometimes}\n", "1:10", "none of after_loss"),
        ("a: b: c\n", "1:5", "mapping values"),
        ("pool: a\npool: b\n", "2:1", "duplicate key"),
        ("- a\n", "1:1", "blocks such as"),
        ("tasks:\n  w:\n    max_wait_tim: 1\n", "3:5", "did you mean 'max_wait_time'"),
        ("tasks: {a.b: {warning: 2h}}\n", "1:15", "soft_timeout"),
        ("alerts:\n  - name: a\n    condition: x\n    levl: y\n", "4:5", "did you mean 'level'"),
        ("alerts:\n  - {name: a, condition: x}\n  - {name: b, condition: x, level: y}\n", "3:29", "none of"),
        ("session:\n  keepalive: 10\n", "2:3", "set ttl to at least"),
        ("a: &a {poll_interval: 99d}\n", "1:1", "unknown key 'a'"),
        ("gpu_lock: {<<: {poll_interval: 99d}}\n", "1:11", "too long"),
        ("gpu_lock:\n  pol_interval:\n", "2:3", "did you mean"),
        ("? [a, b]\n: 1\n", "1:3", "unknown key"),
        ("pool: 2001-01-01\n", "1:1", "put it in quotes"),
        ("gpu_lock: {poll_interval: !!binary aGk=}\n", "1:12", "not a duration"),
    ],
)
def test_errors_name_file_line_and_column(config: Path, text: str, place: str, words: str) -> None:
    """The user goes straight to the spot."""
    config.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(str(config), {})
    message = str(caught.value)
    assert message.startswith(f"{config}:{place}: ")
    assert words in message


def test_errors_of_the_environment_name_the_variable(config: Path) -> None:
    """The file is not at fault there."""
    config.write_text("gpu_lock: {poll_interval: 1}\n")
    for name, value in {
        "GPU_LOCK_POLL_INTERVAL": "soon",
        "GPU_LOCK_MONITOR_ENABLED": "perhaps",
        "GPU_LOCK_MONITOR_CLEANUP_MAX_RETRY": "x",
        "GPULOCKD_SETTLE_POLICY": "x",
        "GPU_LOCK_MAX_WAIT_TIME": "inf",
        "GPU_LOCK_LOCK_TIMEOUT": "9" * 5000,
        "GPULOCKD_GPUS_SIMULATE": "9" * 5000,
        "GPULOCKD_CONFIG_STABLE_SAMPLES": "-1",
        "GPULOCKD_TASKS": "{",
        "GPULOCKD_PROFILES": "[" * 100_000,
        "GPULOCKD_ROLLOUT_STAGES": "1",
        "GPULOCKD_POOL": "\udcff",
        "GPULOCKD_WEB_ALLOWED_HOSTS": "[1]",
    }.items():
        with pytest.raises(ConfigError, match=f"^{name}: "):
            load(str(config), {name: value})


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe",
        b"a: \x00",
        b"&a [*a]",
        b"gpu_lock: &a {x: *a}",
        b"[" * 5000,
        b"{a: " * 5000,
        b"a: " + b"9" * 5000,
        b"a: 2001-99-99 99:99:99",
        b"gpu_lock: !!python/object:os.system [1]",
        b"- " * 5000,
        b"!!set {a, b}",
        b"!!omap [a: 1]",
        b"%YAML 9.9\n---\na: 1",
        b"a: 1\n---\nb: 2",
        b"a: *nowhere",
        b"? {a: 1}\n: {b: 1}",
        b"<<: 5",
        b"x" * 300_000,
        b"a: &a [1,1,1,1,1,1,1,1,1]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n"
        b"d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: [*d,*d,*d,*d,*d,*d,*d,*d,*d]",
    ],
)
def test_whatever_a_file_is_the_answer_is_a_config_error(content: bytes) -> None:
    """A daemon that follows its file must outlive everything that may stand there for a moment."""
    with pytest.raises(ConfigError) as caught:
        parsed(content, "config.yml")
    assert caught.value.message.startswith("config.yml")
    assert len(caught.value.message) < 500


def test_each_value_says_where_it_comes_from(config: Path) -> None:
    """`config show --origin`, and the words of an error."""
    config.write_text(
        "gpu_lock: {poll_interval: 1, max_wait_time: 5m}\n"
        "tasks:\n  shop.render:\n    max_wait_time: 2h\nalerts:\n  - {name: a, condition: timeout_rate > 0.5}\n"
    )
    env = {"GPU_LOCK_MAX_WAIT_TIME": "7", "GPULOCKD_TASKS": '{"ocr": {"max_wait_time": "1m"}}'}
    layers = load_layers(str(config), env)
    live = {"gpu_lock": {"lock_timeout": 60.0}, "tasks": {"shop.render": {"hard_timeout": 90.0}}}
    found = {path: (o.layer, o.where, o.value) for path, o in layers.origins(live, revision=7).items()}
    assert found["gpu_lock.poll_interval"] == ("file", f"{config}:1:12", 1.0)
    assert found["gpu_lock.max_wait_time"] == ("environment", "GPU_LOCK_MAX_WAIT_TIME", 7.0)
    assert found["gpu_lock.lock_timeout"] == ("live", "revision 7", 60.0)
    assert found["gpu_lock.max_poll_interval"] == ("default", "default", 10.0)
    assert found["tasks.shop.render.max_wait_time"] == ("file", f"{config}:4:5", 7200.0)
    assert found["tasks.shop.render.hard_timeout"] == ("live", "revision 7", 90.0)
    assert found["tasks.ocr.max_wait_time"] == ("environment", "GPULOCKD_TASKS", 60.0)
    assert found["alerts.rules"][:2] == ("file", f"{config}:5:1")
    assert found["profiles.optimized.poll_interval"] == ("default", "default", 0.5)
    assert layers.base["gpu_lock"] == {"poll_interval": 1.0, "max_wait_time": 7.0}


def test_an_error_names_the_layer_that_had_the_last_word(config: Path) -> None:
    """The file alone was good; what was said after it does not fit to it."""
    config.write_text("gpu_lock:\n  max_poll_interval: 1\n  poll_interval: 1\n")
    layers = load_layers(str(config), {})
    with pytest.raises(ConfigError, match=r"^revision 3: gpu_lock\.poll_interval: "):
        layers.settings({"gpu_lock": {"poll_interval": 2.0}}, revision=3)
    with pytest.raises(ConfigError, match=r"^live: gpu_lock\.poll_interval: "):
        layers.settings({"gpu_lock": {"max_poll_interval": 0.5}})
    with pytest.raises(ConfigError, match=r"^GPU_LOCK_MAX_POLL_INTERVAL: gpu_lock\.poll_interval: "):
        load(str(config), {"GPU_LOCK_MAX_POLL_INTERVAL": "0.5"})
    assert layers.settings({"gpu_lock": {"max_poll_interval": 3.0, "poll_interval": 2.0}}).gpu_lock.poll_interval == 2.0


def test_lists_and_names_are_json_in_the_environment() -> None:
    """Every key can be set by the environment, whatever its kind."""
    said = environment.read(
        {
            "GPULOCKD_ROLLOUT_STAGES": '[["10%", "1h"], [0.5, 7200]]',
            "GPULOCKD_ALERTS_RULES": '[{"name": "a", "condition": "timeout_rate > 0.5"}]',
            "GPULOCKD_PROFILES": '{"mine": {"poll_interval": "100ms", "exponential_backoff": false}}',
            "GPULOCKD_CONFIG_ROLLBACK_TIMEOUT_RATE": "20%",
            "GPULOCKD_WEB_ALLOWED_HOSTS": '["a", "b"]',
        }
    ).tree
    settings = fitted(said)
    assert settings.rollout.stages == ((0.1, 3600.0), (0.5, 7200.0))
    assert settings.alerts.rules[0].condition == "timeout_rate > 0.5"
    assert settings.profiles["mine"].poll_interval == 0.1
    assert settings.config.rollback_timeout_rate == 0.2
    assert settings.web.allowed_hosts == ("a", "b")


def test_empty_blocks_are_defaults_and_a_misspelt_variable_is_said(config: Path) -> None:
    """A block with its lines commented out must start; other software may own the variable, so it is no error."""
    config.write_text("gpu_lock:\ntasks:\n  whisper:\nqueue: {priority_step: 0}\n")
    with structlog.testing.capture_logs() as said:
        settings = load(str(config), {"GPU_LOCK_POL_INTERVAL": "1", "GPULOCKD_TOKEN": "1"}).settings
    assert (settings.queue.priority_step, settings.tasks) == (0, {})
    assert [line["message"] for line in said] == [
        "GPU_LOCK_POL_INTERVAL is no setting; did you mean GPU_LOCK_POLL_INTERVAL?"
    ]


def test_a_named_file_must_exist(tmp_path: Path) -> None:
    """A typing error must not mean the defaults."""
    with pytest.raises(ConfigError, match=r"nowhere\.yml: no such"):
        load(None, {"GPULOCKD_CONFIG": str(tmp_path / "nowhere.yml")})


def test_folders_follow_flag_environment_and_user(tmp_path: Path) -> None:
    """The daemon and its clients must meet in the same folder."""
    run, state = tmp_path / "run", tmp_path / "state"
    run.mkdir()
    me = os.getuid()
    xdg = {"XDG_RUNTIME_DIR": str(run), "XDG_STATE_HOME": str(state), "HOME": "/home/x"}
    own = folders.resolve(environ=xdg, uid=me)
    assert (own.runtime, own.state) == (f"{run}/gpulockd", f"{state}/gpulockd")
    assert own.api_socket == places.runtime_candidates(xdg, me)[0][1] == f"{run}/gpulockd/api.sock"
    foreign = folders.resolve(environ={**xdg, "XDG_STATE_HOME": ""}, uid=4242)
    assert (foreign.runtime, foreign.state) == ("/tmp/gpulockd-4242", "/home/x/.local/state/gpulockd")
    root = folders.resolve(environ={}, uid=0)
    assert (root.runtime, root.state) == ("/run/gpulockd", "/var/lib/gpulockd")
    unit = folders.resolve(environ={"RUNTIME_DIRECTORY": "/run/a:/run/b", "STATE_DIRECTORY": "/var/lib/a"}, uid=me)
    assert (unit.runtime, unit.state) == ("/run/a", "/var/lib/a")
    flag = folders.resolve(f"{tmp_path}/x/my.sock", f"{tmp_path}/s", environ=xdg, uid=me)
    assert (flag.runtime, flag.api_socket, flag.state) == (f"{tmp_path}/x", f"{tmp_path}/x/my.sock", f"{tmp_path}/s")
    named = folders.resolve(environ={"GPULOCKD_SOCKET": str(run)}, uid=me)
    assert (named.runtime, named.api_socket) == (str(run), f"{run}/api.sock")


def test_clients_find_the_folder_in_which_a_daemon_was(tmp_path: Path) -> None:
    """`store.json` alone is enough, so that locks go on while the daemon is down."""
    env = {"XDG_RUNTIME_DIR": str(tmp_path)}
    folder = tmp_path / "gpulockd"
    folder.mkdir()
    assert places.find_runtime({"GPULOCKD_SOCKET": str(folder)}) is None
    (folder / "store.json").write_text('{"pool": "lab", "url": "unix:///x"}')
    assert places.find_runtime(env) == (str(folder), f"{folder}/api.sock")
    assert places.read_store_note(str(folder)) == {"pool": "lab", "url": "unix:///x"}
    (folder / "store.json").write_text("half")
    assert places.read_store_note(str(folder)) is None


def test_a_socket_path_too_long_for_the_kernel_is_refused(tmp_path: Path) -> None:
    """The kernel's own error would be 'AF_UNIX path too long', of a file the user has never heard of."""
    with pytest.raises(ConfigError, match="unix socket takes 100"):
        folders.resolve(f"{tmp_path}/{'x' * 100}/api.sock", environ={})


def test_folders_are_made_private_and_a_strangers_folder_is_refused(tmp_path: Path) -> None:
    """In /tmp anyone may have been there first."""
    own = folders.Folders(runtime=f"{tmp_path}/r", state=f"{tmp_path}/deep/s", api_socket=f"{tmp_path}/r/api.sock")
    folders.prepare(own)
    folders.prepare(own)
    assert os.stat(own.runtime).st_mode & 0o777 == os.stat(own.state).st_mode & 0o777 == 0o700
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="--state-dir"):
        folders.prepare(folders.Folders(runtime=own.runtime, state=f"{tmp_path}/file", api_socket=own.api_socket))


def test_notify_speaks_to_path_and_abstract_sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """systemd uses either kind; without systemd nothing happens."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not notify("READY=1")
    for address, bound in ((f"{tmp_path}/n", f"{tmp_path}/n"), (f"@gpulockd-{os.getpid()}", None)):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(bound or "\0" + address[1:])
            manager.settimeout(5)
            monkeypatch.setenv("NOTIFY_SOCKET", address)
            assert notify("READY=1", "STATUS=2 GPUs")
            assert manager.recv(100) == b"READY=1\nSTATUS=2 GPUs"
    assert not notify("nobody listens")


def test_the_watchdog_is_fed_twice_per_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once would be too late under load; and another process's watchdog is not ours."""
    monkeypatch.setenv("WATCHDOG_USEC", "20000000")
    assert watchdog_interval_s() == 10.0
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert watchdog_interval_s() is None


@pytest.mark.usefixtures("_plain_logging")
def test_logs_are_json_off_the_terminal_and_sentences_on_it() -> None:
    """Machines read fields, people read sentences; libraries go the same way."""
    out = io.StringIO()
    logs.set_up(stream=out)
    structlog.get_logger("t").info("store.started", pid=7, message="the private store runs")
    logging.getLogger("uvicorn.error").warning("slow %s", "client")
    logging.getLogger("x").debug("not shown")
    ours, foreign = (json.loads(line) for line in out.getvalue().splitlines())
    assert (ours["event"], ours["message"], ours["pid"]) == ("store.started", "the private store runs", 7)
    assert (foreign["event"], foreign["message"], foreign["level"]) == ("uvicorn.error", "slow client", "warning")
    out = io.StringIO()
    logs.set_up(stream=out, json=False)
    structlog.get_logger("u").info("store.started", message="the private store runs")
    structlog.get_logger("u").error("store.gone")
    first, second = out.getvalue().splitlines()
    assert "the private store runs" in first
    assert "store.started" in first
    assert "store.gone" in second


def test_the_command_line_goes_over_file_and_environment_and_says_so(config: Path) -> None:
    """`config show` once said the port of the file while the daemon listened at another."""
    config.write_text("web: {listen: '127.0.0.1:1'}\nredis: {url: 'redis://a'}\n")
    said = said_by(Options(listen="127.0.0.1:2", redis="embedded", simulate=0))
    layers = load_layers(str(config), {"GPULOCKD_WEB_LISTEN": "127.0.0.1:3"}, command=said)
    found = {path: (o.layer, o.where, o.value) for path, o in layers.origins().items()}
    assert found["web.listen"] == ("command line", "--listen", "127.0.0.1:2")
    assert found["gpus.simulate"] == ("command line", "--simulate", 0)
    assert found["redis.url"] == ("command line", "--redis", "embedded")
    assert said_by(Options()) == {}


def test_an_empty_file_is_told_from_one_that_says_nothing(config: Path) -> None:
    """An editor or a full disk leaves one behind; who means the defaults writes {}."""
    for content, is_empty in (("", True), (" \n\n", True), ("{}", False), ("# nothing\n", False)):
        config.write_text(content)
        assert load_layers(str(config), {}).is_empty is is_empty


@pytest.mark.parametrize(
    "text",
    [
        "notify: {webhooks: {ops: {secret: *SEKRET}}}",
        "notify: {webhooks: {ops: {secret:SEKRET}}}",
        "notify: {webhooks: {ops: {timeout: SEKRET}}}",
        "notify: {webhooks: {ops: {level: SEKRET}}}",
        "notify: {webhooks: {ops: {secret: [SEKRET]}}}",
        "notify: {webhooks: {ops: SEKRET}}",
        "notify: {webhooks: SEKRET}",
        "notify: {apprise: {p: {urls: tgram://SEKRET/x}}}",
        "notify: {emails: {m: {to: SEKRET}}}",
        "notify: {emails: {m: {port: SEKRET}}}",
        "notify: {log: SEKRET}",
        "notify: SEKRET",
        "redis: SEKRET",
        "redis: redis://:SEKRET@host/0",
        "redis: {url: *SEKRET}",
        "notify:\n  emails:\n    m:\n      password: SEKRET\n      password: SEKRET2\n",
        "notify: {emails: {m: {password: !!int SEKRET}}}",
        "notify: {emails: {m: {password: !SEKRET!x y}}}",
        "notify: {emails: {m: {password: 'SEKRET' 'SEKRET'}}}",
        "notify: {emails: {m: {password: &SEKRET a}, n: {password: &SEKRET b, ports: 1}}}",
        "SEKRET",
    ],
)
@pytest.mark.filterwarnings("error")
def test_an_error_never_shows_what_may_be_a_secret(text: str) -> None:
    """Errors of the file go into the log, and into the audit that every user of the host can read."""
    with pytest.raises(ConfigError) as refused:
        parsed(text.encode(), "config.yml")
    assert "SEKRET" not in refused.value.message
    assert refused.value.message.startswith("config.yml:1:") or "password" in text
