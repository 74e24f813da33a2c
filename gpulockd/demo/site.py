"""Where the demo takes place: the usual folders and port, or where another gpulockd has them, private ones."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from gpulockd import places
from gpulockd.cli.talk import USAGE, CommandError, say
from gpulockd.daemon import configuration, folders
from gpulockd.daemon.folders import Folders
from gpulockd.errors import ConfigError

PORTS_TRIED = 100


class Site(NamedTuple):
    """The words of `gpulockd serve`, and the folders that its daemon will have."""

    words: list[str]
    folders: Folders


@contextmanager
def choose(args: Namespace, words: list[str]) -> Iterator[Site]:
    """Choose folders and port, and say what differs from the usual; a private folder goes with the block.

    :raises CommandError: if the configuration cannot be used
    """
    words = [word for word in words if word not in ("--no-demo", "--stop-store")] + ["--stop-store"]
    try:
        listen = args.listen or configuration.load(args.config).settings.web.listen
        usual = folders.resolve(args.socket, args.state_dir)
    except ConfigError as wrong:
        raise CommandError(wrong.message, "correct it, or name another file with --config", USAGE) from None
    if args.listen is None:
        words += ["--listen", _free(listen)]
    if args.socket or args.state_dir or not (_is_taken(usual.runtime) or _is_taken(usual.state)):
        yield Site(words, usual)
        return
    private = tempfile.mkdtemp(prefix="gpulockd-demo-")
    say(f"another gpulockd uses {usual.runtime}; this one keeps to itself in {private}")
    say(f"commands and programs reach this one only with GPULOCKD_SOCKET={private} in their environment")
    state = os.path.join(private, "state")
    words += ["--socket", private, "--state-dir", state]
    if args.simulate is None:
        say("its GPUs are simulated, since the real ones belong to the other")
        words += ["--simulate", "2"]
    try:
        yield Site(words, folders.resolve(private, state))
    finally:
        shutil.rmtree(private, ignore_errors=True)


def _is_taken(folder: str) -> bool:
    """Whether a daemon holds this folder."""
    try:
        descriptor = os.open(os.path.join(folder, places.DAEMON_LOCK), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _free(listen: str) -> str:
    """The wanted host and port, or the next free port, which is said."""
    host, _, port = listen.rpartition(":")
    if not port.isdigit() or port == "0":
        return listen
    for number in range(int(port), min(int(port) + PORTS_TRIED, 65536)):
        if _can_bind(host.strip("[]"), number):
            if number != int(port):
                say(f"port {port} is taken, so HTTP is on port {number}")
            return f"{host}:{number}"
    return listen


def _can_bind(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as door:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            door.bind((host, port))
        except OSError:
            return False
    return True
