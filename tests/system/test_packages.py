"""The wheel and the sdist as a user gets them, and the newcomer's page typed line by line."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.packages import ROOT, built, installed, outside
from tests.states import until_blocking

PAGE = (ROOT / "docs/start.md").read_text()
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SERVE = "gpulockd serve --simulate 2"
HEAVY = ("pynvml", "starlette", "uvicorn", "structlog", "psutil", "ruamel", "jinja2", "prometheus_client", "textual")

pytestmark = pytest.mark.timeout(600)  # a package index may be slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree."""
    return built(tmp_path_factory.mktemp("wheel"), "wheel")


@pytest.fixture(scope="module")
def client(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the client alone."""
    return installed(tmp_path_factory.mktemp("client") / "env", str(wheel))


@pytest.fixture(scope="module")
def server(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the daemon, in the folder in which a newcomer makes it."""
    return installed(tmp_path_factory.mktemp("newcomer") / "gpus", f"{wheel}[server]")


def shipped() -> set[str]:
    """Every file of the package in this tree."""
    files = [path for path in (ROOT / "gpulockd").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return {path.relative_to(ROOT).as_posix() for path in files}


def test_the_wheel_has_every_file_of_the_package_and_the_units(wheel: Path) -> None:
    """A Lua file, a template or a unit that is left out is missed at the first start on somebody's host."""
    names = zipfile.ZipFile(wheel).namelist()
    assert shipped() <= set(names)
    units = {name.partition("/data/share/gpulockd/systemd/")[2] for name in names}
    wanted = {path.relative_to(ROOT / "systemd").as_posix() for path in (ROOT / "systemd").rglob("*") if path.is_file()}
    assert wanted <= units
    assert [name for name in names if name.endswith("licenses/LICENSE")]
    assert not [name for name in names if name.startswith(("tests", "bench", "docs"))]


def test_the_sdist_can_be_checked_and_tested(tmp_path: Path) -> None:
    """Whoever packages it builds, tests and documents from this file alone."""
    with tarfile.open(built(tmp_path, "sdist")) as packed:
        names = {name.partition("/")[2] for name in packed.getnames()}
    assert shipped() <= names
    top = {"LICENSE", "README.md", "CHANGELOG.md", "pyproject.toml", "Makefile", "mkdocs.yml", "requirements-dev.lock"}
    assert top | {"tests/conftest.py", "docs/start.md", "systemd/gpulockd.service", "packaging/deb/build"} <= names


def test_the_client_alone_is_light(client: Path) -> None:
    """It lands in torch and Celery environments: redis, anyio and msgspec, and nothing of the daemon."""
    code = "import gpulockd, json, sys; gpulockd.gpu_lock; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [client / "bin/python", "-c", code], env=outside(client), capture_output=True, text=True, timeout=60
    )
    loaded = json.loads(done.stdout)
    roots = {name.partition(".")[0] for name in loaded}
    assert not roots & set(HEAVY)
    rooms = {name.split(".")[1] for name in loaded if name.startswith("gpulockd.")}
    assert not rooms & {"web", "cli", "daemon", "hardware", "trial", "contrib"}
    there = subprocess.run([client / "bin/pip", "list", "--format", "json"], capture_output=True, timeout=60)
    known = {found["name"].lower() for found in json.loads(there.stdout)} - {"pip", "setuptools"}
    assert known <= {"gpulockd", "redis", "hiredis", "msgspec", "anyio", "idna", "typing_extensions", "sniffio"}


@pytest.mark.parametrize("words", [("serve",), ("config", "check"), ("backup",), ("store",)], ids=" ".join)
def test_what_needs_the_server_says_how_to_get_it(client: Path, words: tuple[str, ...], tmp_path: Path) -> None:
    """A traceback would say a module's name; the person needs the line to type."""
    done = subprocess.run(
        ["gpulockd", *words], env=outside(client), cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "pip install 'gpulockd[server]'" in done.stderr and "Traceback" not in done.stderr


def test_the_page_for_newcomers_works_line_by_line(server: Path, tmp_path: Path) -> None:
    """The first five minutes decide whether there is a sixth."""
    folder = server.parent
    env = outside(server, XDG_RUNTIME_DIR=str(tmp_path), XDG_STATE_HOME=str(tmp_path), HOME=str(tmp_path))
    assert SERVE in PAGE
    with _daemon(env, folder):
        for language, text in BLOCK.findall(PAGE):
            if language == "python":
                (folder / "work.py").write_text(text)
                continue
            if text.strip() == SERVE:
                continue
            typed = "\n".join(line for line in text.splitlines() if "pip install" not in line and "-m venv" not in line)
            done = subprocess.run(
                ["bash", "-eu", "-c", typed], env=env, cwd=folder, capture_output=True, text=True, timeout=120
            )
            assert done.returncode == 0, f"{typed}\n{done.stdout}{done.stderr}"
            if "work.py" in typed:
                assert "is mine after" in done.stdout


@contextmanager
def _daemon(env: dict[str, str], folder: Path) -> Iterator[None]:
    """The page's daemon, on a port that nobody has."""
    said = folder / "daemon.log"
    words = ["gpulockd", *SERVE.split()[1:], "--listen", "127.0.0.1:0", "--stop-store"]
    with said.open("wb") as log:
        process = subprocess.Popen(words, env=env, cwd=folder, stdout=log, stderr=log)
    try:
        until_blocking(lambda: " ready: " in said.read_text() or process.poll() is not None, 90)
        assert process.poll() is None, said.read_text()
        yield
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)
