"""Blocks of photos that processes share: each is done once, whoever is killed, and the result is that of one."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tagmask.data import Item
from tagmask.errors import ConfigError, Helped
from tagmask.label.share import PLACE, Blocks, kind, led, share
from tagmask.lock import Taken

FORK = multiprocessing.get_context("fork")


BEGIN: list[Any] = []
"""Where each process waits with its first block until all have one."""


class Sums:
    """Squares of the photos' numbers. Each photo that is done is a line of ``log``.

    kills: after how many photos the process called so ends itself.
    """

    def __init__(self, log: Path, count: int, kills: Mapping[str, int]) -> None:
        self.log, self.kills = log, kills
        self.items: Sequence[Item] = [Item(str(i), Path(f"{i}.png"), None) for i in range(count)]
        self.found: list[int] = []

    def work(self, blocks: Blocks) -> int:
        photos = 0
        for number, items in blocks.free():
            if BEGIN:
                BEGIN.pop().wait(100)
            for item in items:
                if self.kills.get(FORK.current_process().name) == photos:
                    os.kill(os.getpid(), signal.SIGKILL)
                with self.log.open("a") as file:
                    file.write(f"{item.id}\n")
                photos += 1
            blocks.finish(number, {"squares": np.array([int(item.id) ** 2 for item in items])})
        return photos

    def merge(self, state: Any) -> None:
        self.found += np.asarray(state["squares"]).tolist()


@kind("sums")
def sums(about: Mapping[str, Any]) -> Sums:
    return Sums(Path(about["log"]), about["count"], about["kills"])


def one(folder: Path, answers: Any, count: int, kills: Mapping[str, int]) -> None:
    """What each process does."""
    about = {"log": str(folder.parent / "log"), "count": count, "kills": dict(kills)}

    def lead(over: bool) -> list[int]:
        work = sums(about)
        share("sums", about, work)
        return work.found

    try:
        answers.put(led(folder, {"verb": "sums"}, lead))
    except Helped:
        answers.put(None)


def several(folder: Path, names: Sequence[str], count: int = 200, kills: Mapping[str, int] = {}) -> list[Any]:
    """The results of processes of these names, of those that led, and how each ended."""
    answers = FORK.Queue()
    BEGIN[:] = [FORK.Barrier(len(names))]
    processes = [FORK.Process(target=one, args=(folder, answers, count, kills), name=name) for name in names]
    for process in processes:
        process.start()
    BEGIN.clear()
    found = [answers.get(timeout=100) for name in names if name not in kills]
    for process in processes:
        process.join(100)
    assert [p.exitcode for p in processes] == [-signal.SIGKILL if p.name in kills else 0 for p in processes]
    return [each for each in found if each is not None]


def test_processes_share_the_photos_and_do_none_twice(tmp_path: Path) -> None:
    assert several(tmp_path / "out", "abc") == [[i**2 for i in range(200)]]
    assert sorted(map(int, (tmp_path / "log").read_text().split())) == list(range(200))
    assert not (tmp_path / "out").exists(), "nothing is left"


@pytest.mark.parametrize("killed", ["a", "ab"])
def test_what_a_killed_process_began_is_done_by_another(killed: str, tmp_path: Path) -> None:
    """Whether it helped or led."""
    found = several(tmp_path / "out", "abc", kills=dict.fromkeys(killed, 2))
    assert found[-1] == [i**2 for i in range(200)]
    assert not (tmp_path / "out" / PLACE).exists()
    done = sorted(map(int, (tmp_path / "log").read_text().split()))
    block = len(Blocks([Item(str(i), Path(), None) for i in range(200)], None).of[0])
    assert set(done) == set(range(200)) and len(done) <= 200 + block * len(killed), (
        "only what they were at is done again"
    )


def test_blocks_are_taken_once_and_given_up(tmp_path: Path) -> None:
    items = [Item(str(i), Path(f"{i}.png"), None) for i in range(10)]
    first, second = Blocks(items, tmp_path), Blocks(items, tmp_path)
    assert [len(each) for each in first.of] == [4, 4, 2]
    taking = first.free()
    assert next(taking)[0] == 0 and [number for number, _ in second.free()] == [1, 2]
    assert not list(second.free()) and not second.over()
    second.finish(2, [1])
    second.release()
    assert [number for number, _ in taking] == [1] and not list(second.free())
    first.finish(0, {"a": (np.float32(0.5), "text", None)})
    first.finish(1, np.arange(2, dtype=np.uint32))
    a, b, c = second.states()
    assert first.over() and a == {"a": [0.5, "text", None]} and np.asarray(b).tolist() == [0, 1] and c == [1]


HOLD = """
import sys
from pathlib import Path
from tagmask.lock import alone
with alone(Path(sys.argv[1]), {"verb": "other"}):
    print("mine", flush=True)
    sys.stdin.read()
"""


def test_who_does_something_else_is_not_helped(tmp_path: Path) -> None:
    words = [sys.executable, "-c", HOLD, str(tmp_path / "out")]
    other = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None and other.stdout.readline().strip() == "mine"
    with pytest.raises(ConfigError, match="works on it since") as error:
        led(tmp_path / "out", {"verb": "sums"}, lambda over: None)
    assert isinstance(error.value, Taken) and error.value.work == {"verb": "other"}
    other.communicate()


def test_one_of_a_launch_that_starts_late_has_nothing_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "TORCHELASTIC_RUN_ID": "one", "MASTER_PORT": "7"}.items():
        monkeypatch.setenv(name, value)
    work = {"verb": "sums", "place": Path("x")}
    assert led(tmp_path, work, lambda over: 3) == 3
    with pytest.raises(Helped, match="by other processes of this launch"):
        led(tmp_path, work, lambda over: 3)
    assert led(tmp_path, {"verb": "sums"}, lambda over: 4) == 4
    monkeypatch.setenv("MASTER_PORT", "8")
    assert led(tmp_path, work, lambda over: 5) == 5
    assert json.loads((tmp_path / PLACE / "ended.json").read_text())["launch"] == "one.8"
