"""Photos as people hand them over: odd files are named and left out, and nothing but photos is opened."""

from __future__ import annotations

import io
import json
import os
import random
import struct
import sys
import threading
import types
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from tagmask.config import DataConfig, load_config
from tagmask.data import Collection, Item, fingerprint, open_data, read_image, write_mask
from tagmask.data import pixels as pixels_file
from tagmask.data.formats import is_image, readable, why_not
from tagmask.data.photos import photo_items
from tagmask.data.pixels import DARK, FOURTH, PAGES, Notes, raw_mask
from tagmask.data.walk import none_found, survey
from tagmask.errors import DataError
from tagmask.workflow import Run, predict, train
from tests.cli.calls import call

SMALL = {
    "encoder": {"name": "resnet18", "weights": "none"}, "views": {"crop": 32},
    "method": {"name": "baseline", "warmup": 1, "head_options": {"hidden": 8}},
    "train": {"steps": 2, "batch_size": 2, "workers": 0, "warmup": 0, "accelerator": "cpu"},
    "label": {"cam_scales": [1.0]},
}  # fmt: skip


def noise(size: tuple[int, int] = (24, 32), seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Four photos of classes a and b in a folder of their own, with a table."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(4):
        noise(seed=i).save(folder / f"p{i}.png")
    (folder / "tags.csv").write_text("image,tags\n" + "".join(f"p{i}.png,{'ab'[i % 2]}\n" for i in range(4)))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A trained run that no test changes."""
    folder = tmp_path_factory.mktemp("data")
    for i in range(4):
        noise(seed=i).save(folder / f"p{i}.png")
    (folder / "tags.csv").write_text("image,tags\n" + "".join(f"p{i}.png,{'ab'[i % 2]}\n" for i in range(4)))
    config = SMALL | {"data": {"root": str(folder), "val_share": 0}}
    out = tmp_path_factory.mktemp("runs") / "run"
    train(load_config(config), out)
    return Run(out)


def look(folder: Path, **settings: object) -> tuple[Collection, dict]:
    collection = open_data(DataConfig(root=folder, **settings))  # type: ignore[arg-type]
    return collection, fingerprint(collection)


# What is opened


def test_want_of_memory_is_no_fault_of_a_photo(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise MemoryError

    monkeypatch.setattr(pixels_file.Image, "open", fail)
    with pytest.raises(MemoryError):
        read_image(photos / "p0.png")


def test_no_program_is_started_on_a_photo(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow hands an EPS to Ghostscript, whatever the file is called."""
    mark, tool = photos.parent / "ran", photos.parent / "bin" / "gs"
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/sh\ntouch {mark}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 24\n%%EndComments\nshowpage\n%%EOF\n"
    (photos / "evil.jpg").write_bytes(eps)
    (photos / "masks").mkdir()
    (photos / "masks" / "p0.png").write_bytes(eps)
    _, found = look(photos)
    assert [entry["id"] for entry in found["unreadable"]] == ["evil"]
    assert [entry["id"] for entry in found["bad_masks"]] == ["p0"]
    assert not mark.exists()


@pytest.mark.parametrize("kind", ["TGA", "ICO", "PCX", "SGI", "PDF", "JPEG2000"])
def test_content_of_other_formats_is_refused(tmp_path: Path, kind: str) -> None:
    if kind == "JPEG2000" and not features.check("jpg_2000"):
        pytest.skip("Pillow writes none here")
    noise().save(tmp_path / "x.jpg", format=kind)
    for read in (read_image, raw_mask):
        with pytest.raises(DataError, match=r"x\.jpg.*JPEG, PNG"):
            read(tmp_path / "x.jpg")


def test_only_regular_files_are_opened(photos: Path) -> None:
    """A pipe without a writer would be waited for to no end."""
    os.mkfifo(photos / "pipe.png")
    (photos / "gone.jpg").symlink_to("/nowhere/x.jpg")
    (photos / "loop.png").symlink_to("loop.png")
    (photos / "masks").mkdir()
    os.mkfifo(photos / "masks" / "p1.png")
    noise().save(photos / "folder.png")
    (photos / "folder.png").unlink()
    (photos / "folder.png").mkdir()
    _, found = look(photos)
    assert sorted(entry["id"] for entry in found["unreadable"]) == ["gone", "loop", "pipe"]
    assert found["counts"]["images"] == 7 and [entry["id"] for entry in found["bad_masks"]] == ["p1"]
    os.mkfifo(photos / "mask.mat")
    for path in (photos / "mask.mat", photos, Path("/dev/zero")):
        with pytest.raises(DataError, match="no file, but"):
            raw_mask(path)


def test_pixels_are_bounded_before_they_are_decoded(
    photos: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("it was decoded"))
    for width, height in [(12_000, 13_000), (60_000, 60_000), (2**31 - 1, 2**31 - 1)]:
        header = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">II", width, height) + b"\x08\x02\0\0\0")
        (tmp_path / "bomb.png").write_bytes(header + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
        for read in (read_image, raw_mask):
            with pytest.raises(DataError, match="bomb"):
                read(tmp_path / "bomb.png")


def chunk(kind: bytes, data: bytes) -> bytes:
    import zlib

    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_large_photos_are_decoded_one_at_a_time(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(8):
        noise((60, 60), i).save(photos / f"large{i}.png")
    monkeypatch.setattr(import_module("tagmask.data.fingerprint"), "LARGE", 3000)
    inside, most, lock = [0], [0], threading.Lock()
    decode = pixels_file.image_array

    def watched(image: Image.Image, name: str) -> object:
        if image.width != 60:
            return decode(image, name)
        with lock:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
        result = decode(image, name)
        threading.Event().wait(0.01)
        with lock:
            inside[0] -= 1
        return result

    monkeypatch.setattr(pixels_file, "image_array", watched)
    _, found = look(photos)
    assert found["counts"]["unreadable"] == 0 and most == [1]


# Which files are photos


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".JPEG", ".dib", ".pbm", ".pnm", ".avif", ".apng"])
def test_what_pillow_reads_is_read(tmp_path: Path, suffix: str) -> None:
    if suffix == ".avif" and not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    kind = readable()[suffix.lower()]
    noise().convert("1" if suffix == ".pbm" else "RGB").save(tmp_path / f"x{suffix}", format=kind)
    assert [read_image(path).shape for path in survey(tmp_path).images] == [(3, 24, 32)]


