"""What a refused load of the ledger's functions means."""

from __future__ import annotations

from gpulockd.errors import StoreUnavailable

LOADED_BY_ANOTHER = "already exists"
NOT_PERMITTED = ("NOPERM", "no permissions")


def check_loaded(refused: Exception, shown: str) -> None:
    """Return if the functions are there by now.

    :param shown: the store's address without its secret
    :raises StoreUnavailable: if this user may not load them: the daemon does so, at its next call
    """
    text = str(refused)
    if LOADED_BY_ANOTHER in text:
        return
    if any(word in text for word in NOT_PERMITTED):
        what = "has not the functions of this version, and this user may not load them"
        raise StoreUnavailable(f"Redis at {shown} {what}; a daemon of the same version does") from refused
    raise refused
