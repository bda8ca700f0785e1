"""Tar shards in WebDataset's layout: which files are meant, and what lies where in each.

A shard is read through once, by its headers and small members. What is found is kept in the user's cache folder under
a hash of the shard's size, time and samples of its bytes, so a shard that was moved is known and one that was written
anew is not.
"""

from __future__ import annotations

import glob
import hashlib
import io
import json
import os
import re
import tarfile
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from tagmask.data.collection import Problem
from tagmask.data.formats import readable, why_not
from tagmask.data.names import flaw
from tagmask.data.stored import BLOCK, file_system, is_uri, listed, reached
from tagmask.errors import DataError
from tagmask.files import cache_folder, check_regular, of_system, read_json, write_text

FORMAT = 1
"""Version of the index; raise it with each change of what is in one, or of how it is found."""
ENDING = ".tar"
NAME = re.compile(r"(?P<key>(?:.*/)?[^/.]+)\.(?P<kind>[^/]+)", re.S)
"""A member's name: its key ends at the first dot of the last part, and the rest says what it is (WebDataset's rule)."""
MASK = "mask.png"
"""What masks are called: ``key.mask.png``."""
TEXTS = ("json", "cls")
"""What tags are called: ``key.json`` with a list 'tags', ``key.cls`` with a class."""
LARGEST_TEXT = 1_000_000
PACKED = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ": "unxz", b"\x28\xb5\x2f\xfd": "unzstd"}
"""What unpacks an archive, by its first bytes."""
SAMPLES = 16
"""Blocks of a shard whose bytes tell it from others of its size and time."""
AGAIN = "Write the shard again, or fetch it again."


def find_shards(spec: str, root: Path | None = None) -> list[str]:
    """The shards that a path, glob or URI means; ``{000..099}`` stands for each number of the range.

    Local ones are looked for from the working directory, then from ``root``. Raises DataError where one is missing.
    """
    found: list[str] = []
    for place in expand(spec.removeprefix("file://")):
        if is_uri(place):
            here = [uri for uri in listed(place) if uri.endswith(ENDING)]
        else:
            here = sorted(glob.glob(place)) or (sorted(glob.glob(str(root / place))) if root is not None else [])
        if not here:
            raise DataError(f"{place} (data.shards): there is no such shard. A shard's name ends in {ENDING}.")
        found += here
    return list(dict.fromkeys(found))


def expand(spec: str) -> Iterator[str]:
    """A name with ``{07..12}`` as the names that it stands for, numbers as wide as the first; others as they are."""
    span = re.search(r"\{(\d+)\.\.(\d+)\}", spec)
    if span is None:
        yield spec
        return
    first, last = span.groups()
    for number in range(int(first), int(last) + 1):
        yield from expand(f"{spec[: span.start()]}{number:0{len(first)}d}{spec[span.end() :]}")


def read_index(place: str) -> dict[str, Any]:
    """What is in a shard: samples (each [name, offset, size, texts, mask]), and what is lost and what is noted of it,
    each [member or '', what].

    name: of the photo's member; texts: 'json' (its keys 'tags' and 'split') and 'cls', those that are there; mask:
    [name, offset, size] or None. From the cache, or else by reading the shard. Raises DataError where nothing of it can
    be read.
    """
    with _opened(place) as (file, state):
        kept = cache_folder() / "shards" / f"{FORMAT}-{_identity(file, state)}.json"
        if kept.is_file():
            try:
                return read_json(kept)
            except DataError:  # it is damaged
                pass
        index = build_index(file, place)
    try:
        write_text(kept, json.dumps(index))
    except DataError as error:
        warnings.warn(f"the index of a shard is not kept: {error}", stacklevel=2)
    return index


@contextmanager
def _opened(place: str) -> Iterator[tuple[BinaryIO, str]]:
    """A shard, open to be read, and what changes when it is written anew. Errors become DataErrors."""
    if is_uri(place):
        with reached(place):
            files, path = file_system(place)
            state = f"{files.ukey(path)} {sorted(map(str, files.info(path).items()))}"
            with files.open(path, "rb") as file:
                yield file, state
        return
    check_regular(place)
    try:
        with open(place, "rb") as file:
            yield file, str(os.fstat(file.fileno()).st_mtime_ns)
    except OSError as error:
        raise of_system(error, place) from error


