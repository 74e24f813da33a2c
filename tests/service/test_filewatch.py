"""A watched file tells of each change, however it is written."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio

from gpulockd.daemon.filewatch import FileWatch
from tests.states import until


@asynccontextmanager
async def watching(path: Path) -> AsyncIterator[list[str]]:
    """The contents of the file at each change, while it is watched without any slow look."""
    heard: list[str] = []

    async def changed() -> None:
        heard.append(path.read_text() if path.exists() else "gone")

    async with anyio.create_task_group() as tasks:
        await tasks.start(FileWatch(str(path), changed, look_s=3600).run)
        yield heard
        tasks.cancel_scope.cancel()


def write(path: Path, text: str) -> None:
    """As `echo > file` does."""
    path.write_text(text)


def rename_over(path: Path, text: str) -> None:
    """As editors do."""
    fresh = path.with_name(".config.yml.swp")
    fresh.write_text(text)
    fresh.replace(path)


def rename_away(path: Path, text: str) -> None:
    """As vim does with a backup: the old one away, a new one in its place."""
    path.replace(path.with_name("config.yml~"))
    path.write_text(text)


async def test_each_way_of_writing_is_heard(tmp_path: Path) -> None:
    """Editors, shells and deployments all write in their own way."""
    path = tmp_path / "config.yml"
    path.write_text("first")
    ways: tuple[Callable[[Path, str], None], ...] = (write, rename_over, rename_away, write, rename_over)
    async with watching(path) as heard:
        for number, way in enumerate(ways):
            text = f"{way.__name__} {number}"
            way(path, text)
            await until(lambda text=text: heard[-1:] == [text])  # type: ignore[misc]


async def test_a_swapped_folder_of_kubernetes_is_heard(tmp_path: Path) -> None:
    """A ConfigMap is a link to a file in a folder behind a link, and the inner link is swapped, twice."""
    for number in (1, 2, 3):
        (tmp_path / f"..v{number}").mkdir()
        (tmp_path / f"..v{number}" / "config.yml").write_text(f"version {number}")
    os.symlink("..v1", tmp_path / "..data")
    os.symlink("..data/config.yml", tmp_path / "config.yml")
    async with watching(tmp_path / "config.yml") as heard:
        for number in (2, 3):
            os.symlink(f"..v{number}", tmp_path / "..data_tmp")
            os.replace(tmp_path / "..data_tmp", tmp_path / "..data")
            await until(lambda number=number: heard[-1:] == [f"version {number}"])  # type: ignore[misc]


async def test_a_file_behind_links_in_other_folders_is_heard(tmp_path: Path) -> None:
    """/etc/gpulockd may be a link into a repository, and the file in it a link again."""
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo" / "real.yml").write_text("first")
    (tmp_path / "etc").mkdir()
    os.symlink("../repo/real.yml", tmp_path / "etc" / "config.yml")
    os.symlink("etc", tmp_path / "link")
    async with watching(tmp_path / "link" / "config.yml") as heard:
        rename_over(tmp_path / "repo" / "real.yml", "second")
        await until(lambda: heard[-1:] == ["second"])
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "config.yml").write_text("third")
        os.symlink("other", tmp_path / "new")
        os.replace(tmp_path / "new", tmp_path / "link")
        await until(lambda: heard[-1:] == ["third"])


async def test_a_file_that_comes_and_goes_is_heard(tmp_path: Path) -> None:
    """A deployment may remove the file before it writes the next."""
    path = tmp_path / "config.yml"
    path.write_text("first")
    async with watching(path) as heard:
        path.unlink()
        await until(lambda: heard[-1:] == ["gone"])
        path.write_text("second")
        await until(lambda: heard[-1:] == ["second"])


async def test_what_happens_beside_the_file_is_not_told(tmp_path: Path) -> None:
    """A busy folder must not have the configuration read again and again."""
    path = tmp_path / "config.yml"
    path.write_text("first")
    async with watching(path) as heard:
        for number in range(20):
            (tmp_path / f"other{number}").write_text("x")
            await anyio.sleep(0.01)
        path.write_text("second")
        await until(lambda: heard[-1:] == ["second"])
        assert heard == ["second"]
