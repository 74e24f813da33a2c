"""`gpulockd completion`: the files are those of the present parsers, and the shells really complete with them."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from gpulockd.cli import COMMANDS
from gpulockd.cli.completing.words import HIDDEN, commands
from gpulockd.cli.completing.write import texts
from tests.system.commands import call, clean_env

BASH = """
source <("$@")
line=$(cat)
COMP_WORDS=($line)
[[ $line == *' ' ]] && COMP_WORDS+=('')
COMP_CWORD=$(( ${#COMP_WORDS[@]} - 1 ))
_gpulockd gpulockd 2>/dev/null
printf '%s\\n' "${COMPREPLY[@]}"
"""


def offered(line: str) -> set[str]:
    """What bash offers at the end of a line."""
    made = [str(path) for path in texts() if path.name == "gpulockd.bash"]
    done = subprocess.run(
        ["bash", "-c", BASH, "bash", "cat", *made],
        input=line,
        env=clean_env(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    return set(done.stdout.split())


def test_the_files_are_those_of_the_present_parsers() -> None:
    """If this fails, run `python -m gpulockd.cli.completing.write`."""
    stale = [path.name for path, text in texts().items() if not path.exists() or path.read_text() != text]
    assert not stale, "run: python -m gpulockd.cli.completing.write"


def test_every_command_has_its_options_in_them() -> None:
    """A command whose parser cannot be read would be missing silently."""
    known = commands()
    assert {command.words[0] for command in known} == set(COMMANDS) - HIDDEN
    assert all(
        "--help" in {name for option in command.options for name in option.names} or command.inner for command in known
    )


@pytest.mark.parametrize(
    ("line", "some"),
    [
        ("gpulockd sta", {"status"}),
        ("gpulockd run --no", {"--no-wait"}),
        ("gpulockd config se", {"set"}),
        ("gpulockd config show --or", {"--origin"}),
        ("gpulockd gpu ", {"drain", "resume"}),
        ("gpulockd completion z", {"zsh"}),
        ("gpulockd alerts ack --no", {"--note"}),
        ("gpulockd --debug stat", {"status"}),
        ("gpulockd run -n 2 -- pri", {"printf"}),
    ],
)
def test_bash_offers_what_can_be_written_there(line: str, some: set[str]) -> None:
    """The options of that command, the user's commands after `--`."""
    assert some <= offered(line)


def test_bash_offers_a_verb_once() -> None:
    """`gpu drain drain` is no command."""
    assert not {"drain", "resume"} & offered("gpulockd gpu drain ")
    assert {"drain", "resume"} <= offered("gpulockd gpu --json ")


@pytest.mark.parametrize("line", ["gpulockd run --task ", "gpulockd acquire --ttl "])
def test_bash_offers_nothing_where_only_the_user_knows(line: str) -> None:
    """A name or a duration is no option."""
    assert not offered(line)


def test_the_tab_key_completes_in_bash() -> None:
    """In a real shell on a real terminal, as the docs say to set it up."""
    file = next(path for path in texts() if path.name == "gpulockd.bash")
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvpe("bash", ["bash", "--norc", "--noprofile", "-i"], clean_env(TERM="dumb", PS1="> "))
    try:
        shown = ""
        os.write(terminal, f"gpulockd() {{ echo called-with:$1:; }}; source {file}; echo rea''dy\n".encode())
        for key, wanted in (("", "ready\r\n"), ("gpulockd compl\t\n", "called-with:completion:")):
            os.write(terminal, key.encode())
            deadline = time.monotonic() + 60
            while wanted not in shown:
                assert time.monotonic() < deadline, shown
                if select.select([terminal], [], [], 0.1)[0]:
                    shown += os.read(terminal, 65536).decode(errors="replace")
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        os.close(terminal)


@pytest.mark.skipif(shutil.which("fish") is None, reason="needs fish")
def test_fish_offers_what_can_be_written_there() -> None:
    """Fish can be asked without a terminal."""
    file = next(path for path in texts() if path.name == "gpulockd.fish")
    for line, wanted in (
        ("gpulockd stat", "status"),
        ("gpulockd run --no-w", "--no-wait"),
        ("gpulockd config se", "set"),
    ):
        done = subprocess.run(
            ["fish", "--no-config", "-c", f"source {file}; complete -C '{line}'"],
            env=clean_env(),
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert wanted in {line.split("\t")[0] for line in done.stdout.splitlines()}, done


@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh")
def test_zsh_takes_its_file(tmp_path: Path) -> None:
    """Whole, and for the command that it names."""
    file = next(path for path in texts() if path.name == "_gpulockd")
    script = f"autoload -Uz compinit && compinit -u -d {tmp_path}/dump && source {file} && echo $_comps[gpulockd]"
    done = subprocess.run(["zsh", "-f", "-c", script], env=clean_env(), capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.stderr) == ("_gpulockd", "")


def test_the_command_prints_the_file() -> None:
    """Without a daemon."""
    for path, text in texts().items():
        shell = {"gpulockd.bash": "bash", "_gpulockd": "zsh", "gpulockd.fish": "fish"}[path.name]
        assert call(None, "completion", shell).stdout == text
    assert call(None, "completion", "tcsh").returncode == 2
