"""The configuration files: which one a daemon started here would read, which it would not, and what is wrong in it."""

from __future__ import annotations

import os
from collections.abc import Iterator

from gpulockd.cli.doctoring.finding import Finding, Host, fail, ok, warn

CHECK = "config"


def look(host: Host) -> Iterator[Finding]:
    """Say which file is read."""
    try:
        from gpulockd.daemon.configuration import load_layers
    except ImportError as missing:
        text = f"the configuration is not looked at without the package {missing.name!r}"
        yield ok(CHECK, f"{text} (a host of clients alone needs none)")
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
