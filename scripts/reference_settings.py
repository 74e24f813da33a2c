"""docs/reference-config.md: every setting, from the types of the settings and the comments of config.yml."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal, get_args, get_origin

import msgspec

from gpulockd.settings import Settings, alerting
from gpulockd.settings.kinds import DAY_S, DEFAULT_MARKS, LONGEST_S, Number, Span, Text, Whole, bare, given
from gpulockd.settings.paths import fields_of, is_block, named_block, needs_restart

SETTINGS_HEAD = """# Settings

Every setting of `config.yml`, with what it takes and its default. Durations are seconds, or text such as `"250ms"`,
`"5m"`, `"1h30m"`; a share is 0 to 1, or text such as `"10%"`. The variable of a setting is its path in capitals with
`_` for each dot: `GPU_LOCK_POLL_INTERVAL`, `GPU_LOCK_MONITOR_HEARTBEAT_TIMEOUT`; all others have `GPULOCKD_` before it:
`GPULOCKD_SESSION_TTL`. A running daemon follows a change, except where *restart* stands.
[Changing it live](config.md) has the layers and the commands.
"""

OWN_NAMES = {
    "tasks": "A task's own values, by its name: `tasks: {whisper: {max_wait_time: 2h}}`. What is left out is usual.",
    "profiles": "Named parts of `gpu_lock`, for `gpulockd config apply --profile NAME`. `optimized`, `high_load` and"
    " `low_load` are there from the start.",
    "notify.webhooks": "Receivers of JSON by POST, by names of your own ([Alerts](alerts.md)).",
    "notify.emails": "Mail, by names of your own.",
    "notify.apprise": "Addresses of the package apprise (extra `notify`), by names of your own.",
}

UNCOMMENTED = {
    "name": "What the alert is called; one of each name.",
    "condition": "When it stands: see [Alerts](alerts.md).",
    "level": "How bad it is; of a channel: the least that it tells.",
    "message": "What people are told.",
    "for": "How long the condition must be true.",
    "escalated": "true: tell only what nobody has reacted to.",
    "timeout": "How long one message may take.",
    "url": "Address of the receiver.",
    "url_file": "File that has the address.",
    "secret": "Key of the signature.",
    "secret_file": "File that has the key.",
    "host": "SMTP server.",
    "port": "Its port.",
    "tls": "starttls, implicit (from the first byte), or none.",
    "username": "User at the server; null: none is said.",
    "password": "Its password.",
    "password_file": "File that has the password.",
    "sender": "Address of the sender.",
    "to": "Addresses of the receivers.",
    "urls": "Addresses, each `kind://…`.",
    "urls_file": "File that has them, one a line.",
}
"""What config.yml has no comment for, since it shows none of them."""


def settings_page(comments: dict[str, str]) -> str:
    """Every setting, block by block."""
    parts = [SETTINGS_HEAD]
    single = [name for name, kind in fields_of(Settings).items() if not is_block(kind) and not named_block(kind)]
    parts.append(_table("", Settings, single, comments))
    for name, kind in fields_of(Settings).items():
        if is_block(kind):
            parts += _block(name, kind, comments)
        elif named_block(kind):
            parts += _named(name, named_block(kind), comments)
    return "\n".join(parts)


def _block(path: str, block: Any, comments: dict[str, str]) -> Iterator[str]:
    fields = fields_of(block)
    yield f"\n## {path}\n\n{comments.get(path, '')}\n".rstrip() + "\n"
    own = [name for name, kind in fields.items() if not is_block(kind) and not named_block(kind)]
    if own:
        yield _table(f"{path}.", block, own, comments)
    for name, kind in fields.items():
        if is_block(kind):
            yield from _block(f"{path}.{name}", kind, comments)
        elif named_block(kind):
            yield from _named(f"{path}.{name}", named_block(kind), comments)
    if block is alerting.AlertsBlock:
        yield "\n## alerts.rules[]\n\nOne rule. A plain list under `alerts:` is the rules alone.\n"
        yield _table("", alerting.AlertRule, list(fields_of(alerting.AlertRule)), comments)


def _named(path: str, block: Any, comments: dict[str, str]) -> Iterator[str]:
    yield f"\n## {path}.NAME\n\n{OWN_NAMES[path]}\n"
    yield _table("", block, list(fields_of(block)), _of_all(comments))


def _of_all(comments: dict[str, str]) -> dict[str, str]:
    """What is said of a key of `gpu_lock` or of the levels is true of the same key of a task or profile."""
    homes = ("gpu_lock.", "gpu_lock_monitor.timeout_levels.")
    return {path.removeprefix(home): text for path, text in comments.items() for home in homes if path.startswith(home)}


def _table(above: str, block: Any, names: Iterable[str], comments: dict[str, str]) -> str:
    rows = ["| setting | takes | default | what it is |", "|---|---|---|---|"]
    usual = {field.encode_name: _default(field) for field in msgspec.structs.fields(block)}
    for name in names:
        path = f"{above}{name}"
        does = comments.get(path) or UNCOMMENTED[name]
        if (above and needs_restart(path)) or path == "pool":
            does = does.replace(" Needs a restart.", "") + " *restart*"
        rows.append(f"| `{path}` | {takes(fields_of(block)[name])} | {usual[name]} | {does} |".replace("\n", " "))
    return "\n".join(rows) + "\n"


def _default(field: msgspec.structs.FieldInfo) -> str:
    if field.default is msgspec.NODEFAULT and field.default_factory is msgspec.NODEFAULT:
        return "none: it must be said"
    value = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
    if value is alerting.RULES:
        return "the five in `config.yml`"
    return f"`{_plain(value)}`"


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:g}" if value < 1e5 else f"{value:.0f}"
    if isinstance(value, tuple):
        return f"[{', '.join(_plain(part) for part in value)}]"
    return "null" if value is None else str(value) or '""'


def takes(kind: Any) -> str:
    """What a setting takes, in words, with its unit and range."""
    null = " or null" if given(kind) is not kind else ""
    kind = given(kind)
    plain = bare(kind)
    if get_origin(plain) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(plain)) + null
    if get_origin(plain) is tuple:
        inner = [part for part in get_args(plain) if part is not ...]
        if is_block(inner[0]):
            return "list of rules"
        if ... in get_args(plain):
            return f"list of: {takes(inner[0])}{null}"
        return "[" + "; ".join(takes(part) for part in inner) + "]" + null
    if plain is bool:
        return "true or false" + null
    marks = [mark for mark in getattr(kind, "__metadata__", ()) if isinstance(mark, Span | Number | Whole | Text)]
    return _range(marks[0] if marks else DEFAULT_MARKS[plain]) + null


def _range(mark: Any) -> str:
    if isinstance(mark, Span):
        most = {DAY_S: "1 day", LONGEST_S: "366 days"}.get(mark.most_s, f"{mark.most_s:g} s")
        return f"duration, {mark.least_s:g} s to {most}{', or 0' if mark.zero else ''}"
    if isinstance(mark, Number):
        return f"{'share' if mark.share else 'number'}, {mark.least:g} to {mark.most:g}"
    if isinstance(mark, Whole):
        return f"whole number, {mark.least:,} to {mark.most:,}"
    return "text"


def comments_of(text: str) -> dict[str, str]:
    """The comment above each key of a config.yml, by the key's path. Lines of examples (`#   …`) are left out."""
    found: dict[str, str] = {}
    above: list[tuple[int, str]] = []
    said: list[str] = []
    for line in text.splitlines():
        bare_line = line.strip()
        indent = len(line) - len(line.lstrip())
        if bare_line.startswith("# ") and not bare_line.startswith("#   "):
            said.append(bare_line[2:])
        elif not bare_line:
            said = []
        elif ":" in bare_line and not bare_line.startswith(("#", "-")):
            above = [(far, name) for far, name in above if far < indent]
            above.append((indent, bare_line.partition(":")[0]))
            if said:
                found[".".join(name for _, name in above)] = " ".join(said)
            said = []
    return found
