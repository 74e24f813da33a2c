"""What can go wrong on a connection, before `gpulockd.ledger.store.mapped` makes it one of our errors."""

from __future__ import annotations


class Refused(Exception):
    """The server answered with an error. The text begins with its code, such as `NOPERM` or `ERR`."""

    @property
    def code(self) -> str:
        """The first word of what the server said."""
        return str(self).partition(" ")[0]


class Unwelcome(Refused):
    """The server did not take user or password."""


class Broken(ConnectionError):
    """The connection ended; whether the server ran what was sent is not known."""


class Moved(Broken):
    """Another server of the cluster has the keys now."""


class Late(Broken):
    """No answer within the deadline, and the connection was given up."""
