"""`gpulockd completion`: print the completion file of a shell."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from gpulockd.cli.options import Parser
from gpulockd.cli.talk import OK

FILES = {"bash": "gpulockd.bash", "zsh": "_gpulockd", "fish": "gpulockd.fish"}
"""The file of each shell, in `completing/files`."""
EPILOG = "for this shell: source <(gpulockd completion bash)   (fish: gpulockd completion fish | source)"


def main(words: Sequence[str]) -> int:
    """Print it."""
    parser = Parser("completion", "Print what makes a shell complete gpulockd's commands and options.")
    parser.epilog = EPILOG
    parser.add_argument("shell", metavar="bash|zsh|fish", choices=tuple(FILES))
    args = parser.parse_args(words)
    path = os.path.join(os.path.dirname(__file__), "completing", "files", FILES[args.shell])
    with open(path, encoding="utf-8") as file:
        sys.stdout.write(file.read())
    return OK
