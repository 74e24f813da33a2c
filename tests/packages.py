"""What a user installs: the wheel of this tree, and clean environments with it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BUILT_WITHIN_S = 100.0
INSTALLED_WITHIN_S = 600.0
UNREACHABLE = ("No matching distribution", "Temporary failure", "Connection", "No address", "Max retries")


def built(folder: Path, kind: str) -> Path:
    """Build the `wheel` or the `sdist` of this tree, without the network."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", kind, "--directory", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=BUILT_WITHIN_S,
    )
    (made,) = folder.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return made


def installed(folder: Path, wanted: str) -> Path:
    """Make a clean environment and install `wanted` there; skip where no package index is reached."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, timeout=BUILT_WITHIN_S)
    pinned = ("--constraint", str(ROOT / "requirements-dev.lock"))
    done = subprocess.run(
        [str(folder / "bin/pip"), "install", "--quiet", "--no-compile", "--retries", "1", *pinned, wanted],
        env=outside(folder),
        capture_output=True,
        text=True,
        timeout=INSTALLED_WITHIN_S,
    )
    if done.returncode and any(word in done.stderr for word in UNREACHABLE):
        pytest.skip(f"no package index is reached: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    return folder


def outside(folder: Path, **more: str) -> dict[str, str]:
    """The environment of a user who knows nothing of this checkout; the programs of `folder` come first."""
    ours = ("GPULOCKD_", "GPU_LOCK", "PYTHON", "VIRTUAL_ENV", "XDG_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return kept | {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "NO_COLOR": "1"} | more