def test_files_that_look_like_photos_are_mentioned(photos: Path, run: Run) -> None:
    names = ["a.heic", "b.svg", "c.CR2", "d.psd", "e.jp2", "f.dng"]
    names = [name for name in names if why_not(name)]
    for name in names:
        (photos / name).write_bytes(b"x")
    (photos / "notes.txt").write_text("x")
    _, found = look(photos)
    assert [Path(entry["path"]).name for entry in found["problems"]] == names
    done = predict(run, [photos], photos.parent / "out")
    assert done.written == 4 and sorted(Path(path).name for path, _ in done.failed) == names


def test_folders_of_heic_say_how_to_read_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    readable.cache_clear()
    (tmp_path / "a.HEIC").write_bytes(b"x")
    assert not is_image("a.HEIC") and "pillow-heif" in none_found(survey(tmp_path))
    (tmp_path / "renamed.jpg").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    with pytest.raises(DataError, match="pillow-heif"):
        read_image(tmp_path / "renamed.jpg")
    readable.cache_clear()


def test_heic_is_read_where_its_package_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for pillow-heif: its format begins with ftypheic, and a PNG follows."""
    start = b"\0\0\0\x0cftypheic"

    def opened(file: io.BytesIO, name: str | None = None) -> Image.Image:
        file.seek(len(start))
        return Image.open(io.BytesIO(file.read()))

    def register() -> None:
        Image.register_open("HEIF", opened, lambda head: head.startswith(start))  # type: ignore[arg-type]

    monkeypatch.setitem(sys.modules, "pillow_heif", types.SimpleNamespace(register_heif_opener=register))
    readable.cache_clear()
    png = io.BytesIO()
    noise().save(png, format="PNG")
    (tmp_path / "a.HEIC").write_bytes(start + png.getvalue())
    assert [read_image(path).shape for path in survey(tmp_path).images] == [(3, 24, 32)]
    monkeypatch.undo()
    Image.OPEN.pop("HEIF")
    Image.ID.remove("HEIF")
    readable.cache_clear()


def test_thumbnails_of_servers_are_no_photos(photos: Path) -> None:
    for place in ("@eaDir", "sub/@eaDir", "__MACOSX", "$RECYCLE.BIN", ".thumbnails"):
        (photos / place).mkdir(parents=True)
        noise().save(photos / place / "p0.jpg")
    found = survey(photos)
    assert [path.name for path in found.images] == ["p0.png", "p1.png", "p2.png", "p3.png"] and not found.lost
    assert sorted(Path(problem.path).name for problem in found.passed) == [
        "$RECYCLE.BIN", ".thumbnails", "@eaDir", "__MACOSX",
    ]  # fmt: skip


@pytest.mark.parametrize("out", ["out", "", "deep/out"])
def test_predictions_among_the_photos_are_never_photos(photos: Path, run: Run, out: str) -> None:
    for path in photos.glob("*.png"):
        noise().save(path.with_suffix(".jpg"))
        path.unlink()
    (photos / "sub").mkdir()
    noise().save(photos / "sub" / "q.jpg")
    first = predict(run, [photos], photos / out, overlay=True)
    assert first.written == 5 and not first.failed and len(list(photos.rglob("*_overlay.jpg"))) == 5
    again = predict(run, [photos], photos / out, overlay=True)
    assert (again.written, again.skipped, again.failed) == (0, 5, []) and str(photos / out) in again.notes[0]
    (photos / "tags.csv").write_text("image,tags\n" + "".join(f"p{i}.jpg,{'ab'[i % 2]}\n" for i in range(4)))
    collection, found = look(photos)
    assert [item.image.suffix for item in collection.items] == [".jpg"] * 5
    assert any(str(photos / out) in entry["path"] for entry in found["problems"])


def test_masks_that_tagmask_wrote_are_masks(photos: Path) -> None:
    """Skipped as photos, they are read where masks are asked for."""
    (photos / "masks").mkdir()
    (photos / "masks" / "classes.json").write_text(json.dumps({"classes": ["background", "a", "b"], "ignore": 255}))
    for i in range(4):
        write_mask(photos / "masks" / f"p{i}.png", np.full((24, 32), i % 3, np.uint8))
    collection, found = look(photos)
    assert len(collection.items) == found["counts"]["masks"] == 4 and not found["problems"]


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    real = tmp_path / "elsewhere" / "cat"
    real.mkdir(parents=True)
    noise().save(real / "c.png")
    root = tmp_path / "data"
    (root / "dog").mkdir(parents=True)
    noise().save(root / "dog" / "d.png")
    (root / "a_cat").symlink_to(real)
    (root / "also_dog").symlink_to(root / "dog")
    (root / "dog" / "up").symlink_to(root)
    found = survey(root)
    assert [str(path.relative_to(root)) for path in found.images] == ["a_cat/c.png", "dog/d.png"]
    assert sorted(Path(problem.path).name for problem in found.passed) == ["also_dog", "up"]


def test_a_folder_that_cannot_be_opened_is_listed(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def refuse(path: str) -> Iterator[os.DirEntry]:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)  # type: ignore[return-value]

    (photos / "locked").mkdir()
    monkeypatch.setattr(os, "scandir", refuse)
    found = survey(photos)
    assert len(found.images) == 4 and [Path(problem.path).name for problem in found.lost] == ["locked"]


# What is odd about pixels


def deep(values: np.ndarray, path: Path) -> None:
    Image.fromarray(values.astype(np.uint16)).save(path)


def test_twelve_bits_in_sixteen_are_warned_of(photos: Path, run: Run) -> None:
    rng = np.random.default_rng(0)
    for i in range(3):
        deep(rng.integers(0, 4096, (24, 32)), photos / f"p{i}.png")
    deep(rng.integers(0, 65536, (24, 32)), photos / "p3.png")
    _, found = look(photos)
    assert [warning for warning in found["warnings"] if DARK in warning and warning.startswith("3 photos")]
    done = predict(run, [photos], photos.parent / "out")
    assert done.written == 4 and [DARK in note for note in done.notes] == [True]


def test_a_fourth_band_that_is_no_alpha_is_warned_of(tmp_path: Path, run: Run) -> None:
    rng = np.random.default_rng(0)

    def write(name: str, alpha: object) -> Path:
        picture = noise().convert("RGBA")
        picture.putalpha(Image.fromarray(np.broadcast_to(np.asarray(alpha, dtype=np.uint8), (24, 32)).copy()))
        picture.save(tmp_path / name)
        return tmp_path / name

    odd = [write("infrared.tif", 20), write("empty.png", 0), write("bright.tif", rng.integers(60, 220, (24, 32)))]
    fine = [write("opaque.png", 255), write("cut.png", np.where(np.arange(32) < 8, 255, 0)), tmp_path / "rgb.png"]
    noise().save(fine[-1])
    notes: Notes = {}
    for path in [*odd, *fine]:
        read_image(path, notes)
    assert notes == {FOURTH: [str(path) for path in odd]}
    assert FOURTH in predict(run, [odd[0]], tmp_path / "out", overlay=True).notes[0]


def test_further_pages_are_mentioned(tmp_path: Path) -> None:
    more = {"save_all": True, "append_images": [noise(seed=1)]}
    for name in ("scan.tif", "moving.gif", "moving.webp", "moving.png"):
        noise().save(tmp_path / name, **more)
    for name in ("one.tif", "one.gif"):
        noise().save(tmp_path / name)
    noise().save(tmp_path / "stereo.jpg", format="MPO", **more)
    notes: Notes = {}
    for path in survey(tmp_path).images:
        assert read_image(path, notes).shape == (3, 24, 32)
    assert {Path(path).name for path in notes[PAGES]} == {"scan.tif", "moving.gif", "moving.webp", "moving.png"}


def exif(kind: int, count: int, value: bytes) -> bytes:
    """EXIF data of nothing but an orientation, with a value of any type."""
    entry = struct.pack("<HHI", 0x112, kind, count)
    place = value.ljust(4, b"\0") if len(value) <= 4 else struct.pack("<I", 26)
    rest = b"" if len(value) <= 4 else value
    return b"Exif\0\0II*\0\x08\0\0\0\x01\0" + entry + place + b"\0\0\0\0" + rest


@pytest.mark.parametrize(
    "kind,count,value,turned",
    [
        (3, 1, struct.pack("<H", 6), True),
        (4, 1, struct.pack("<I", 6), True),
        (1, 1, b"\6", True),
        (9, 1, struct.pack("<i", 6), True),
        (11, 1, struct.pack("<f", 6), True),
        (5, 1, struct.pack("<II", 6, 1), True),
        (3, 2, struct.pack("<HH", 6, 1), True),
        (2, 2, b"6\0", False),
        (5, 1, struct.pack("<II", 6, 0), False),
        (11, 1, struct.pack("<f", float("nan")), False),
        (12, 1, struct.pack("<d", float("inf")), False),
        (3, 0, b"", False),
        (3, 1, struct.pack("<H", 99), False),
        (9, 1, struct.pack("<i", -6), False),
        (77, 1, b"\6", False),
        (3, 100_000, b"\6\0\0\0", False),
    ],
)
def test_an_odd_orientation_turns_or_does_not(
    tmp_path: Path, kind: int, count: int, value: bytes, turned: bool
) -> None:
    for name in ("x.jpg", "x.png", "x.webp"):
        noise().save(tmp_path / name, exif=exif(kind, count, value))
        assert read_image(tmp_path / name).shape == ((3, 32, 24) if turned else (3, 24, 32))


def test_damaged_photos_give_errors_that_name_them(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Photos of all formats, damaged: each is read, or one DataError names it."""
    rng = random.Random(0)
    seeds = []
    for kind in dict.fromkeys(readable().values()):
        for mode in ("RGB", "L", "P", "RGBA", "CMYK", "LAB"):
            file = io.BytesIO()
            try:
                noise().convert("RGB").convert(mode).save(file, format=kind)
            except (OSError, ValueError, KeyError):
                continue
            seeds.append(file.getvalue())
    path = tmp_path / "x.bin"
    counts = {"read": 0, "refused": 0}
    for i in range(300):
        data = bytearray(seeds[i % len(seeds)])
        for _ in range(rng.choice([1, 2, 8])):
            place = rng.randrange(min(len(data), rng.choice([64, 10**6])))
            data[place : place + rng.choice([0, 1, 4, 30])] = rng.randbytes(rng.choice([0, 1, 4]))
        path.write_bytes(data)
        for read in (read_image, raw_mask):
            try:
                read(path)
                counts["read"] += 1
            except DataError as error:
                assert str(error).startswith(f"{path}: ")
                counts["refused"] += 1
    assert min(counts.values()) > 30


