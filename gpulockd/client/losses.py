"""Why a lease was lost, in words for its holder: what the ledger says in one word, and what a session says itself."""

from __future__ import annotations

WORDS = {
    "revoked": "it was revoked",
    "operator": "it was revoked by an operator",
    "hard_timeout": "it was revoked, because it was held longer than its hard limit",
    "silent": "it was revoked, because nothing was heard of its task",
    "gpu_lost": "it was revoked, because its card has failed",
    "expired": "its lock timeout has passed without a sign of life",
    "died": "its process was taken for dead",
    "overruled": "a later grant has taken its place",
}


def in_words(reason: str) -> str:
    """Return why a lease was lost; what has no words of its own says it already."""
    return WORDS.get(reason, reason)
