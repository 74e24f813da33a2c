"""What the environment says: settings that there are, values that they take, and slips of the hand."""

from __future__ import annotations

import os
from collections.abc import Iterator

from gpulockd.cli.doctoring.finding import Finding, Host, fail, ok, warn
from gpulockd.errors import ConfigError
from gpulockd.settings.names import meant
from gpulockd.settings.variables import value_said, variables

CHECK = "environment"

OTHERS = frozenset(
    {
        *("GPULOCKD_SOCKET", "GPULOCKD_CONFIG", "GPULOCKD_DEBUG", "GPULOCKD_DISABLE", "GPULOCKD_STORE_UNIT"),
        *("GPULOCKD_LEASE", "GPULOCKD_TOKEN", "GPULOCKD_URL", "GPULOCKD_MACHINE", "GPULOCKD_BOOT_ID"),
        *("GPULOCKD_DEMO_CARDS", "GPULOCKD_API_TOKEN"),
    }
)
"""Names that are no settings and mean something all the same."""


def look(host: Host) -> Iterator[Finding]:
    """Say which variables mean nothing, and which say what their setting does not take."""
    known = variables()
    ours = {name: text for name, text in os.environ.items() if name.startswith(("GPULOCKD_", "GPU_LOCK_"))}
    troubles = [*_troubles(ours, known)]
    yield from troubles
    disabled = ours.get("GPULOCKD_DISABLE", "")
    if disabled not in ("", "0"):
        text = f"GPULOCKD_DISABLE={disabled}: programs started here take no lock at all"
        yield warn(CHECK, text, "unset GPULOCKD_DISABLE")
    serves = host.hello.get("pool")
    if ours.get("GPULOCKD_POOL") and serves and serves != ours["GPULOCKD_POOL"]:
        text = f"GPULOCKD_POOL={ours['GPULOCKD_POOL']} is not the pool of this host's daemon ({serves})"
        yield warn(CHECK, text, "unset GPULOCKD_POOL, unless another host's GPUs are meant")
    if not troubles:
        yield ok(CHECK, f"set and known: {', '.join(sorted(ours))}" if ours else "no variable of gpulockd is set")


def _troubles(ours: dict[str, str], known: dict[str, tuple[str, object]]) -> Iterator[Finding]:
    for name, text in sorted(ours.items()):
        if name in known:
            try:
                if text:
                    value_said(name, text)
            except ConfigError as wrong:
                yield fail(CHECK, wrong.message, f"correct it, or unset {name}")
        elif name not in OTHERS:
            near = meant(name, [*known, *OTHERS])
            hint = f"did you mean {near}?" if near else f"unset {name}, if it was meant for gpulockd"
            yield warn(CHECK, f"{printable(name)} means nothing to gpulockd", hint)


def printable(name: str) -> str:
    """A name of the environment as a terminal may show it."""
    return name.encode("ascii", "backslashreplace").decode()