# One bad file never stops the rest


SPOIL: dict[str, Callable[[Path], object]] = {
    "nowhere": lambda folder: (folder / "gone.png").symlink_to("/nowhere/x.png"),
    "loop": lambda folder: (folder / "loop.png").symlink_to("loop.png"),
    "pipe": lambda folder: os.mkfifo(folder / "pipe.png"),
    "damaged": lambda folder: (folder / "damaged.png").write_bytes(b"\x89PNG"),
    "svg": lambda folder: (folder / "drawn.svg").write_bytes(b""),
    "latin1": lambda folder: noise().save(os.fsencode(folder) + b"/caf\xe9.png", format="PNG"),
    "newline": lambda folder: noise().save(folder / "odd\n.png"),
}


@pytest.mark.parametrize("kind", SPOIL)
def test_predict_writes_all_others(photos: Path, run: Run, kind: str) -> None:
    SPOIL[kind](photos)
    done = predict(run, [photos], photos.parent / "out")
    assert done.written == 4 and len(done.failed) == 1
    _, found = look(photos)
    assert found["counts"]["unreadable"] + found["counts"]["problems"] == 1


def test_what_is_left_out_is_printed_and_fails_at_the_end(photos: Path, run: Run) -> None:
    for spoil in SPOIL.values():
        spoil(photos)
    result = call("predict", run.folder.path, photos, "-o", photos.parent / "out", ok=False)
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit)
    assert result.output.count("left out: ") == len(SPOIL)
    saved = photos.parent / "found.json"
    call("check", photos, "--save", saved)
    found = json.loads(saved.read_text())
    assert found["counts"]["unreadable"] + found["counts"]["problems"] == len(SPOIL)
    strict = call("check", photos, "--save", saved, "--strict", ok=False)
    assert isinstance(strict.exception, DataError)


