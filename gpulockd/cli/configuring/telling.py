"""How the configuration reads on a terminal: trees as YAML, differences, revisions."""

from __future__ import annotations

import json
import re
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from gpulockd.cli import http
from gpulockd.cli.talk import paint

Record = dict[str, Any]

SLOW_S = 360.0
"""How long a command waits for what takes its time, such as a rollback that looks afterwards (in seconds)."""

_PLAIN = re.compile(r"[A-Za-z_/][\w ./:@%*+-]*")
_WORDS = ("true", "false", "null", "yes", "no", "on", "off", "none", "y", "n")


def value_text(value: Any) -> str:
    """A value as YAML says it on one line."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    if isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in _WORDS and ": " not in value:
        return value if not value.endswith((" ", ":")) else json.dumps(value)
    if isinstance(value, list):
        return "[" + ", ".join(value_text(inner) for inner in value) + "]"
    return json.dumps(value, ensure_ascii=False)


def yaml_lines(tree: Record, indent: str = "") -> Iterator[str]:
    """The lines of a tree as YAML."""
    for name, value in tree.items():
        key = value_text(str(name))
        if isinstance(value, dict) and value:
            yield f"{indent}{key}:"
            yield from yaml_lines(value, indent + "  ")
        elif isinstance(value, list) and any(isinstance(inner, dict) for inner in value):
            yield f"{indent}{key}:"
            for inner in value:
                yield f"{indent}  - {json.dumps(inner, ensure_ascii=False)}"
        else:
            yield f"{indent}{key}: {value_text(value)}"


def flat(tree: Record, above: str = "") -> Record:
    """The tree as dotted names and values."""
    found: Record = {}
    for name, value in tree.items():
        path = f"{above}{name}"
        if isinstance(value, dict) and value:
            found |= flat(value, f"{path}.")
        else:
            found[path] = value
    return found


def at(tree: Any, path: str) -> Any:
    """What stands at a dotted name.

    :raises KeyError: if nothing does
    """
    node = tree
    for name in path.split("."):
        if not isinstance(node, dict):
            raise KeyError(path)
        node = node[name]
    return node


def change_lines(diff: Sequence[Record], most: int | None = None) -> list[str]:
    """One line a difference: "gpu_lock.poll_interval: 2 -> 1"; values of `most` characters at most."""
    return [
        f"{one['path']}: {cut(_or_unset(one['before']), most)} -> {cut(_or_unset(one['after']), most)}" for one in diff
    ]


def cut(text: str, most: int | None) -> str:
    """A text of `most` characters at most."""
    return text if most is None or len(text) <= most else f"{text[: max(0, most - 1)]}…"


def room(beside: int, *, least: int = 20, elsewhere: int = 60) -> int:
    """How many characters are left on a line of the terminal beside others; `elsewhere` where stdout is none."""
    if not sys.stdout.isatty():
        return elsewhere
    return max(least, shutil.get_terminal_size().columns - beside)


def diff_lines(diff: Sequence[Record]) -> list[str]:
    """Differences as `diff` shows them."""
    lines = []
    for one in diff:
        if one["before"] is not None:
            lines.append(paint(f"-{one['path']}: {value_text(one['before'])}", "red"))
        if one["after"] is not None:
            lines.append(paint(f"+{one['path']}: {value_text(one['after'])}", "green"))
    return lines


def _or_unset(value: Any) -> str:
    return "(unset)" if value is None else value_text(value)


def when(at_ms: float) -> str:
    """A moment in local time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at_ms / 1000))


def revision_text(revision: Record | None) -> str:
    """A revision in a few words: "revision 7 by ocr (cli), 2026-01-02 10:00:00"."""
    if revision is None:
        return "no revision yet"
    where = f", pool {revision['pool']}" if revision.get("pool") else ""
    who = f"{revision['author']} ({revision['origin']}{where})"
    return f"revision {revision['number']} by {who}, {when(revision['at_ms'])}"


def printed(answer: Any) -> None:
    """Print JSON."""
    print(json.dumps(answer, indent=2, ensure_ascii=False))


def ask_slowly(daemon: http.Daemon, method: str, path: str, body: object = None) -> Record:
    """Ask what may take minutes.

    :raises http.DaemonDown: if the answer breaks off
    """
    with daemon.stream(method, path, body, silence_s=SLOW_S) as stream:
        try:
            answer = json.loads(b"\n".join(stream.lines()) or b"{}")
        except (OSError, ValueError) as cut:
            raise http.DaemonDown(daemon.path, f"its answer broke off: {cut}") from cut
    return answer if isinstance(answer, dict) else {"answer": answer}
