"""Verdicts on documents that were tried before they are used, by what they say and not by who wrote them."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import msgspec

from gpulockd.ledger.fleet import Ask, Reply, call, encode, line, words


def digest(live_tree: Any) -> str:
    """Return a name of a document by what it says: the order of its keys, and 5 or 5.0, make no difference."""
    text = json.dumps(_plain(live_tree), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


async def note_validated(
    ask: Ask, digest: str, verdict: dict[str, Any], *, author: str = "", origin: str = "validation"
) -> None:
    """Keep the verdict on a document; a later one replaces it.

    :raises StoreUnavailable: if no answer came
    """
    note = line(author=author, origin=origin, what="validated", text=f"{digest}: {verdict.get('verdict', 'judged')}")
    await ask(call("validate", digest, encode(verdict), note, read=lambda _: None))


async def validated(ask: Ask, digest: str) -> dict[str, Any] | None:
    """The verdict on a document, with `at_ms`, when it was given (the store's wall clock). None: never tried.

    :raises StoreUnavailable: if no answer came
    """
    found: dict[str, Any] | None = await ask(call("validated", digest, read=_verdict))
    return found


def _verdict(reply: Reply) -> dict[str, Any] | None:
    at_ms, _, verdict = words(reply)[2].partition(" ")
    return {"at_ms": int(at_ms)} | msgspec.json.decode(verdict) if verdict else None
