"""`gpulockd version`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from gpulockd import __version__
from gpulockd.cli.options import Parser
from gpulockd.cli.talk import OK


def main(words: Sequence[str]) -> int:
    """Print the version."""
    parser = Parser("version", "Print the version.")
    parser.json_flag()
    if parser.parse_args(words).json:
        print(json.dumps({"gpulockd": __version__, "python": sys.version.split()[0]}))
    else:
        print(f"gpulockd {__version__}")
    return OK
