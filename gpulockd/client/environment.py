"""The settings that this process's environment says. They are read at each request, and parsed when they change."""

from __future__ import annotations

from typing import Any

from gpulockd.client.variables import Variables
from gpulockd.settings.variables import value_said


class Said:
    """What some variables, each of one setting, say."""

    def __init__(self, **variables: str) -> None:
        """:param variables: the variable of each name in what `read` returns"""
        self._names = tuple(variables)
        self._of = tuple(variables.values())
        self._variables = Variables(*self._of)
        self._seen: tuple[bytes | None, ...] | None = None
        self._values: dict[str, Any] = {}

    @classmethod
    def of(cls, prefix: str, block: Any) -> Said:
        """The variables of a settings block."""
        return cls(**{name: f"{prefix}_{name.upper()}" for name in block.__struct_fields__})

    def read(self) -> dict[str, Any]:
        """What is set, as settings have it; the same object as before while nothing has changed.

        :raises ConfigError: naming the variable of a value that its setting does not take
        """
        seen = self._variables.raw()
        if seen != self._seen:
            texts = zip(self._names, self._of, self._variables.read(), strict=True)
            self._values = {name: value_said(variable, text) for name, variable, text in texts if text}
            self._seen = seen
        return self._values
