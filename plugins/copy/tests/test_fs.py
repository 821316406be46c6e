"""`vsockfwd fs`: what it prints for people and for programs, and how it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from plugins.copy.tests.world import World
from vsockfwd.plugin import BadRequest, CannotCreate, Invocation, NotFound, ignore
from vsockfwd_copy.fs import Asked, What, run
from vsockfwd_copy.locations import parse_location


class Fs:
    """The command at work in this process, `@` standing for the target."""

    def __init__(self, world: World, output: pytest.CaptureFixture[str]) -> None:
        self.world = world
        self.output = output

    async def __call__(self, what: What, *words: str, **flags: bool) -> str:
        """What is printed on standard output; nothing may be on standard error."""
        unsaid = dict.fromkeys(("long", "recursive", "force", "parents"), False)
        answer = Invocation(ignore, True, 0, dict).answer if flags.pop("json", False) else None
        places = [parse_location(f"[{self.world.address}]:{word[1:]}") for word in words]
        assert await run(self.world.engine, Asked(what=what, answer=answer, **{**unsaid, **flags}), places) == 0
        printed = self.output.readouterr()
        assert printed.err == ""
        return printed.out


@pytest.fixture
def fs(world: World, capfd: pytest.CaptureFixture[str]) -> Fs:
    (world.home / "tree" / "sub").mkdir(parents=True)
    (world.home / "tree" / "file").write_text("content\n")
    (world.home / "tree" / "sub" / "odd\nname").write_text("")
    (world.home / "tree" / "link").symlink_to("nowhere")
    return Fs(world, capfd)


async def test_ls_tells_names_and_walks_when_asked(fs: Fs) -> None:
    assert await fs(What.LS, "@tree") == "file\nlink\nsub\n"
    assert await fs(What.LS, "@tree", recursive=True) == "file\nlink\nsub\nsub/odd\nname\n"
    assert await fs(What.LS, "@tree/file") == "tree/file\n"
    lines = (await fs(What.LS, "@tree", long=True)).splitlines()
    assert [line[:10] for line in lines] == ["-rw-r--r--", "lrwxrwxrwx", "drwxr-xr-x"]
    assert lines[1].endswith("link -> nowhere")


async def test_json_is_one_object_a_file(fs: Fs) -> None:
    (found,) = map(json.loads, (await fs(What.LS, "@tree/sub", json=True)).splitlines())
    assert (found["event"], found["version"]) == ("file", 1)
    assert (found["name"], found["kind"], found["size"]) == ("odd\\x0aname", "file", 0)
    assert found["mtime"] == os.stat(fs.world.home / "tree" / "sub" / "odd\nname").st_mtime_ns


async def test_cat_prints_content_and_nothing_else(fs: Fs) -> None:
    assert await fs(What.CAT, "@tree/file", "@tree/file") == "content\ncontent\n"
    with pytest.raises(NotFound):
        await fs(What.CAT, "@tree/nope")


async def test_what_is_made_can_be_removed(fs: Fs) -> None:
    with pytest.raises(NotFound):
        await fs(What.MKDIR, "@tree/a/b")
    await fs(What.MKDIR, "@tree/a/b", parents=True)
    with pytest.raises(CannotCreate):
        await fs(What.MKDIR, "@tree/a")
    with pytest.raises(BadRequest, match="is a directory"):
        await fs(What.RM, "@tree")
    await fs(What.RM, "@tree", recursive=True)
    assert os.listdir(fs.world.home) == []
    with pytest.raises(NotFound):
        await fs(What.RM, "@tree")
    await fs(What.RM, "@tree", force=True)


async def test_one_place_that_fails_does_not_stop_the_others(fs: Fs) -> None:
    with pytest.raises(NotFound):
        await fs(What.RM, "@nope", "@tree/file")
    assert not (fs.world.home / "tree" / "file").exists()


async def test_stat_and_df_agree_with_the_kernel(fs: Fs) -> None:
    os.chmod(fs.world.home / "tree" / "file", 0o640)
    told = await fs(What.STAT, "@tree/file")
    assert "mode 0640" in told
    assert "8 bytes" in told
    found = os.statvfs(fs.world.home)
    assert json.loads(await fs(What.DF, "@", json=True))["size"] == found.f_blocks * found.f_frsize
    assert "available" in await fs(What.DF, "@")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("ls", "here"), "is not at one target"),
        (("cat", "-r", "3:x"), "--recursive says nothing"),
        (("shred", "3:"), "shred"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(words: tuple[str, ...], why: str) -> None:
    done = subprocess.run([sys.executable, "-m", "vsockfwd", "fs", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert why in done.stderr
