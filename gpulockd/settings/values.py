"""One value: is it what its setting takes? Everything odd is refused with what it should be."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec

from gpulockd.errors import ConfigError
from gpulockd.settings.kinds import DEFAULT_MARKS, Number, Span, Text, Whole, bare, given
from gpulockd.units import format_duration, parse_duration_s

_YES_NO = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}

_EXAMPLES = "write seconds or '250ms', '5m', '1h30m'"


def wrong(path: str, text: str, *involved: str) -> ConfigError:
    """The error of a setting. `involved`: other settings that it did not fit to."""
    return ConfigError(f"{path}: {text}" if path else text, path=path, involved=(path, *involved))


SECRET = ("notify", "redis")
"""Blocks that hold secrets: a value that was put at a wrong place in them may be one."""


def is_secret_place(path: str) -> bool:
    """Whether what stands at a path may be a secret."""
    return path.partition(".")[0] in SECRET


def shown(value: Any, path: str = "") -> str:
    """The value as a message may show it: short, whatever it is; of what stands at a path of `SECRET` only its kind."""
    if is_secret_place(path) and isinstance(value, str | int | float) and not isinstance(value, bool):
        return f"a {'text' if isinstance(value, str) else 'number'} that is not shown here"
    if isinstance(value, str):
        return repr(value if len(value) <= 60 else f"{value[:57]}...")
    if isinstance(value, bool) or value is None:
        return str(value).lower().replace("none", "null")
    if isinstance(value, int):
        return str(value) if abs(value) < 10**20 else "a huge number"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, dict | list | tuple):
        return "a block" if isinstance(value, dict) else "a list"
    return f"a {type(value).__name__}"


def scalar(value: Any, kind: Any, path: str) -> Any:
    """Return the value as its setting has it; durations in seconds.

    :raises ConfigError: if the setting does not take it
    """
    kind = given(kind)
    if get_origin(kind) is Literal:
        return _choice(value, get_args(kind), path)
    if kind is bool:
        return _truth(value, path)
    mark = kind.__metadata__[0] if get_origin(kind) is Annotated else DEFAULT_MARKS[kind]
    if isinstance(mark, Span):
        return _span(value, mark, path)
    if isinstance(mark, Number):
        return _number(value, mark, path)
    if isinstance(mark, Whole):
        return _whole(value, mark, path)
    return _text(value, mark, path)


def _choice(value: Any, choices: tuple[str, ...], path: str) -> str:
    if not isinstance(value, str) or value not in choices:
        raise wrong(path, f"{shown(value, path)} is none of {', '.join(choices)}")
    return value


def _truth(value: Any, path: str) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in _YES_NO:
        return _YES_NO[value.strip().lower()]
    raise wrong(path, f"{shown(value, path)} is neither true nor false")


def _span(value: Any, span: Span, path: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise wrong(path, f"{shown(value, path)} is not a duration; {_EXAMPLES}")
    try:
        seconds = parse_duration_s(value, path)
    except ConfigError as refused:
        if is_secret_place(path):
            raise wrong(path, f"{shown(value, path)} is not a duration; {_EXAMPLES}") from None
        raise wrong(path, refused.message.removeprefix(f"{path}: ")) from None
    if seconds < span.least_s and not (seconds == 0 and span.zero):
        raise wrong(path, f"{seconds:g} s is too short; the shortest is {span.least_s:g} s")
    if not seconds <= span.most_s:
        longest = f"{span.most_s / 86_400:g} d" if span.most_s >= 86_400 else format_duration(span.most_s)
        raise wrong(path, f"{shown(value, path)} is too long; the longest is {longest}")
    return seconds


def _number(value: Any, number: Number, path: str) -> float:
    within = f"write a number from {number.least:g} to {number.most:g}"
    found: Any = value
    if isinstance(value, str):
        text = value.strip()
        percent = number.share and text.endswith("%")
        try:
            found = float(text.removesuffix("%")) / 100 if percent else float(text)
        except ValueError:
            found = None
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise wrong(path, f"{shown(value, path)} is not a number; {within}" + (", or '10%'" if number.share else ""))
    if not number.least <= found <= number.most:
        raise wrong(path, f"{shown(value, path)} is out of range; {within}")
    return float(found)


def _whole(value: Any, whole: Whole, path: str) -> int:
    within = f"write a whole number from {whole.least} to {whole.most}"
    if isinstance(value, bool) or not isinstance(value, int):
        raise wrong(path, f"{shown(value, path)} is not a whole number; {within}")
    if not whole.least <= value <= whole.most:
        raise wrong(path, f"{shown(value, path)} is out of range; {within}")
    return int(value)


def _text(value: Any, text: Text, path: str) -> str:
    """The text itself is not shown: it may be a secret."""
    if not isinstance(value, str):
        raise wrong(path, "it is not text; put it in quotes")
    if len(value) > text.most_characters:
        raise wrong(path, f"it has {len(value)} characters; {text.most_characters} are the most")
    if not one_line(value):
        raise wrong(path, "it has a line break, a control character or half a character in it; write one line of text")
    return str(value)


def one_line(text: str) -> bool:
    """Whether a text can be shown on one line and be written as UTF-8."""
    return not any(c < " " or c == "\x7f" or "\ud800" <= c <= "\udfff" for c in text)


def from_text(text: str, kind: Any, name: str) -> Any:
    """Return the text of a variable as what a file would say for a setting of that kind; its range is not looked at.

    Lists and blocks are JSON; a list of texts may also be written with commas.

    :param name: what the error message calls the text
    :raises ConfigError: if it cannot be read
    """
    inner = bare(kind)
    if inner is int:
        try:
            return int(text)
        except ValueError:
            raise wrong(name, f"{shown(text, name)} is not a whole number") from None
    if get_origin(inner) not in (tuple, dict):
        return text
    plain_list = get_origin(inner) is tuple and bare(get_args(inner)[0]) is str
    if plain_list and not text.lstrip().startswith("["):
        return [part.strip() for part in text.split(",") if part.strip()]
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeEncodeError):
        raise wrong(name, "it is not JSON; write it in [ ] or { }, with names and texts in double quotes") from None
