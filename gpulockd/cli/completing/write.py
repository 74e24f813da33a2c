"""`python -m gpulockd.cli.completing.write`: write the completion files anew after a command has changed."""

from __future__ import annotations

from pathlib import Path

from gpulockd.cli.completing.scripts import SHELLS
from gpulockd.cli.completing.words import commands

FOLDER = Path(__file__).resolve().parent / "files"


def texts() -> dict[Path, str]:
    """What each file has to say."""
    known = commands()
    return {FOLDER / name: make(known) for name, make in SHELLS.values()}


def main() -> None:
    """Write them."""
    FOLDER.mkdir(exist_ok=True)
    for path, text in texts().items():
        path.write_text(text, encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main()
