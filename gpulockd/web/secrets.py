"""Secrets of a configuration are never shown: what the routes print of it goes through here."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit

from gpulockd.ledger.address import without_secret

HIDDEN = "***"
"""What stands in a secret's place."""

_NAME = re.compile(r"(?:^|_)(?:password|passwd|secret|token|key|webhook|credentials?)s?$")
_IN_URL = re.compile(r"://[^/@\s]*:[^/@\s]+@")


def hidden(path: str, value: Any) -> Any:
    """Return the value of the setting at `path` (dotted) as it may be shown."""
    if isinstance(value, dict):
        return {name: hidden(f"{path}.{name}" if path else str(name), inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [hidden(path, inner) for inner in value]
    if not isinstance(value, str) or not value:
        return value
    parts = path.split(".")
    if _NAME.search(parts[-1]):
        return HIDDEN
    if "notify" in parts and "://" in value:
        return _site(value)
    return without_secret(value) if _IN_URL.search(value) else value


def _site(url: str) -> str:
    """An address without what opens it: the path of a chat's hook is its secret, and often the host of other kinds."""
    try:
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname:
            return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}/{HIDDEN}"
    except ValueError:
        pass
    return HIDDEN


def shows_hidden(tree: Any, path: str = "") -> str | None:
    """Return the path of a value that is only the place of a secret, None if there is none."""
    if isinstance(tree, dict):
        found = (shows_hidden(inner, f"{path}.{name}" if path else str(name)) for name, inner in tree.items())
        return next((one for one in found if one), None)
    if isinstance(tree, list | tuple):
        return next((path for inner in tree if shows_hidden(inner, path)), None)
    return path if isinstance(tree, str) and _is_hidden(tree) else None


def _is_hidden(text: str) -> bool:
    return text == HIDDEN or f":{HIDDEN}@" in text or text.endswith(f"/{HIDDEN}")
