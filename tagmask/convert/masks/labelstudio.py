"""Label Studio's JSON (https://labelstud.io/guide/export): tasks with brush strokes in its own run lengths.

Written: ``tasks.json``, whose predictions people correct, a stroke for each class of a photo, of 255 as 'unsure';
``config.xml``, the labelling interface. Read: brush and polygons of the last annotation of a task that was not
cancelled, or else of its last prediction; what comes later is on top.

The run lengths are those of the bytes red, green, blue, alpha of all pixels, row by row: 32 bits say how many there
are, 5 bits the bits of a value less one, four times 4 bits the bits of a length less one. Of each run a bit says
whether one value is repeated (or values follow one by one), two bits which of the four sizes its length has; the length
less one follows, and the value.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import quoteattr

import numpy as np

from tagmask.convert.masks.common import (
    Drawn,
    Labelled,
    Names,
    Size,
    Target,
    check_declared,
    find_file,
    hex_colour,
    write_list,
)
from tagmask.convert.shapes import draw
from tagmask.data.json_stream import stream_json
from tagmask.errors import DataError
from tagmask.files import write_text, written
from tagmask.parts import run_lengths

FILE = "tasks.json"
SIZES = (3, 4, 8, 16)
"""Bits of a length that are written."""


def write(target: Target, photos: Iterator[Labelled]) -> None:
    names = target.names
    shown = "".join(
        f"    <Label value={quoteattr(name)} background={quoteattr(hex_colour(label))}/>\n"
        for label, name in names.items()
    )
    tags = f'  <BrushLabels name="tag" toName="image">\n{shown}  </BrushLabels>\n'
    image = '  <Image name="image" value="$image" zoom="true"/>\n'
    write_text(target.out / "config.xml", f"<View>\n{image}{tags}</View>\n")

    def tasks() -> Iterator[dict[str, Any]]:
        for photo in photos:
            height, width = photo.labels.shape
            about = {"original_width": width, "original_height": height, "image_rotation": 0}
            about |= {"type": "brushlabels", "from_name": "tag", "to_name": "image"}
            strokes = [
                {"id": str(label), **about, "value": {"format": "rle", "rle": pack(at), "brushlabels": [names[label]]}}
                for label in np.unique(photo.labels[photo.labels > 0]).tolist()
                for at in [photo.labels == label]
            ]
            yield {
                "data": {"image": target.url + quote(photo.name), "photo": photo.id},
                "predictions": [{"model_version": "tagmask", "result": strokes}],
            }

    with written(target.out / FILE) as place, place.open("w", encoding="utf-8") as file:
        write_list(file, tasks())


def pack(inside: np.ndarray) -> list[int]:
    """Bytes of the run lengths of a bool map (H,W)."""
    bits = [f"{4 * inside.size:032b}", f"{8 - 1:05b}", *(f"{size - 1:04b}" for size in SIZES)]
    for number, length in enumerate(run_lengths(np.flatnonzero(inside), inside.size)):
        value = f"{255 * (number % 2):08b}"
        left = 4 * length
        while left:
            run = min(left, 1 << SIZES[-1])
            kind = next(i for i, size in enumerate(SIZES) if run <= 1 << size)
            bits.append(f"1{kind:02b}{run - 1:0{SIZES[kind]}b}{value}")
            left -= run
    return np.packbits(np.frombuffer("".join(bits).encode(), np.uint8) - ord("0")).tolist()


def unpack(data: Any, size: Size) -> np.ndarray:
    """Bool (H,W) of packed run lengths, where alpha is over 0. Raises ValueError where they are broken."""
    if not isinstance(data, list) or not all(type(byte) is int and 0 <= byte < 256 for byte in data):
        raise ValueError("its run lengths are no list of bytes")
    bits = (np.unpackbits(np.array(data, np.uint8)) + ord("0")).tobytes().decode()
    place = 0

    def take(count: int) -> int:
        nonlocal place
        place += count
        if place > len(bits):
            raise ValueError("its run lengths break off")
        return int(bits[place - count : place], 2)

    total, word = take(32), take(5) + 1
    sizes = [take(4) + 1 for _ in range(4)]
    if total != 4 * size[0] * size[1]:
        raise ValueError("its run lengths are of another size")
    values = np.zeros(total, bool)
    at = 0
    while at < total:
        repeated, length = take(1), take(sizes[take(2)]) + 1
        if at + length > total:
            raise ValueError("its run lengths are too long")
        values[at : at + length] = take(word) > 0 if repeated else [take(word) > 0 for _ in range(length)]
        at += length
    return values.reshape(*size, 4)[..., 3]


def read(source: Path, names: Names) -> Iterator[Drawn]:
    """Tasks that somebody, or a model, has labelled, if only as empty."""
    path = find_file(source, FILE)
    for _, task in stream_json(path, ("",)):
        drawn = [one for one in task.get("annotations") or () if not one.get("was_cancelled")]
        chosen = (drawn or task.get("predictions") or [None])[-1]
        if chosen is not None:
            where = f"{path}: task {task.get('id', '')}".rstrip()
            yield Drawn(_photo(task["data"], where), partial(_draw, where, chosen, names))


def _photo(data: dict[str, Any], where: str) -> tuple[str, ...]:
    """What the photo of a task may be called: by our own note, or by its address, which an upload gives a prefix.
    Without an address it is the task's own name, which no photo bears."""
    address = data.get("image")
    if not isinstance(address, str):
        return (where,)
    parts = urlsplit(address)
    path = parse_qs(parts.query).get("d", [unquote(parts.path)])[0]
    name = path.rpartition("/")[2]
    return (*([data["photo"]] if isinstance(data.get("photo"), str) else []), path, re.sub("^[0-9a-f]{8}-", "", name))


def _draw(where: str, chosen: dict[str, Any], names: Names, size: Size) -> np.ndarray:
    labels = np.zeros(size, np.uint8)
    for entry in chosen["result"]:
        kind, value = entry["type"], entry["value"]
        if kind not in ("brushlabels", "polygonlabels"):
            raise DataError(f"{where}: a '{kind}', which is no mask. Draw with brush or polygons.")
        check_declared(entry["original_width"], entry["original_height"], size, where)
        label = names.label(value[kind][0], where)
        if kind == "brushlabels":
            labels[unpack(value["rle"], size)] = label
        else:
            draw(labels, [np.array(value["points"], dtype=float) * size[::-1] / 100], label)
    return labels
