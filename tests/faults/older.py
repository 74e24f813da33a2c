"""An older gpulockd beside this one: a wheel of a commit of this repository, in a folder of its own.

What is older runs as processes of its own, found by their environment; nothing of it is imported by the tests.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gpulockd.settings import SessionBlock
from tests.system.workers_started import Crew

ROOT = Path(__file__).resolve().parents[2]

LAST_CLOSED = "8a2a010e2123c702121029cc97fc8a9f00f3b65a"
"""The last commit of the package that was closed last, "users", before the first one of the package after it.

A release changes this line: what users run then is what it names. GPULOCKD_OLDER tries another commit.
"""

OLDER = os.environ.get("GPULOCKD_OLDER", LAST_CLOSED)  # read before the settings of this machine are taken away


class Version(msgspec.Struct, frozen=True):
    """One of the two, and the environment in which Python finds it."""

    name: str
    env: dict[str, Any]

    def __str__(self) -> str:
        return self.name


class Versions(msgspec.Struct, frozen=True):
    """Both."""

    new: Version
    old: Version

    def named(self, name: str) -> Version:
        """The one of that name."""
        return self.new if name == "new" else self.old


def environment_of(home: Path) -> dict[str, Any]:
    """Where Python finds gpulockd: in `home`, wherever it is started. The tests' own modules are these."""
    return {"PYTHONPATH": f"{home}{os.pathsep}{ROOT}", "PYTHONSAFEPATH": "1"}


def versions(config: pytest.Config) -> Versions:
    """This version, and the older one, which is built into the cache of pytest if it is not there.

    Skips the test that asks, with the reason, where it cannot be built.
    """
    assert config.cache is not None
    cache = config.cache.mkdir("gpulockd-older")
    home = cache / OLDER[:12]
    if not home.exists():
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            built = _built(Path(folder), _archive())
            try:
                built.rename(home)
            except OSError:  # another process was faster
                if not home.exists():
                    raise
    return Versions(Version("new", environment_of(ROOT)), Version("old", environment_of(home)))


def _archive() -> bytes:
    """The files of the older version, as a tar."""
    if shutil.which("git") is None:
        pytest.skip("no older version to try: git is missing")
    words = ["git", "-C", str(ROOT), "archive", "--format=tar", OLDER]
    made = subprocess.run(words, capture_output=True, stdin=subprocess.DEVNULL)
    if made.returncode:
        why = made.stderr.decode(errors="replace").strip().splitlines()[-1:] or [f"exit code {made.returncode}"]
        pytest.skip(f"no older version to try: this checkout has no commit {OLDER[:12]} ({why[0]}); a whole clone has")
    return made.stdout


def _built(folder: Path, archive: bytes) -> Path:
    """Build and install its wheel, without the network: what it needs is installed for this version."""
    with tarfile.open(fileobj=BytesIO(archive)) as files:
        files.extractall(folder / "source", filter="data")
    python = [sys.executable, "-m"]
    _run([*python, "hatchling", "build", "-t", "wheel", "-d", str(folder / "wheel")], folder / "source")
    (wheel,) = (folder / "wheel").glob("*.whl")
    words = ["pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps", "--target"]
    _run([*python, *words, str(folder / "home"), str(wheel)], folder)
    return folder / "home"


def _run(words: list[str], folder: Path) -> None:
    made = subprocess.run(words, cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert made.returncode == 0, (words, made.stderr[-2000:])


@contextmanager
def crews(
    folder: Path, url: str, pool: str, session: SessionBlock, both: Versions, **env: str
) -> Iterator[dict[str, Crew]]:
    """Programs of both versions before one pool, by the version's name; their notes lie in one folder."""
    with ExitStack() as stack:
        made = {each.name: Crew(folder, url, pool, session, **env, **each.env) for each in (both.new, both.old)}
        for crew in made.values():
            stack.enter_context(crew)
        yield made
