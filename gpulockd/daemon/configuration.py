"""The configuration as this host has it: defaults, one file, the environment; wrong places named by line and column."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from io import StringIO
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import msgspec
import structlog
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from gpulockd.errors import ConfigError
from gpulockd.settings import Settings, settings_from

LATER_BLOCKS = frozenset({"notify", "tasks", "profiles", "alerts"})
"""Blocks whose own services read them; here they are passed over."""

_PATH_IN_ERROR = re.compile(r"^(?:config: .* - at `\$\.(?P<json>[\w.]+)[^`]*`$|(?P<plain>[\w.]+): )", re.DOTALL)
_YES_NO = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}

_log = structlog.get_logger(__name__)


class Loaded(msgspec.Struct, frozen=True, kw_only=True):
    """The settings and the file that they were read from (None: there is none)."""

    settings: Settings
    file: str | None


def load(file: str | None = None, environ: Mapping[str, str] | None = None) -> Loaded:
    """Read config.yml and the environment.

    :param file: what `--config` says; else GPULOCKD_CONFIG, else the first of the usual places that exists
    :raises ConfigError: naming file, line and column, or the variable, of what is wrong
    """
    env = os.environ if environ is None else environ
    path = _find(file, env)
    tree = _read(path) if path else {}
    _check_names(tree, Settings, "", path, tree)
    data = _plain(tree)
    later = sorted(LATER_BLOCKS & data.keys())
    if later:
        _log.info("configuration.blocks_passed_over", blocks=later, message="not used yet: " + ", ".join(later))
        data = {name: value for name, value in data.items() if name not in LATER_BLOCKS}
    from_env = _overlay(data, env)
    try:
        return Loaded(settings=settings_from(data), file=path)
    except ConfigError as wrong:
        raise _located(wrong, tree, path, from_env) from None


def _find(file: str | None, env: Mapping[str, str]) -> str | None:
    named = file or env.get("GPULOCKD_CONFIG")
    if named:
        if not os.path.isfile(named):
            raise ConfigError(f"{named}: no such configuration file")
        return named
    home = env.get("XDG_CONFIG_HOME") or os.path.join(env.get("HOME") or os.path.expanduser("~"), ".config")
    usual = ("config.yml", os.path.join(home, "gpulockd/config.yml"), "/etc/gpulockd/config.yml")
    return next((path for path in usual if os.path.isfile(path)), None)


def _read(path: str) -> dict[str, Any]:
    """Return the file's tree, which knows the line and column of each key."""
    try:
        tree = YAML(typ="rt").load(StringIO(Path(path).read_text(encoding="utf-8")))
    except MarkedYAMLError as wrong:
        mark = wrong.problem_mark or wrong.context_mark
        where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark is not None else path
        raise ConfigError(f"{where}: {wrong.problem or wrong.context or 'not YAML'}") from None
    except (YAMLError, UnicodeDecodeError) as wrong:
        raise ConfigError(f"{path}: not YAML: {wrong}") from None
    except OSError as wrong:
        raise ConfigError(f"{path}: cannot be read: {wrong.strerror}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}:1:1: a configuration is blocks such as 'gpu_lock:', not {type(tree).__name__}")
    return tree


def _check_names(node: dict[str, Any], block: Any, path: str, file: str | None, tree: dict[str, Any]) -> None:
    """Refuse the first key that no setting has, with the most similar one."""
    known = {field.name: field.type for field in msgspec.structs.fields(block)}
    for name, value in node.items():
        here = f"{path}.{name}" if path else str(name)
        if name not in known and (path or name not in LATER_BLOCKS):
            meant = difflib.get_close_matches(str(name), [*known, *([] if path else LATER_BLOCKS)], n=1)
            hint = f"did you mean {meant[0]!r}?" if meant else f"known here: {', '.join(known)}"
            raise ConfigError(f"{_position(tree, here, file)}: unknown key {here!r}; {hint}")
        if _is_block(known.get(name)) and isinstance(value, dict):
            _check_names(value, known[name], here, file, tree)


