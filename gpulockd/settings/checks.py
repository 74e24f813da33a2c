"""A tree of settings: does it name settings that there are, and is each value what its setting takes?

Every front door of the configuration leads here: the file, the environment, the API and the command line.
"""

from __future__ import annotations

import re
from typing import Any, get_args, get_origin

import msgspec

from gpulockd.errors import ConfigError
from gpulockd.settings.kinds import bare
from gpulockd.settings.names import meant
from gpulockd.settings.paths import fields_of, is_block, named_block
from gpulockd.settings.trees import Tree
from gpulockd.settings.values import is_secret_place, one_line, scalar, shown, wrong
from gpulockd.settings.whole import Settings

MOST_NAMES = 1_000
"""How many tasks or profiles a configuration may have."""

MOST_ITEMS = 200
"""How long a list may be."""

_PLAIN_NAME = re.compile(r"[a-z_]{1,40}")


def checked(tree: Tree) -> Tree:
    """Return the tree with every value as its setting has it: durations in seconds. What is null is not set.

    :raises ConfigError: for the first name or value that is wrong; `path` says where
    """
    if not isinstance(tree, dict):
        raise wrong("", f"a configuration is blocks such as 'gpu_lock:', not {shown(tree)}")
    return _block(tree, Settings, "")


def checked_value(value: Any, kind: Any, path: str) -> Any:
    """Return one value as a setting of that kind has it.

    :raises ConfigError: if it does not take it
    """
    inner = bare(kind)
    if named_block(inner) is not None:
        return _names(value, named_block(inner), path)
    if is_block(inner):
        return _block(value, inner, path)
    if get_origin(inner) is tuple:
        return _list(value, get_args(inner), path)
    if get_origin(inner) is dict:
        return _texts(value, get_args(inner)[1], path)
    return scalar(value, kind, path)


def _block(value: Any, block: Any, path: str) -> Tree:
    short = getattr(block, "short_form", None)
    fields = fields_of(block)
    if isinstance(value, list | tuple) and short is not None:
        return {short: checked_value(value, fields[short], path)}
    if not isinstance(value, dict):
        example = next(iter(fields))
        raise wrong(path, f"{shown(value, path)} is not a block; write settings under it, such as '{example}:'")
    whole = {}
    for name, inner in value.items():
        here = _joined(path, name)
        if name not in fields:
            raise unknown(here, str(name), fields)
        if inner is not None:
            whole[name] = checked_value(inner, fields[name], here)
    return whole


def _joined(path: str, name: Any) -> str:
    text = str(name) if not isinstance(name, int) or abs(name) < 10**20 else "a huge number"
    return f"{path}.{text[:200]}" if path else text[:200]


def unknown(path: str, name: str, known: dict[str, Any]) -> ConfigError:
    """The error of a name that no setting has, with the one that was meant."""
    near = meant(name, known)
    hint = f"did you mean {near!r}?" if near else f"known here: {', '.join(known)}"
    above = path.rpartition(f".{name}"[:201])[0]
    # What is written without the space behind its colon is all name: {secret:abc}.
    hides = is_secret_place(above) and not _PLAIN_NAME.fullmatch(name)
    called = f"under {above!r} that is not shown here" if hides else shown(path)
    return ConfigError(f"unknown key {called}; {hint}", path=above if hides else path, involved=(path,))


def _names(value: Any, block: Any, path: str) -> Tree:
    if not isinstance(value, dict):
        raise wrong(path, f"{shown(value, path)} is not a block; write a name under it, and the settings under that")
    if len(value) > MOST_NAMES:
        raise wrong(path, f"{len(value)} names are too many; {MOST_NAMES} are the most")
    whole = {}
    for name, inner in value.items():
        text = str(name) if isinstance(name, str) or (isinstance(name, int) and abs(name) < 10**20) else ""
        here = _joined(path, text)
        if not 1 <= len(text) <= 200 or not one_line(text) or text != text.strip():
            raise wrong(here, "a name has 1 to 200 characters, no line break and no space around it")
        if inner is not None:
            whole[text] = _block(inner, block, here)
    return whole


def _list(value: Any, kinds: tuple[Any, ...], path: str) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise wrong(path, f"{shown(value, path)} is not a list; write it in [ ]")
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        if len(value) > MOST_ITEMS:
            raise wrong(path, f"{len(value)} entries are too many; {MOST_ITEMS} are the most")
        kinds = (kinds[0],) * len(value)
    if len(value) != len(kinds):
        raise wrong(path, f"it has {len(value)} entries; write {len(kinds)}")
    found = []
    for at, (inner, kind) in enumerate(zip(value, kinds, strict=True)):
        here = f"{path}[{at}]"
        found.append(_complete(checked_value(inner, kind, here), kind, here))
    return found


def _complete(value: Any, kind: Any, path: str) -> Any:
    """A block in a list has nothing below it to take what it leaves out from."""
    if is_block(bare(kind)):
        for field in msgspec.structs.fields(bare(kind)):
            if field.required and field.encode_name not in value:
                raise wrong(path, f"{field.encode_name!r} is missing; write '{field.encode_name}:'")
    return value


def _texts(value: Any, kind: Any, path: str) -> Tree:
    if not isinstance(value, dict):
        raise wrong(path, f"{shown(value, path)} is not a block of names and values")
    if len(value) > MOST_ITEMS:
        raise wrong(path, f"{len(value)} entries are too many; {MOST_ITEMS} are the most")
    whole = {}
    for name, inner in value.items():
        here = _joined(path, name)
        if not isinstance(name, str) or not one_line(name):
            raise wrong(here, "a name is one line of text")
        if inner is not None:
            whole[name] = checked_value(inner, kind, here)
    return whole
