"""Files that are written whole and read with one sentence for each fault."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import pytest

from tagmask.errors import LONGEST, DataError, plain
from tagmask.files import OLD, read_json, read_text, sweep, write_json, write_text, written


def test_a_fault_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError), written(path) as part:
        part.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and os.listdir(path.parent) == ["a.txt"]


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No space left"), written(tmp_path / "a.txt"):
        os.write(os.open("/dev/full", os.O_WRONLY), b"x")


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file/a.json"):
        write_json(tmp_path / "file" / "a.json", {})


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "a.txt", "")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o640


@pytest.mark.parametrize("content", [b"\xff\xfe", b"{", b"[" * 100_000, b"1" * 6000, b"nul"])
def test_broken_json_names_the_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match="a.json"):
        read_json(path)
    with pytest.raises(DataError, match="gone.json"):
        read_text(tmp_path / "gone.json")


def test_only_old_leftovers_are_swept(tmp_path: Path) -> None:
    old, new, other = (tmp_path / name for name in (".0123abcd.7.part", ".0123abce.8.part", "a.part"))
    for path in (old, new, other):
        path.write_text("")
    os.utime(old, (time.time() - 2 * OLD,) * 2)
    sweep(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [new.name, other.name]


def test_messages_are_short_and_have_no_control_characters() -> None:
    text = plain("\x1b[1mbold\x1b[0m\x07 é\n" + "x" * 10_000 + "end")
    assert len(text.encode()) <= LONGEST and text.endswith("end") and "bold" in text
    assert not any(ord(c) < 32 and c != "\n" for c in text)
    assert plain("caf\udce9") == "caf\\udce9"


def test_links_and_pipes_stay_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "target.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to("target.txt")
    write_text(tmp_path / "link.txt", "new")
    assert (tmp_path / "link.txt").is_symlink() and (tmp_path / "target.txt").read_text() == "new"
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    end = os.open(pipe, os.O_RDWR)
    write_text(pipe, "x")
    assert os.read(end, 1) == b"x" and pipe.is_fifo()
    os.close(end)


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_only_regular_files_are_read(tmp_path: Path, kind: str) -> None:
    os.mkfifo(tmp_path / "odd") if kind == "pipe" else (tmp_path / "odd").mkdir()
    with pytest.raises(DataError, match="odd"):
        read_text(tmp_path / "odd")
