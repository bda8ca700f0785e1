"""Work on many photos that processes share, on one machine or on many that see one folder.

The process that holds a folder leads. It does its passes over photos in blocks, and says in the folder what the pass
is. A process that was started for the same work meanwhile helps: it takes blocks, until the one that leads has ended.
A block belongs to who has its lock, which goes with the process, so nobody does a block twice, and a killed one's
blocks are done by others. What a block gave is a file; the process that leads merges these in the blocks' order, so the
result does not depend on who did what.
"""

from __future__ import annotations

import json
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from tagmask.data import Item
from tagmask.data.collection import hash_ids
from tagmask.errors import DataError, Helped
from tagmask.files import read_json, write_json, written
from tagmask.lock import OURS, Taken, alone, held, launch, left, speak

PLACE = ".share"
"""In the folder of the process that leads: the pass that it is at."""
BEGAN = time.time()
"""When this process began."""
PAUSE = 0.2
"""Seconds between two looks at what other processes are at."""
T = TypeVar("T")


class Pass(Protocol):
    """A pass over photos. items: these, in the same order in every process."""

    items: Sequence[Item]

    def work(self, blocks: Blocks) -> int:
        """Do the blocks that are free, and ``finish`` each. Returns the number of photos."""

    def merge(self, state: Any) -> None:
        """Take what a block gave; called block by block, in the process that leads."""


KINDS: dict[str, Callable[[Mapping[str, Any]], Pass]] = {}
"""How a process that helps makes a pass, of what the one that leads says of it."""


def kind(name: str) -> Callable[[Callable[..., Pass]], Callable[..., Pass]]:
    """Enter a function under a name into KINDS."""

    def enter(function: Callable[..., Pass]) -> Callable[..., Pass]:
        KINDS[name] = function
        return function

    return enter