def _is_block(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _plain(node: Any) -> Any:
    """Return the tree as plain values. A block with nothing under its name is an empty one."""
    if isinstance(node, dict):
        return {str(name): _plain(value) for name, value in node.items() if value is not None}
    if isinstance(node, list):
        return [_plain(value) for value in node]
    for kind in (bool, int, float, str):
        if isinstance(node, kind):
            return kind(node)
    return node


def variables() -> dict[str, tuple[str, Any]]:
    """Return, for each environment variable that is a setting, the setting's path and type."""
    return {_variable(path): (path, kind) for path, kind in _leaves(Settings, "")}


def _leaves(block: Any, path: str) -> Iterator[tuple[str, Any]]:
    for field in msgspec.structs.fields(block):
        here = f"{path}.{field.name}" if path else field.name
        if _is_block(field.type):
            yield from _leaves(field.type, here)
        else:
            yield here, field.type


def _variable(path: str) -> str:
    prefix = "" if path.startswith("gpu_lock") else "GPULOCKD_"
    return prefix + path.replace(".", "_").upper()


def _overlay(data: dict[str, Any], env: Mapping[str, str]) -> dict[str, str]:
    """Put the environment's values over `data`; return which variable each such path came from."""
    known = variables()
    used = {}
    for name, text in env.items():
        if name not in known:
            _warn_of_typo(name, known)
        elif text:
            path, kind = known[name]
            *blocks, last = path.split(".")
            node = data
            for block in blocks:
                inner = node.setdefault(block, {})
                node = inner if isinstance(inner, dict) else {}
            node[last] = _value(text, kind, name)
            used[path] = name
    return used


def _value(text: str, kind: Any, name: str) -> Any:
    """Return the text of a variable as the type of its setting; durations stay text."""
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    if bool in kinds:
        if text.lower() not in _YES_NO:
            raise ConfigError(f"{name}: {text!r} is neither true nor false")
        return _YES_NO[text.lower()]
    if int in kinds:
        try:
            return int(text)
        except ValueError:
            raise ConfigError(f"{name}: {text!r} is not a whole number") from None
    if get_origin(kind) is tuple:
        return [part.strip() for part in text.split(",") if part.strip()]
    return text


def _warn_of_typo(name: str, known: Mapping[str, Any]) -> None:
    """Say when a variable looks like a setting but is none; other software may own it, so it is no error."""
    if not name.startswith(("GPU_LOCK_", "GPULOCKD_")):
        return
    meant = difflib.get_close_matches(name, known, n=1, cutoff=0.85)
    if meant or name.startswith("GPU_LOCK_"):
        hint = f"; did you mean {meant[0]}?" if meant else ""
        _log.warning("configuration.variable_unknown", variable=name, message=f"{name} is no setting{hint}")


def _located(wrong: ConfigError, tree: dict[str, Any], file: str | None, from_env: Mapping[str, str]) -> ConfigError:
    """Return the error with the place that its setting came from in front."""
    found = _PATH_IN_ERROR.match(wrong.message)
    if found is None:
        return wrong
    path = found["json"] or found["plain"]
    text = wrong.message.removeprefix("config: ") if found["json"] else wrong.message
    variable = next((name for where, name in from_env.items() if where == path), None)
    if variable:
        return ConfigError(f"{variable}: {text}")
    return ConfigError(f"{_position(tree, path, file)}: {text}") if file else wrong


def _position(tree: dict[str, Any], path: str, file: str | None) -> str:
    """Return "file:line:column" of the key at `path`, or of the nearest block around it."""
    node: Any = tree
    line, column = 0, 0
    for name in path.split("."):
        if not isinstance(node, dict) or name not in node:
            break
        line, column = node.lc.key(name)  # type: ignore[attr-defined]  # ruamel's own dict
        node = node[name]
    return f"{file}:{line + 1}:{column + 1}"
