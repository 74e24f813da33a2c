"""The layers of the configuration on this host, and from which of them each setting comes."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, Literal

import msgspec

from gpulockd.alerting.rules import rules_of
from gpulockd.daemon.configuration import environment, file
from gpulockd.daemon.configuration.file import Positions
from gpulockd.errors import ConfigError
from gpulockd.settings import Settings, Tree, checked, fitted, flat, merged, value_at

FLAGS = {"web.listen": "--listen", "pool": "--pool", "redis.url": "--redis", "gpus.simulate": "--simulate"}
"""Settings that the command line of the daemon can say."""


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """Where the value of a setting comes from: "config.yml:6:11", the name of a variable, "--listen", "revision 7"."""

    layer: Literal["default", "file", "environment", "command line", "live"]
    where: str
    value: Any


class Layers(msgspec.Struct, frozen=True, kw_only=True):
    """What the file, the environment and the command line set, each alone and checked.

    `file`: None if there is none; `is_empty`: there is nothing at all in it.
    """

    file: str | None = None
    file_tree: Tree = msgspec.field(default_factory=dict)
    env_tree: Tree = msgspec.field(default_factory=dict)
    positions: Positions = msgspec.field(default_factory=dict)
    variables: dict[str, str] = msgspec.field(default_factory=dict)
    command: Tree = msgspec.field(default_factory=dict)
    is_empty: bool = False

    @property
    def base(self) -> Tree:
        """What this host sets: the command line over the environment over the file."""
        return merged(self.file_tree, self.env_tree, self.command)

    def settings(self, live: Tree | None = None, *, revision: int | None = None) -> Settings:
        """Return the settings that hold with these live changes over this host's layers and the defaults.

        :param revision: how the error message calls the live changes
        :raises ConfigError: naming file, line and column, or variable, or revision, of what does not fit
        """
        over = checked(live or {})
        try:
            settings = fitted(merged(self.base, over))
            rules_of(settings.alerts)
            return settings
        except ConfigError as wrong:
            where = self._blamed(wrong, over, revision)
            if where is None:
                raise
            raise ConfigError(f"{where}: {wrong.message}", path=wrong.path, involved=wrong.involved) from None

    def origins(
        self, live: Tree | None = None, *, revision: int | None = None, called: Callable[[str], str] | None = None
    ) -> dict[str, Origin]:
        """Return the value of every setting and where it comes from; of a task or a profile, of what is said of it.

        :param called: how what has set a path live is called; None: the revision
        :raises ConfigError: as `settings`
        """
        over = checked(live or {})
        whole: Tree = msgspec.to_builtins(self.settings(over, revision=revision))
        named = called or (lambda _path: _called(revision))
        return {path: self._origin(path, value, over, named) for path, value in flat(whole).items()}

    def _origin(self, path: str, value: Any, live: Tree, called: Callable[[str], str]) -> Origin:
        if value_at(live, path) is not None:
            return Origin(layer="live", where=called(path), value=value)
        if value_at(self.command, path) is not None:
            return Origin(layer="command line", where=_flag(path), value=value)
        if value_at(self.env_tree, path) is not None:
            return Origin(layer="environment", where=self._variable(path), value=value)
        if self.file is not None and value_at(self.file_tree, path) is not None:
            return Origin(layer="file", where=file.place(self.file, self.positions, path), value=value)
        return Origin(layer="default", where="default", value=value)

    def _variable(self, path: str) -> str:
        """The variable that sets a path; that of `tasks` sets all below it."""
        while path and path not in self.variables:
            path = path.rpartition(".")[0]
        return self.variables.get(path, "environment")

    def _blamed(self, wrong: ConfigError, live: Tree, revision: int | None) -> str | None:
        """Where the last word was said among the settings that do not fit together: that is what to look at."""
        for tree in (live, self.command, self.env_tree, self.file_tree):
            said = next((path for path in wrong.involved if path and value_at(tree, path) is not None), None)
            if said is None:
                continue
            if tree is live:
                return _called(revision)
            if tree is self.command:
                return _flag(said)
            if tree is self.env_tree:
                return self._variable(said)
            return file.place(self.file or "", self.positions, said)
        return None


def _called(revision: int | None) -> str:
    return "live" if revision is None else f"revision {revision}"


def _flag(path: str) -> str:
    """The flag of the command line that sets a path: `--listen`, `--redis`."""
    return FLAGS.get(path, "command line")


class Loaded(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of this host without live changes, and the layers that they come from."""

    settings: Settings
    layers: Layers

    @property
    def file(self) -> str | None:
        """The file that was read; None: there is none."""
        return self.layers.file


def load_layers(
    named: str | None = None, environ: Mapping[str, str] | None = None, *, command: Tree | None = None
) -> Layers:
    """Read config.yml and the environment.

    :param named: what `--config` says; else GPULOCKD_CONFIG, else the first of the usual places that exists
    :param command: what the command line sets
    :raises ConfigError: naming file, line and column, or the variable, of what is wrong
    """
    env = os.environ if environ is None else environ
    path = file.find(named, env)
    read = file.read(path) if path else None
    said = environment.read(env)
    return Layers(
        file=path,
        file_tree=read.tree if read else {},
        positions=read.positions if read else {},
        env_tree=said.tree,
        variables=said.variables,
        command=command or {},
        is_empty=read is not None and read.is_empty,
    )


def load(named: str | None = None, environ: Mapping[str, str] | None = None, *, command: Tree | None = None) -> Loaded:
    """Read config.yml and the environment, and see that they fit together.

    :param named: as for `load_layers`; `command` likewise
    :raises ConfigError: naming file, line and column, or the variable, of what is wrong
    """
    layers = load_layers(named, environ, command=command)
    return Loaded(settings=layers.settings(), layers=layers)
