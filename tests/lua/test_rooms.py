"""What the rooms of the Lua library leave to one another."""

from __future__ import annotations

import re

from gpulockd.ledger.lua_files import CHUNKS, VERBS, lua_text


def test_what_becomes_due_is_entered_by_one_room() -> None:
    """The books know before when nothing is due; an entry that passes them by would be done too late."""
    entering = re.compile(r"'ZADD', names\.due, (?!'XX')")
    rooms = [name for name in (*CHUNKS, *VERBS) if entering.search(lua_text(name))]
    assert rooms == ["_due"]


def test_what_sits_on_a_gpu_is_written_by_one_room() -> None:
    """Its records outlive a call while the books say the same; a write beside them would not be seen."""
    writing = re.compile(r"'(?:HSET|HDEL)', names\.gpus\b")
    rooms = [name for name in (*CHUNKS, *VERBS) if writing.search(lua_text(name))]
    assert rooms == ["_gpus"]
