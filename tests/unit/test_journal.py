"""The guard's record: what was written is read again, and no torn or damaged file lets anybody in by accident."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from gpulockd.daemon.fence import Lease, Party
from gpulockd.daemon.journal import MOST_BYTES, MOST_LINES, Journal, RecordUnwritable


def lease(id: str, token: int) -> Lease:
    party = Party(ticket=id, session="s", pid=4711, started=99, uid=1000)
    return Lease(id=id, token=token, gpus=(f"gpu_lock:{token % 3}",), exclusive=True, parties=[party])


def written(folder: Path, boot_id: str = "boot") -> Path:
    """A record with three leases of which one is over."""
    journal = Journal(str(folder / "guard.log"), boot_id)
    fence, found = journal.load()
    assert found == "fresh"
    for token in (1, 2, 3):
        one = lease(f"t{token}", token)
        journal.entered(one)
        fence.enter(one)
    journal.over(lease("t2", 2))
    journal.close()
    return folder / "guard.log"


def test_what_was_let_in_is_there_after_a_crash(tmp_path: Path) -> None:
    """A daemon that comes back must know whom it has let in, with the process of each."""
    path = written(tmp_path)
    fence, found = Journal(str(path), "boot").load()
    assert found == "complete"
    assert sorted(fence.leases) == ["t1", "t3"]
    assert fence.leases["t3"].holder == Party(ticket="t3", session="s", pid=4711, started=99, uid=1000)
    assert fence.marks["gpu_lock:2"] == (2, 2)


def test_after_a_reboot_only_the_tokens_stand(tmp_path: Path) -> None:
    """Processes of an earlier boot are dead; their numbers mean others now."""
    path = written(tmp_path)
    fence, _ = Journal(str(path), "another boot").load()
    assert fence.leases == {}
    assert fence.token == 3


def test_what_was_never_granted_leaves_no_token_behind(tmp_path: Path) -> None:
    """A token that somebody made up would shut out everybody after the next start."""
    path = written(tmp_path)
    journal = Journal(str(path), "boot")
    fence, _ = journal.load()
    made_up = lease("made-up", 10**12)
    journal.entered(made_up)
    fence.enter(made_up)
    journal.over(made_up, never=True)
    journal.close()
    assert Journal(str(path), "boot").load()[0].token == 3


def test_a_record_of_long_lines_is_written_anew(tmp_path: Path) -> None:
    """One user's leases with long names, let in and left, made it grow by 18 MB in a minute."""
    path = tmp_path / "guard.log"
    journal = Journal(str(path), "boot")
    journal.load()
    one = lease("t", 1)
    one.gpus = tuple(f"{number:0>200}" for number in range(64))
    for _ in range(2 * MOST_BYTES // (64 * 200)):
        journal.entered(one)
        journal.over(one)
    journal.close()
    assert path.stat().st_size < MOST_BYTES + 100_000


def test_a_record_cut_at_any_byte_loses_at_most_its_last_line(tmp_path: Path) -> None:
    """A line that is not whole was never answered; every other one holds somebody on a card."""
    whole = written(tmp_path).read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == 10]
    for cut in range(len(whole)):
        path = tmp_path / "cut" / "guard.log"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(whole[:cut])
        fence, _ = Journal(str(path), "boot").load()
        lines = sum(1 for end in ends if end <= cut)
        # The first line names the boot; then t1, t2, t3 begin, and t2 ends.
        expected = [["t1"], ["t1", "t2"], ["t1", "t2", "t3"], ["t1", "t3"]]
        inside = sorted(fence.leases)
        assert inside == ([] if lines < 2 else expected[lines - 2]) or inside == expected[min(lines - 1, 3)], cut


def test_damage_in_the_middle_is_said_and_kept_aside(tmp_path: Path) -> None:
    """Who cannot read all of it must not vouch that it knows everybody."""
    path = written(tmp_path)
    lines = path.read_bytes().split(b"\n")
    lines[2] = b"deadbeef {}"
    path.write_bytes(b"\n".join(lines))
    fence, found = Journal(str(path), "boot").load()
    assert found == "doubtful"
    assert sorted(fence.leases) == ["t1", "t3"] or "t1" not in fence.leases
    assert (tmp_path / "guard.log.damaged").exists()


def test_a_long_record_is_written_anew(tmp_path: Path) -> None:
    """It must not grow with every hand-off."""
    path = str(tmp_path / "guard.log")
    journal = Journal(path, "boot")
    fence, _ = journal.load()
    for number in range(MOST_LINES + 10):
        one = lease("same", number + 1)
        journal.entered(one)
        fence.enter(one)
    assert os.path.getsize(path) < 200 * MOST_LINES
    assert Journal(path, "boot").load()[0].leases["same"].token == MOST_LINES + 10


def test_a_full_disk_lets_nobody_new_in(tmp_path: Path) -> None:
    """An admission that is not on disk would be forgotten by the next daemon."""
    path = written(tmp_path)
    journal = Journal(str(path), "boot")
    journal.load()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 20, before[1]))
    try:
        with pytest.raises(RecordUnwritable, match="until it can be written"):
            journal.entered(lease("t9", 9))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "t9" not in Journal(str(path), "boot").load()[0].leases
