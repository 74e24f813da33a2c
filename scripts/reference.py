"""`python scripts/reference.py`: write the reference pages of docs/ anew from the code. `--check` says what is stale.

`--man FILE` writes the manual page instead, for packages.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from reference_commands import commands_page, exit_codes_page, manual
from reference_settings import comments_of, settings_page

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
MADE = "<!-- Made by scripts/reference.py from the code. Change that, then run it. -->\n"

PAGES: dict[str, Callable[[], str]] = {
    "reference-config.md": lambda: settings_page(comments_of((ROOT / "config.yml").read_text(encoding="utf-8"))),
    "reference-commands.md": commands_page,
    "reference-exit-codes.md": exit_codes_page,
}


def main() -> int:
    """Write the pages, or say which are stale."""
    parser = argparse.ArgumentParser(prog="reference.py", description="Write the reference pages of docs/ anew.")
    parser.add_argument("--check", action="store_true", help="write nothing; 1: a page is stale")
    parser.add_argument("--man", metavar="FILE", help="write the manual page")
    said = parser.parse_args()
    if said.man:
        Path(said.man).write_text(manual(), encoding="utf-8")
        return 0
    stale = []
    for name, page in PAGES.items():
        file, text = DOCS / name, f"{MADE}\n{page()}"
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            stale.append(name)
            if not said.check:
                file.write_text(text, encoding="utf-8")
    if stale:
        print(f"{'stale: run python scripts/reference.py:' if said.check else 'written:'} {', '.join(stale)}")
    return int(said.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
