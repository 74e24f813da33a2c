"""A daemon of an earlier version: it is asked without the words that it refuses, where nothing is lost by that."""

from __future__ import annotations

RESTART = "this command is newer than the daemon: restart it ('systemctl restart gpulockd'); holders keep their GPUs"


def takes_no_ticket(refused: str) -> bool:
    """Whether a daemon has refused a ticket because it knows only those of sessions."""
    return refused.startswith("session, ticket: give both or neither") and "with pid or ttl" not in refused


def cure_of(refused: str) -> str:
    """What to do where a request of ours has a word that the daemon does not know; "" if that is not why."""
    return RESTART if refused.startswith(("there is no field", "Object contains unknown field")) else ""
