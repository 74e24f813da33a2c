"""`gpulockd version`."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence

from gpulockd import __version__
from gpulockd.cli.options import Parser
from gpulockd.cli.talk import OK


def main(words: Sequence[str]) -> int:
    """Print the version."""
    parser = Parser("version", "Print the version.")
    parser.json_flag()
    if parser.parse_args(words).json:
        print(json.dumps({"gpulockd": __version__, "python": platform.python_version()}))
    else:
        print(f"gpulockd {__version__}")
    return OK