def test_strict_accepts_what_is_whole(photos: Path) -> None:
    call("check", photos, "--save", photos.parent / "found.json", "--strict")


def test_a_photo_that_vanishes_is_counted(photos: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Listed, and gone when it is read."""
    items = [Item(f"p{i}", photos / f"p{i}.png", None) for i in range(5)]
    done = predict(run, items, photos.parent / "out", overlay=True)
    assert done.written == 4 and [path for path, _ in done.failed] == [str(photos / "p4.png")]
    collection = open_data(DataConfig(root=photos))
    (photos / "p2.png").unlink()
    assert [entry["id"] for entry in fingerprint(collection)["unreadable"]] == ["p2"]


# Held-out photos


def test_a_class_that_only_val_has_is_warned_of(photos: Path) -> None:
    (photos / "val.txt").write_text("p1\np3\n")
    _, found = look(photos)
    assert any("'b'" in warning and "trains" in warning for warning in found["warnings"])


def test_photos_to_predict_that_are_missing_or_share_a_stem(photos: Path) -> None:
    noise().save(photos / "p0.jpg")
    items, rest = photo_items([photos, str(photos / "gone.jpg")])
    assert sorted(item.id for item in items) == ["p0.jpg", "p0.png", "p1", "p2", "p3"]
    assert [Path(problem.path).name for problem in rest.lost] == ["gone.jpg"]
