"""The Lua files, joined to one library of functions, known to the server by the hash of its text.

A library is loaded once per server process, so its closures are made once; as a script it would make all of them at
every call, which cost more than an uncontended request's own work (docs/why.md, "A library, not scripts"). Clients of
different versions use different libraries side by side, for the name has the hash.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import resources

CHUNKS = (
    "_server",
    "_books",
    "_epochs",
    "_gpus",
    "_queue",
    "_holding_back",
    "_placing",
    "_tickets",
    "_members",
    "_ends",
    "_due",
    "_limits",
    "_published",
    "_brought",
    "_begin",
)
"""What the verbs share. The rooms know each other, so all are declared before the first is filled."""

ROOMS = (
    "epochs",
    "gpus",
    "queue",
    "holding_back",
    "placing",
    "tickets",
    "members",
    "ends",
    "due",
    "limits",
    "published",
    "brought",
)
VERBS = (
    "open",
    "keepalive",
    "request",
    "confirm",
    "end",
    "progress",
    "offer",
    "report",
    "reach",
    "snapshot",
    "record",
    "recorded",
    "load",
    "happened",
    "publish",
    "published",
)

FLEET_CHUNKS = ("_server", "fleet/_fleet", "fleet/_rollout")
FLEET_VERBS = (
    "state",
    "revise",
    "mark",
    "history",
    "audit",
    "audits",
    "base",
    "bases",
    "validate",
    "validated",
    "rollout",
    "drive",
    "restore",
)
"""The fleet's configuration has a library of its own: it lives in another slot, and has nothing to do with locks."""

# Locks must end while memory is short, so no verb is refused for it.
_REGISTER = """
register{{function_name = '{library}_{verb}', flags = {{'allow-oom'}}, callback = function(keys, args)
  {start}(keys, args)
{text}
end}}
"""


class Script:
    """One verb of a library: its function's name, and the library's text for a server that does not have it."""

    __slots__ = ("function", "library", "name", "text")

    def __init__(self, name: str, library: str, text: str) -> None:
        self.name = name
        self.library = library
        self.function = f"{library}_{name}"
        self.text = text

    def __repr__(self) -> str:
        return f"<Script {self.function}>"


def lua_text(name: str) -> str:
    """The text of one file of `ledger/lua`, without its ending."""
    return (resources.files("gpulockd.ledger") / "lua" / f"{name}.lua").read_text("utf-8")


def library(replaced: dict[str, str] | None = None) -> dict[str, Script]:
    """Join all files of the pools; `replaced` puts other text in the place of a file (tests turn the clock so)."""
    return _joined("gpulockd_", f"local {', '.join(ROOMS)}", CHUNKS, {verb: verb for verb in VERBS}, "books", replaced)


def fleet_library(replaced: dict[str, str] | None = None) -> dict[str, Script]:
    """Join all files of the fleet."""
    verbs = {verb: f"fleet/{verb}" for verb in FLEET_VERBS}
    return _joined("gpulockd_fleet_", "", FLEET_CHUNKS, verbs, "fleet", replaced)


def _joined(
    prefix: str, head: str, chunks: tuple[str, ...], verbs: dict[str, str], room: str, replaced: dict[str, str] | None
) -> dict[str, Script]:
    replaced = replaced or {}
    texts = {part: replaced.get(part) or lua_text(part) for part in (*chunks, *verbs.values())}
    name = prefix + hashlib.sha1("".join(texts.values()).encode(), usedforsecurity=False).hexdigest()[:12]
    parts = [f"#!lua name={name}", head, *(texts[chunk] for chunk in chunks)]
    parts += [
        _REGISTER.format(library=name, verb=verb, start=f"{room}.start", text=texts[file])
        for verb, file in verbs.items()
    ]
    text = "\n".join(parts)
    return {verb: Script(verb, name, text) for verb in verbs}


@cache
def _ours() -> dict[str, Script]:
    return library()


@cache
def _of_fleet() -> dict[str, Script]:
    return fleet_library()


def script(name: str) -> Script:
    """The verb of that name."""
    return _ours()[name]


def fleet_script(name: str) -> Script:
    """The fleet's verb of that name."""
    return _of_fleet()[name]
