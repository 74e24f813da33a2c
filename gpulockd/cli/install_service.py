"""`gpulockd install-service`: the units of this program, written where systemd finds them, enabled and started.

Its law: it says each file before it writes it and each command before it runs it, and `--dry-run` does neither.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import gpulockd
from gpulockd.cli.options import Parser
from gpulockd.cli.talk import NEGATIVE, NOT_PERMITTED, OK, USAGE, CommandError

SHIPPED_PROGRAM = "/usr/bin/gpulockd"
"""What the shipped units run; the path of this program takes its place."""

SHIPPED_IN = "share/gpulockd/systemd"
"""Where an installation has the units, below its prefix."""

HIDDEN = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")
"""What ProtectHome= and PrivateTmp= hide from the service."""

SOCKETS = ("gpulockd-guard.socket", "gpulockd-http.socket", "gpulockd-http6.socket")
STORE = "gpulockd-store.service"
DAEMON = "gpulockd.service"
FAILED = "gpulockd-failed@.service"
BACKUP = "gpulockd-backup.service"
TIMER = "gpulockd-backup.timer"
DROP_IN = "tcp.conf"

UNITS = "/etc/systemd/system"
REDIS_URL = "/etc/gpulockd/credentials/redis.url"
SCHEMES = ("redis", "rediss", "unix", "redis+sentinel", "redis+cluster")
NEW_HOME = "python3 -m venv /opt/gpulockd && /opt/gpulockd/bin/pip install 'gpulockd[server]'"


@dataclass(frozen=True)
class File:
    """One file to write."""

    path: str
    text: str
    mode: int = 0o644


@dataclass(frozen=True)
class Work:
    """All that is to be done: files first, then commands."""

    files: tuple[File, ...]
    commands: tuple[tuple[str, ...], ...]


def main(words: Sequence[str]) -> int:
    """Install or remove the service."""
    args = parser().parse_args(words)
    _check_redis(args.redis, args.user)
    if not args.dry_run:
        _check_rights(args.user, args.prefix, args.uninstall)
    if args.uninstall:
        return _uninstall(args.user, args.prefix, args.dry_run)
    program = args.program or _program()
    if not args.user:
        _check_visible(program, own=args.program is None)
    work = planned(program, user=args.user, redis=args.redis)
    _write(work.files, args.prefix, args.dry_run)
    if args.prefix:
        print(f"nothing was started: {args.prefix} is not this system's root")
        return OK
    for command in work.commands:
        _run(command, args.dry_run)
    if not args.dry_run:
        print(_next_step(args.user))
    return OK


def parser() -> Parser:
    """The options."""
    made = Parser("install-service", "Install gpulockd as a systemd service, enable it and start it.")
    made.add_argument("--user", action="store_true", help="for this user alone (systemctl --user), no root needed")
    made.add_argument("--redis", metavar="URL", help="a Redis or Valkey of your own; default: a private one")
    made.add_argument("--prefix", metavar="DIR", default="", help="write below DIR, for an image; starts nothing")
    made.add_argument("--program", metavar="PATH", help="the gpulockd that the units run; default: this one")
    made.add_argument("--uninstall", action="store_true", help="stop it and remove the units; state stays")
    made.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    return made


def planned(program: str, *, user: bool = False, redis: str | None = None) -> Work:
    """Return what an installation does.

    :param program: absolute path of the `gpulockd` that the units run
    :param redis: URL of an external store, None for the private one
    """
    if user:
        names = (DAEMON, STORE, BACKUP, TIMER)
        files = [File(f"{_user_units()}/{name}", _unit(f"user/{name}", program)) for name in names]
        control = ("systemctl", "--user")
        steps = (("daemon-reload",), ("enable", DAEMON, TIMER), ("restart", DAEMON), ("start", TIMER))
        return Work(tuple(files), tuple((*control, *step) for step in steps))
    files = [File(f"{UNITS}/{name}", _unit(name, program)) for name in (DAEMON, STORE, FAILED, *SOCKETS, BACKUP, TIMER)]
    files.append(File("/etc/sysusers.d/gpulockd.conf", _unit("gpulockd.sysusers", program)))
    files.append(File("/etc/tmpfiles.d/gpulockd.conf", _unit("gpulockd.tmpfiles", program)))
    if redis:
        files.append(File(REDIS_URL, redis + "\n", 0o600))
        if urlsplit(redis).scheme != "unix":
            files += [File(f"{UNITS}/{unit}.d/{DROP_IN}", _unit(DROP_IN, program)) for unit in (DAEMON, BACKUP)]
    enabled = (*SOCKETS, DAEMON, TIMER) if redis else (*SOCKETS, STORE, DAEMON, TIMER)
    commands = (
        ("systemd-sysusers", "/etc/sysusers.d/gpulockd.conf"),
        ("systemd-tmpfiles", "--create", "/etc/tmpfiles.d/gpulockd.conf"),
        ("systemctl", "daemon-reload"),
        ("systemctl", "enable", *enabled),
        ("systemctl", "start", *SOCKETS),
        ("systemctl", "restart", DAEMON),
        ("systemctl", "start", TIMER),
    )
    return Work(tuple(files), commands)


def _unit(name: str, program: str) -> str:
    """Return the text of a shipped file with `program` in it."""
    checkout = Path(gpulockd.__file__).parent.parent / "systemd"
    for folder in (checkout, Path(sys.prefix, SHIPPED_IN)):
        if (folder / DAEMON).exists():
            return (folder / name).read_text(encoding="utf-8").replace(SHIPPED_PROGRAM, program)
    raise CommandError("the units are missing from this installation", "install gpulockd again")


def _user_units() -> str:
    return os.path.join(os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config"), "systemd/user")


def _program() -> str:
    beside = os.path.join(os.path.dirname(os.path.abspath(sys.executable)), "gpulockd")
    found = beside if os.access(beside, os.X_OK) else shutil.which("gpulockd")
    if found is None:
        raise CommandError("no program 'gpulockd' beside this Python or in PATH", "name it with --program", USAGE)
    return os.path.abspath(found)


def _check_rights(user: bool, prefix: str, uninstall: bool) -> None:
    if not user and not prefix and os.getuid() != 0:
        raise CommandError(
            f"install-service: {'removing' if uninstall else 'installing'} the system's service takes root",
            "sudo gpulockd install-service, or for yourself: gpulockd install-service --user",
            NOT_PERMITTED,
        )
    if not prefix and not os.path.isdir("/run/systemd/system"):
        raise CommandError(
            "install-service: this system is not run by systemd", "start 'gpulockd serve' by what runs it", NEGATIVE
        )


def _check_redis(url: str | None, user: bool) -> None:
    if url is None:
        return
    if user:
        raise CommandError("install-service: --redis is for the system's service", "config.yml: redis.url", USAGE)
    if urlsplit(url).scheme not in SCHEMES:
        raise CommandError(f"install-service: --redis: not one of {', '.join(SCHEMES)}", "redis://HOST:6379/0", USAGE)


def _check_visible(program: str, *, own: bool) -> None:
    """Refuse a program that the service could not see or run: units hide homes and have no rights there."""
    parts = [program, os.path.realpath(program)]
    if own:
        parts += [os.path.realpath(sys.executable), str(Path(gpulockd.__file__).resolve())]
    for part in parts:
        if part.startswith(tuple(f"{folder}/" for folder in HIDDEN)):
            raise CommandError(
                f"install-service: {part} lies where the service cannot see it",
                f"install it for all: {NEW_HOME} && /opt/gpulockd/bin/gpulockd install-service",
                USAGE,
            )
    if not os.path.isabs(program) or " " in program:
        raise CommandError(f"install-service: --program {program!r}: an absolute path without spaces", "", USAGE)


def _write(files: Sequence[File], prefix: str, dry: bool) -> None:
    for file in files:
        path = prefix.rstrip("/") + file.path
        if _text(path) == file.text:
            print(f"as it was: {path}")
            continue
        print(f"{'would write' if dry else 'writing'}: {path}")
        if dry:
            continue
        folder = os.path.dirname(path)
        try:
            os.makedirs(folder, 0o700 if file.mode == 0o600 else 0o755, exist_ok=True)
            beside = f"{path}.new"
            with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, file.mode), "w", encoding="utf-8") as made:
                os.fchmod(made.fileno(), file.mode)
                made.write(file.text)
            os.replace(beside, path)
        except OSError as refused:
            raise CommandError(f"{path}: {refused.strerror}", "", NOT_PERMITTED) from None


def _text(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return None


def _run(command: Sequence[str], dry: bool, *, must: bool = True) -> None:
    print(f"{'would run' if dry else 'running'}: {shlex.join(command)}", flush=True)
    if dry:
        return
    try:
        code = subprocess.run(command, check=False).returncode
    except FileNotFoundError:
        raise CommandError(f"{command[0]} is not installed", "apt-get install systemd") from None
    if code and must:
        raise CommandError(
            f"{shlex.join(command)} ended with {code}", "systemctl status 'gpulockd*'; journalctl -u gpulockd"
        )


def _uninstall(user: bool, prefix: str, dry: bool) -> int:
    """Stop and remove; what holds state, configuration or secrets stays."""
    work = planned(SHIPPED_PROGRAM, user=user, redis="tcp://")
    control = ("systemctl", "--user") if user else ("systemctl",)
    units = (TIMER, DAEMON, STORE) if user else (TIMER, DAEMON, *SOCKETS, STORE)
    if not prefix:
        _run((*control, "disable", "--now", *units), dry, must=False)
    for file in work.files:
        path = prefix.rstrip("/") + file.path
        if file.path != REDIS_URL and os.path.lexists(path):
            print(f"{'would remove' if dry else 'removing'}: {path}")
            if not dry:
                os.unlink(path)
    if not prefix:
        _run((*control, "daemon-reload"), dry)
    kept = "~/.local/state/gpulockd" if user else "/var/lib/gpulockd, /etc/gpulockd and the user gpulockd"
    print(f"left as they are: {kept}")
    return OK


def _next_step(user: bool) -> str:
    if user:
        return "gpulockd runs; 'gpulockd status' shows it. To keep it after logout: loginctl enable-linger"
    return "gpulockd runs; 'gpulockd status' shows it, 'sudo gpulockd token' the token for HTTP"
