"""The configuration as this host has it: defaults, one file, the environment; wrong places named by line and column."""

from gpulockd.daemon.configuration.file import parsed
from gpulockd.daemon.configuration.layers import Layers, Loaded, Origin, load, load_layers
from gpulockd.settings.variables import variables

__all__ = ["Layers", "Loaded", "Origin", "load", "load_layers", "parsed", "variables"]