class Blocks:
    """The blocks of a pass: neighbours among its photos.

    Their number depends on the photos alone. folder: where processes share them; None for one process alone. live:
    whether blocks are still wanted, asked before each one.
    """

    def __init__(self, items: Sequence[Item], folder: Path | None, live: Callable[[], bool] = lambda: True) -> None:
        size = min(32, max(4, len(items) // 16))
        self.of = [items[start : start + size] for start in range(0, len(items), size)]
        self.folder, self.live = folder, live
        self._held: dict[int, ExitStack] = {}
        self._states: dict[int, Any] = {}

    def free(self) -> Iterator[tuple[int, Sequence[Item]]]:
        """Take the blocks that nobody has, one after the other, each when it is asked for."""
        for number, items in enumerate(self.of):
            if number in self._held or self._done(number):
                continue
            if not self.live():
                return
            with ExitStack() as stack:
                if self.folder is not None and not stack.enter_context(held(self.folder / f"{number}.lock")):
                    continue
                if self._done(number):
                    continue
                self._held[number] = stack.pop_all()
            yield number, items

    def finish(self, number: int, state: Any) -> None:
        """What a block that this process took gave: of dictionaries, lists, text, numbers and arrays."""
        if self.folder is None:
            self._states[number] = state
        else:
            with written(self.folder / f"{number}.pt") as part:
                torch.save(_plain(state), part)
        self._held.pop(number).close()

    def over(self) -> bool:
        """Whether all blocks are done."""
        return all(self._done(number) for number in range(len(self.of)))

    def states(self) -> Iterator[Any]:
        """What the blocks gave, in their order."""
        for number in range(len(self.of)):
            place = self._file(number)
            # Nothing in such a file can start a program.
            yield self._states.pop(number) if place is None else torch.load(place, weights_only=True)

    def release(self) -> None:
        """Give up what was taken and is not done."""
        while self._held:
            self._held.popitem()[1].close()

    def _file(self, number: int) -> Path | None:
        return None if self.folder is None else self.folder / f"{number}.pt"

    def _done(self, number: int) -> bool:
        place = self._file(number)
        return number in self._states if place is None else place.is_file()


def share(name: str, about: Mapping[str, Any], work: Pass) -> None:
    """Go through a pass, with the help of the processes that are there, and merge what its blocks gave.

    name: in KINDS. about: what others make the pass of, as JSON. Shared in the folder that this process took first;
    where it took none it works alone. It goes on with the blocks of a process that was killed at the same pass.
    """
    place, folder = OURS[0] / PLACE if OURS else None, None
    if place is not None:
        order = {"kind": name, "about": about, "ids": hash_ids(item.id for item in work.items)}
        order = json.loads(json.dumps(order, default=str))
        before = _order(place)
        same = before is not None and {key: before[key] for key in order} == order
        folder = place / (before["folder"] if same and before is not None else uuid.uuid4().hex[:12])
        write_json(place / "pass.json", {"folder": folder.name, **order})
    blocks = Blocks(work.items, folder)
    try:
        while True:
            work.work(blocks)
            if blocks.over():
                break
            time.sleep(PAUSE)
        for state in blocks.states():
            work.merge(state)
    finally:
        blocks.release()
        if folder is not None and place is not None:
            (place / "pass.json").unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)


def led(folder: Path, work: Mapping[str, Any], lead: Callable[[bool], T]) -> T:
    """The result of ``lead``, which nobody else does in the folder meanwhile.

    work: what it is, as JSON. lead: takes whether a killed process led before. Where another process does the same in
    the folder, this one helps it and raises Helped at its end; where that one was killed, this one leads. Who leads
    speaks (``lock.speaks``). Raises Taken where another process does something else.
    """
    if OURS:  # a part of something else, which is led already
        with alone(folder, work):
            return lead(False)
    over = False
    place, tries = folder.resolve() / PLACE, 0
    ended, mine = place / "ended.json", {"launch": launch(), "work": json.loads(json.dumps(work, default=str))}
    while True:
        with ExitStack() as stack:
            try:
                stack.enter_context(alone(folder, mine["work"]))
            except Taken as taken:
                tries += taken.work is None
                if taken.work is None and tries < 25:  # it has only just begun
                    time.sleep(PAUSE)
                    continue
                if taken.work != mine["work"]:
                    raise
                ended_itself, photos = help_out(folder)
                if ended_itself:
                    text = f"{folder}: helped with {photos} photos. The process that led has ended, and says how."
                    raise Helped(text) from None
                over = True
                continue
            if mine["launch"] and ended.is_file() and ended.stat().st_mtime > BEGAN and read_json(ended) == mine:
                raise Helped(f"{folder}: done by other processes of this launch.")
            if not over:
                shutil.rmtree(place, ignore_errors=True)
            speak()
            result = lead(over)
            shutil.rmtree(place, ignore_errors=True)
            if mine["launch"]:  # one that starts late sees that nothing is left to do
                write_json(ended, mine)
            return result


def begun() -> bool:
    """Whether a killed process had begun a pass of the work that this one leads now."""
    return bool(OURS) and _order(OURS[0] / PLACE) is not None


def help_out(folder: Path) -> tuple[bool, int]:
    """Take blocks of the passes of the process that holds a folder, until it ends.

    Returns whether it ended by itself, and the number of photos that were done here. Raises DataError where photos are
    not the same here.
    """
    place, through, photos = folder.resolve() / PLACE, "", 0
    ended: bool | None = None

    def live() -> bool:
        nonlocal ended
        ended = left(folder)
        return ended is None and (_order(place) or {}).get("folder") == through

    while True:
        order = _order(place)
        if order is not None and order["folder"] != through:
            through = order["folder"]
            work = KINDS[order["kind"]](order["about"])
            if hash_ids(item.id for item in work.items) != order["ids"]:
                raise DataError(f"{folder}: this process sees other photos than the one that it helps.")
            blocks = Blocks(work.items, place / through, live)
            try:
                while live() and not blocks.over():
                    photos += work.work(blocks)
                    time.sleep(PAUSE)
            finally:
                blocks.release()
        if not live() and ended is not None:
            return ended, photos
        time.sleep(PAUSE)


def _order(place: Path) -> Any:
    """The pass that is on, or None."""
    try:
        return read_json(place / "pass.json")
    except DataError:
        return None


def _plain(value: Any) -> Any:
    """Arrays as tensors, and tuples as lists, at any depth."""
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, np.generic):
        return value.item()
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value
