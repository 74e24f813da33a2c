"""The examples as a user runs them, and the docs that show them."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemons import Daemon
from tests.servers import Server
from tests.states import until, until_blocking
from tests.system.commands import ROOT, Started, ask, clean_env, leases, one_daemon
from tests.system.uvicorns import uvicorn

pytestmark = pytest.mark.timeout(300)  # a busy machine takes seconds for each start of Python

EXAMPLES = ROOT / "examples"
PAGES = ("web-services", "torch", "pytest")


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """Two simulated GPUs."""
    with one_daemon() as running:
        yield running


@pytest.fixture
def user(daemon: Daemon, tmp_path: Path) -> dict[str, str]:
    """The environment of a user of this host, with `gpulockd` on the path."""
    commands = tmp_path / "bin"
    commands.mkdir()
    (commands / "gpulockd").write_text(f'#!/bin/sh\nexec {sys.executable} -m gpulockd "$@"\n')
    (commands / "gpulockd").chmod(0o755)
    path = f"{commands}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    return clean_env(GPULOCKD_SOCKET=daemon.socket, PATH=path)


def words_of(file: str, line: str) -> list[str]:
    """The words of the first line of an example that contains `line`."""
    found = next(text for text in (EXAMPLES / file).read_text().splitlines() if line in text)
    return found[found.index("gpulockd run") :].split()


def test_a_shell_loop_runs_every_file(user: dict[str, str], tmp_path: Path) -> None:
    """Five files on two cards; one of them fails, and the others run."""
    work = tmp_path / "ocr"
    work.write_text('#!/bin/sh\necho "$GPULOCKD_TOKEN" > "$1.done"\n[ "${1##*/}" != bad ]\n')
    work.chmod(0o755)
    files = [str(tmp_path / name) for name in ("a", "b c", "bad", "d", "e")]
    done = subprocess.run(
        [str(EXAMPLES / "shell/batch.sh"), str(work), *files], env=user, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 123, done.stderr  # what xargs says when one has failed
    tokens = [Path(f"{file}.done").read_text() for file in files]
    assert len(set(tokens)) == 5


@pytest.mark.parametrize(("file", "line"), [("schedule/crontab", "30 2"), ("schedule/nightly.service", "ExecStart")])
def test_the_nightly_job_runs_on_a_gpu(user: dict[str, str], tmp_path: Path, file: str, line: str) -> None:
    """The very command line of crontab and unit, with another program at its end."""
    words = words_of(file, line)
    job = tmp_path / "index.sh"
    job.write_text('#!/bin/sh\necho "on $CUDA_VISIBLE_DEVICES"\n')
    job.chmod(0o755)
    done = subprocess.run([*words[:-1], str(job)], env=user, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout[:7]) == (0, "on GPU-"), done.stderr


def test_the_nightly_job_gives_up_when_all_is_busy(user: dict[str, str], daemon: Daemon, tmp_path: Path) -> None:
    """Exit code 75, which the unit counts as no failure."""
    holder = Started(daemon, tmp_path, "run", "-q", "-n", "2", "--task", "day", "--", "sleep", "300")
    try:
        until_blocking(lambda: leases(daemon, "day"))
        done = subprocess.run([*words_of("schedule/crontab", "30 2")[:-1], "true"], env=user, timeout=60)
        assert done.returncode == 75
    finally:
        holder.close()


def test_systemd_accepts_unit_and_timer(tmp_path: Path) -> None:
    """Its own checker finds nothing wrong with them."""
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("no systemd-analyze (apt-get install systemd)")
    for name in ("nightly.service", "nightly.timer"):
        text = (EXAMPLES / "schedule" / name).read_text()
        (tmp_path / name).write_text(text.replace("ExecStart=gpulockd", f"ExecStart={sys.executable}"))
    (tmp_path / "gpulockd.service").write_text("[Service]\nExecStart=/bin/true\n")
    checked = subprocess.run(
        [analyze, "verify", "--man=no", *(str(tmp_path / name) for name in ("nightly.service", "nightly.timer"))],
        env=clean_env(SYSTEMD_UNIT_PATH=f"{tmp_path}:"),
        capture_output=True,
        text=True,
        timeout=60,
    )
    ours = [line for line in checked.stderr.splitlines() if "nightly" in line]
    assert not ours, ours


def test_celery_tasks_take_turns(user: dict[str, str], valkey_server: Server) -> None:
    """A real prefork worker with more processes than there are cards."""
    celery = pytest.importorskip("celery", reason="celery is not installed")
    assert celery
    broker = f"redis+socket://{valkey_server.socket_path}"
    worker = subprocess.Popen(
        [sys.executable, "-m", "celery", "-A", "tasks", "worker", "-c", "3", "-l", "WARNING", "--without-gossip"],
        env=user | {"BROKER": broker, "PYTHONPATH": f"{ROOT}:{EXAMPLES / 'celery'}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        text = (
            "from tasks import app, transcribe\n"
            "import json\n"
            "asked = [transcribe.delay(f'{n}.wav') for n in range(4)]\n"
            "print(json.dumps([one.get(timeout=80) for one in asked]))\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", text],
            env=user | {"BROKER": broker, "PYTHONPATH": f"{ROOT}:{EXAMPLES / 'celery'}"},
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        said = json.loads(done.stdout)
        assert len({one["token"] for one in said}) == 4
        assert {one["gpu"] for one in said} <= {0, 1}
    finally:
        os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()
        assert worker.stdout is not None
        worker.stdout.close()


async def test_the_web_service_answers_and_streams(daemon: Daemon, tmp_path: Path) -> None:
    """Under real uvicorn, as its first line says."""
    with uvicorn("app:app", tmp_path / "web", daemon, PYTHONPATH=f"{ROOT}:{EXAMPLES / 'fastapi'}") as service:
        async with service.client() as client:
            answer = await client.post("/embed", json=["one", "three"])
            assert answer.json()["vectors"] == [[3.0], [5.0]], answer.text
            told = await client.post("/chat", json={"text": "one two three"})
            assert told.text.split() == ["one", "two", "three"]
            assert (await client.get("/gpu/status.json")).json()["pool"] == daemon.pool
    with uvicorn("app:app", tmp_path / "plain", daemon, PYTHONPATH=f"{ROOT}:{EXAMPLES / 'starlette'}") as service:
        async with service.client() as client:
            assert (await client.post("/infer")).json()["device"] in ("cuda:0", "cuda:1")
    await until(lambda: not ask(daemon, "leases"))


def train(user: dict[str, str], checkpoint: Path, *before: str) -> subprocess.Popen[str]:
    """Start the training."""
    return subprocess.Popen(
        [*before, sys.executable, str(EXAMPLES / "torch/train.py"), str(checkpoint)],
        env=user,
        stdout=subprocess.PIPE,
        text=True,
    )


def stopped_at_once(first: subprocess.Popen[str], daemon: Daemon) -> tuple[int, str]:
    """Ask a training to stop as soon as it has begun; its exit code and what it says at its end."""
    assert first.stdout is not None
    assert first.stdout.readline() == "training on cpu\n"
    for lease in leases(daemon, "train"):
        if lease["state"] != "member":
            asyncio.run(daemon.ask("PATCH", f"/api/v1/leases/{lease['id']}", {"stop": True}))
    said, _ = first.communicate(timeout=60)
    return first.returncode, said


@pytest.mark.parametrize("how", ["asked", "run"])
def test_a_training_stops_saves_and_goes_on(user: dict[str, str], daemon: Daemon, tmp_path: Path, how: str) -> None:
    """Asked by an operator, or by the soft limit of `gpulockd run`: no step is lost and none is done twice."""
    checkpoint = tmp_path / "checkpoint.json"
    before = ("gpulockd", "run", "-q", "--task", "train", "--") if how == "run" else ()
    code, said = stopped_at_once(train(user, checkpoint, *before), daemon)
    for _ in range(4):  # all steps take two seconds: a machine that stalls asks too late
        if code == 0:
            checkpoint.unlink()
            code, said = stopped_at_once(train(user, checkpoint, *before), daemon)
    assert code == 75, said
    stopped = json.loads(checkpoint.read_text())
    assert 0 < stopped["step"] < 100
    assert said == f"stopped at step {stopped['step']} of 100\n"
    again = train(user, checkpoint)
    said, _ = again.communicate(timeout=100)
    assert (again.returncode, said.splitlines()[-1]) == (0, "done at step 100 of 100")
    assert json.loads(checkpoint.read_text())["step"] == 100


def test_the_notebook_runs_from_top_to_bottom(user: dict[str, str], daemon: Daemon, tmp_path: Path) -> None:
    """In a real kernel, whose event loop runs already."""
    if importlib.util.find_spec("nbclient") is None or importlib.util.find_spec("ipykernel") is None:
        pytest.skip("nbclient and ipykernel are not installed")
    text = (
        "import json, sys, nbformat\n"
        "from nbclient import NotebookClient\n"
        "book = nbformat.read(sys.argv[1], as_version=4)\n"
        "NotebookClient(book, timeout=60, kernel_name='python3').execute()\n"
        "print(json.dumps([[o.get('text') or o['data']['text/plain'] for o in c.outputs] "
        "for c in book.cells if c.cell_type == 'code']))\n"
    )
    env = user | {"IPYTHONDIR": str(tmp_path), "JUPYTER_CONFIG_DIR": str(tmp_path), "JUPYTER_PLATFORM_DIRS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", text, str(EXAMPLES / "jupyter/gpu.ipynb")],
        env=env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    shown = json.loads(done.stdout)
    assert shown[0][0].startswith("on GPU ")
    assert "held" in shown[1][0]
    assert shown[-1] == ["False"]
    until_blocking(lambda: not leases(daemon, "notebook"))


def test_the_tests_that_need_a_gpu_pass_on_two(user: dict[str, str], tmp_path: Path) -> None:
    """`pytest -n 2`, a GPU for each worker."""
    plugins = ("-p", "xdist", "-p", "gpulockd.contrib.pytest", "-p", "no:cacheprovider")
    options = ("-n", "2", *plugins, "-c", os.devnull, "--rootdir", str(EXAMPLES / "pytest"))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(EXAMPLES / "pytest")],
        env=user | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (done.returncode, "3 passed" in done.stdout) == (0, True), done.stdout


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_shows_stands_in_an_example_that_runs(page: str) -> None:
    """A snippet that is not run is wrong sooner or later."""
    examples = [file.read_text() for file in EXAMPLES.rglob("*") if file.is_file() and file.suffix != ".pyc"]
    programs = [*examples, (ROOT / "tests/system/asgi_app.py").read_text()]
    text = (ROOT / "docs" / f"{page}.md").read_text()
    snippets = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert snippets
    for snippet in snippets:
        for part in snippet.strip().split("\n\n"):
            assert any(part in program for program in programs), part
