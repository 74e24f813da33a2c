"""The configuration files: which one a daemon started here would read, which it would not, and what is wrong in it."""

from __future__ import annotations

import os
from collections.abc import Iterator

from gpulockd.cli import http
from gpulockd.cli.doctoring.finding import Finding, Host, fail, ok, warn
from gpulockd.cli.talk import CommandError

CHECK = "config"


def look(host: Host) -> Iterator[Finding]:
    """Say which file is read, and whether the daemon has taken what stands in its own."""
    yield from _of_daemon(host)
    try:
        from gpulockd.daemon.configuration import load_layers
    except ImportError as missing:
        text = f"a host of clients alone needs none; a daemon here needs the package {missing.name!r} to read one"
        yield ok(CHECK, text)
        return
    from gpulockd.errors import ConfigError

    there = [path for path in candidates() if os.path.isfile(path)]
    try:
        layers = load_layers(None, _without_settings())
        layers.settings()
    except ConfigError as wrong:
        yield fail(CHECK, wrong.message, "correct it; 'gpulockd config check' says all that is wrong")
        return
    if layers.file is None:
        yield ok(CHECK, "no configuration file: a daemon started here has the defaults")
        return
    yield ok(CHECK, f"a daemon started here reads {os.path.abspath(layers.file)}")
    rest = [path for path in there if not os.path.samefile(path, layers.file)]
    if rest:
        text = f"{', '.join(rest)} is not read here, since {layers.file} comes first"
        yield warn(CHECK, text, "keep one of them, or name it with --config or GPULOCKD_CONFIG")


def _of_daemon(host: Host) -> Iterator[Finding]:
    """What the daemon that runs goes by; nothing where it does not answer, which others say."""
    if host.socket is None or not host.hello:
        return
    try:
        with http.Daemon(host.socket) as daemon:
            said = daemon.get("/api/v1/config")
    except CommandError:
        return
    file, trouble = said.get("file"), said.get("trouble")
    if trouble:
        remedy = f"correct it; 'gpulockd config check {file or ''}' says all that is wrong"
        yield fail(CHECK, f"the daemon has not taken the last change: {trouble}", remedy)
    elif file:
        yield ok(CHECK, f"the daemon goes by {file}")


def _without_settings() -> dict[str, str]:
    """The environment without the settings that it says, which are looked at by themselves."""
    ours = ("GPULOCKD_", "GPU_LOCK_")
    return {name: text for name, text in os.environ.items() if name == "GPULOCKD_CONFIG" or not name.startswith(ours)}


def candidates() -> tuple[str, ...]:
    """Where a configuration file may lie, the first one first."""
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    named = os.environ.get("GPULOCKD_CONFIG")
    usual = ("config.yml", os.path.join(home, "gpulockd/config.yml"), "/etc/gpulockd/config.yml")
    return (named, *usual) if named else usual