def _identity(file: BinaryIO, state: str) -> str:
    """A hash of the formats that are read and of a shard's state, size and, for one on a disk, samples of its bytes."""
    size = file.seek(0, os.SEEK_END)
    digest = hashlib.blake2b(f"{size} {state} {sorted(readable())}".encode(), digest_size=16)
    if isinstance(file, io.BufferedReader):
        for i in range(SAMPLES):
            file.seek(i * max(0, size - BLOCK) // (SAMPLES - 1))
            digest.update(file.read(BLOCK))
    return digest.hexdigest()


def build_index(file: BinaryIO, place: str) -> dict[str, Any]:
    """``read_index`` without the cache. Raises DataError for what is no tar, or a packed one."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(8)
    tool = next((tool for magic, tool in PACKED.items() if head.startswith(magic)), None)
    if tool is not None:
        raise DataError(f"{place}: is packed, so its photos cannot be reached one by one. Unpack it with '{tool}'.")
    samples: dict[str, dict[str, Any]] = {}
    lost: list[tuple[str, str]] = []
    notes: list[tuple[str, str]] = []
    unread: Counter[str] = Counter()
    for info in _members(file, size, place, lost):
        name = info.name.removeprefix("./")
        if info.isdir() or name.rpartition("/")[2].startswith("."):
            continue
        if info.offset_data + info.size > size:
            lost.append((name, f"cut off with the shard. {AGAIN}"))
            continue
        wrong = "no file, but a link or a device" if not info.isreg() else flaw(name)
        parts = NAME.fullmatch(name)
        kind = parts["kind"].lower() if parts is not None else ""
        if wrong or parts is None or "." in kind and kind != MASK:
            lost.append((name, wrong or f"names are KEY.jpg, .json, .cls and .{MASK}. Rename it."))
            continue
        sample = samples.setdefault(parts["key"], {})
        span = [name, info.offset_data, info.size]
        role = "mask" if kind == MASK else "photo" if f".{kind}" in readable() else kind if kind in TEXTS else ""
        if not role:
            unread[kind] += 1
            if why := why_not(name):
                lost.append((name, why))
        elif role in sample:
            lost.append((name, f"{sample[role][0]} is the {role} of this key. Give it another key."))
        elif role in TEXTS:
            sample[role] = [name, _text(file, info, role, notes)]
        else:
            sample[role] = span
    bare = [key for key, sample in samples.items() if "photo" not in sample]
    if bare:
        notes.append(("", f"{len(bare)} keys have no photo ('{bare[0]}' is the first): left out"))
    if unread:
        said = ", ".join(f"{count} .{kind}" for kind, count in unread.most_common(5))
        notes.append(("", f"members that are not read: {said}"))
    rows = [
        [*sample["photo"], {kind: sample[kind][1] for kind in TEXTS if kind in sample}, sample.get("mask")]
        for sample in samples.values()
        if "photo" in sample
    ]
    return {"samples": rows, "lost": lost, "notes": notes}


def _members(file: BinaryIO, size: int, place: str, lost: list[tuple[str, str]]) -> Iterator[tarfile.TarInfo]:
    """The members of a tar that is ``size`` bytes long. Damaged headers are passed over and told of.

    tarfile alone takes the first damaged header for the end.
    """
    end, last = 0, ""
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:", ignore_zeros=True) as tar:
            while (info := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # else it keeps them all
                _gap(file, end, info.offset, last, lost)
                yield info
                end, last = info.offset_data + -(-info.size // BLOCK) * BLOCK, info.name
    except tarfile.TarError:
        if not end:
            raise DataError(f"{place}: is empty or no tar file. {AGAIN}") from None
    if not end:
        raise DataError(f"{place}: holds nothing, or is no tar file. {AGAIN}")
    if end + BLOCK > size:
        lost.append(("", f"what follows '{last}': the shard was cut off there, and a tar's end is missing. {AGAIN}"))
    else:
        _gap(file, end, size, last, lost)


def _gap(file: BinaryIO, begin: int, end: int, last: str, lost: list[tuple[str, str]]) -> None:
    """Tells of bytes between two members that are neither; zeros are the end of one of several joined tars."""
    file.seek(begin)
    while begin < end:
        part = file.read(min(1 << 20, end - begin))
        if part.strip(b"\0"):
            if part[156:157] == tarfile.XGLTYPE:  # a header for all members, which tarfile has read
                return
            where = f"after '{last}'" if last else "at its beginning"
            lost.append(("", f"bytes {begin} to {end}, {where}, are damaged: what was there is lost. {AGAIN}"))
            return
        begin += 1 << 20


def _text(file: BinaryIO, info: tarfile.TarInfo, role: str, notes: list[tuple[str, str]]) -> Any:
    """The content of a member with tags; None where it cannot be understood, which is told."""
    if info.size > LARGEST_TEXT:
        notes.append((info.name, f"has {info.size} bytes: its tags are not read"))
        return None
    file.seek(info.offset_data)
    try:
        text = file.read(info.size).decode("utf-8-sig").strip()
        value = json.loads(text) if role == "json" else text
    except (ValueError, RecursionError) as error:
        notes.append((info.name, f"cannot be read ({error}): its tags are lost. Write it as JSON in UTF-8."))
        return None
    if role == "cls":
        return value
    if not isinstance(value, dict):
        notes.append((info.name, 'is no JSON object: its tags are lost. Write {"tags": ["cat"]}.'))
        return None
    return {key: value[key] for key in ("tags", "split") if key in value}


def told(place: str, found: list[list[str]]) -> list[Problem]:
    """What is lost or noted of a shard, each with its file and member."""
    return [Problem(f"{place}/{member}" if member else place, what) for member, what in found]
