"""What a daemon has kept of the fleet's configuration, brought back to a store that has lost it."""

from __future__ import annotations

from collections.abc import Sequence

from gpulockd.ledger.audit import AuditLine
from gpulockd.ledger.fleet import Ask, Reply, call, encode, line, words
from gpulockd.ledger.keys import FleetKeys
from gpulockd.ledger.revision import Revision, Tree, UnknownRevision, written
from gpulockd.ledger.rollout import RolloutRow


async def restore(
    ask: Ask,
    *,
    revisions: Sequence[Revision],
    current: int,
    stable: int | None,
    live: Tree | None = None,
    author: str = "",
    audits: Sequence[AuditLine] = (),
    rollout: RolloutRow | None = None,
    pool: str = "",
    bases: dict[int, Tree] | None = None,
    source: str = "a daemon's own copy",
) -> bool:
    """Bring back what a daemon has kept to a store that has lost it. Returns whether it was taken.

    It only adds to the same history: the store has no revision, only the first one, or one from which the kept ones go
    on. So it may be tried at any time, by any daemon; a store that went another way stays as it is. Bases of the pool
    and lines of the audit that the same history lacks are added even if its revisions stand.

    :param revisions: those kept, the current one and the stable one among them
    :param audits: the last lines of the audit, oldest first
    :param bases: of the daemon's own `pool`
    :param source: where they come from, for the audit
    :raises UnknownRevision: if the current one is not among `revisions`
    :raises StoreUnavailable: if no answer came
    """
    by_number = {revision.number: revision for revision in revisions}
    if current not in by_number:
        raise UnknownRevision(f"revision {current} is not among those kept", number=current)
    newest = by_number[current]
    live = newest.live if live is None else live
    note = line(author=author, origin="restore", what="restored", text=f"revision {current} from {source}")
    args: list[str] = [str(current), newest.id, "" if stable not in by_number else str(stable), encode(live), note]
    args += ["", "", "0"] if rollout is None else _rollout_words(rollout)
    args += [str(len(audits)), *(word for row in audits for word in (row.id, _line(row)))]
    kept_bases = list((bases or {}).items()) if pool else []
    args += [str(len(kept_bases)), *(word for number, tree in kept_bases for word in (str(number), encode(tree)))]
    args += [word for revision in revisions for word in written(revision)]
    taken: bool = await ask(call("restore", *args, read=_restored, keys=FleetKeys(pool)))
    return taken


def _rollout_words(row: RolloutRow) -> list[str]:
    return [str(row.version), "" if row.state is None else encode(row.state), str(row.elapsed_ms)]


def _line(row: AuditLine) -> str:
    """A line as `fleet.note` has written it, to the letter."""
    about = {} if row.revision is None else {"revision": row.revision}
    said = {"author": row.author, "origin": row.origin, "what": row.what, "text": row.text}
    return encode({"at_ms": row.at_ms, **about, **said})


def _restored(reply: Reply) -> bool:
    return words(reply)[0] == "restored"
