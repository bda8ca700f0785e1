from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tagmask.data import palette, read_colour_map, read_image, read_mask, write_mask
from tagmask.data.pixels import raw_mask
from tagmask.errors import DataError

RNG = np.random.default_rng(3)


def pixels(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def png16(path: Path, values: np.ndarray) -> Path:
    """A 16-bit grey (H,W) or colour (H,W,3) PNG, written by hand: Pillow cannot write the latter."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, 2 if values.ndim == 3 else 0, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )
    return path


def as_array(path: Path) -> np.ndarray:
    image = read_image(path)
    assert image.dtype == torch.uint8 and image.is_contiguous()
    return image.permute(1, 2, 0).numpy()


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.ppm"])
def test_rgb_is_read_exactly(tmp_path: Path, name: str) -> None:
    values = pixels(5, 7, 3)
    Image.fromarray(values).save(tmp_path / name)
    assert (as_array(tmp_path / name) == values).all()


@pytest.mark.parametrize("size", [(1, 9), (9, 1), (1, 1)])
def test_slivers(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.fromarray(pixels(*size, 3)).save(tmp_path / "a.jpg")
    assert as_array(tmp_path / "a.jpg").shape == (*size, 3)


def test_grey_one_bit_and_palette(tmp_path: Path) -> None:
    grey = pixels(4, 6)
    Image.fromarray(grey).save(tmp_path / "l.png")
    assert (as_array(tmp_path / "l.png") == grey[..., None]).all()
    Image.fromarray(grey > 100).save(tmp_path / "1.png")
    assert (as_array(tmp_path / "1.png") == ((grey > 100) * 255)[..., None]).all()
    indexed, colours = Image.fromarray(grey % 3), [10, 20, 30, 40, 50, 60, 70, 80, 90]
    indexed.putpalette(colours)
    indexed.save(tmp_path / "p.png")
    assert (as_array(tmp_path / "p.png") == np.array(colours).reshape(3, 3)[grey % 3]).all()


def test_sixteen_bits_keep_the_upper_eight(tmp_path: Path) -> None:
    grey = RNG.integers(0, 65536, (4, 5))
    assert (as_array(png16(tmp_path / "g.png", grey)) == (grey // 256)[..., None]).all()
    colour = RNG.integers(0, 65536, (4, 5, 3))
    assert (as_array(png16(tmp_path / "c.png", colour)) == colour // 256).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_laid_over_white(tmp_path: Path, mode: str) -> None:
    values = pixels(6, 5, len(mode))
    Image.fromarray(values, mode).save(tmp_path / "a.png")
    found = as_array(tmp_path / "a.png")
    for y in range(6):
        for x in range(5):
            alpha = values[y, x, -1] / 255
            for c in range(3):
                colour = values[y, x, c if mode == "RGBA" else 0]
                assert abs(float(found[y, x, c]) - (alpha * colour + (1 - alpha) * 255)) <= 1


def test_transparent_palette_entry_becomes_white(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1]], dtype=np.uint8))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.save(tmp_path / "a.png", transparency=0)
    assert as_array(tmp_path / "a.png").tolist() == [[[255, 255, 255], [40, 50, 60]]]


def test_cmyk(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (255, 0, 0, 0)).save(tmp_path / "a.jpg")
    assert np.abs(as_array(tmp_path / "a.jpg").astype(int) - (0, 255, 255)).max() < 12


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, orientation: int) -> None:
    shown = pixels(3, 5, 3)
    turns = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a),  # stored turned left; shown after a quarter to the right
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }
    image = Image.fromarray(np.ascontiguousarray(turns[orientation](shown)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "a.png", exif=exif)
    assert (as_array(tmp_path / "a.png") == shown).all()


def test_unreadable_images_are_named(tmp_path: Path) -> None:
    whole = tmp_path / "whole.jpg"
    Image.fromarray(pixels(40, 40, 3)).save(whole)
    cases = {"cut.jpg": whole.read_bytes()[:600], "text.png": b"not an image", "empty.jpg": b""}
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=name):
            read_image(tmp_path / name)
    with pytest.raises(DataError, match=r"absent\.jpg"):
        read_image(tmp_path / "absent.jpg")
    Image.fromarray(np.zeros((2, 2), dtype=np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(DataError, match=r"f\.tif"):
        read_image(tmp_path / "f.tif")


def test_masks_are_read_as_indices(tmp_path: Path) -> None:
    values = np.array([[0, 1, 3], [255, 2, 0]], dtype=np.uint8)
    write_mask(tmp_path / "deep" / "p.png", torch.from_numpy(values))
    assert Image.open(tmp_path / "deep" / "p.png").mode == "P"
    Image.fromarray(values).save(tmp_path / "l.png")
    png16(tmp_path / "i.png", values.astype(int))
    for name in ("deep/p.png", "l.png", "i.png"):
        found = read_mask(tmp_path / name, 3)
        assert found.dtype == torch.uint8 and (found.numpy() == values).all(), name
    Image.fromarray(values == 1).save(tmp_path / "1.png")
    assert (read_mask(tmp_path / "1.png", 1).numpy() == (values == 1)).all()
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["p.png"]


def test_bad_masks_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 4]], dtype=np.uint8)).save(tmp_path / "off.png")
    assert read_mask(tmp_path / "off.png", 4).tolist() == [[0, 4]]
    with pytest.raises(DataError, match=r"off\.png: value 4"):
        read_mask(tmp_path / "off.png", 3)
    png16(tmp_path / "high.png", np.array([[0, 256]]))
    with pytest.raises(DataError, match="value 256"):
        read_mask(tmp_path / "high.png", 3)
    Image.fromarray(pixels(2, 2, 3)).save(tmp_path / "rgb.png")
    with pytest.raises(DataError, match="colour_map"):
        read_mask(tmp_path / "rgb.png", 3)
    Image.fromarray(pixels(2, 2, 2), "LA").save(tmp_path / "la.png")
    with pytest.raises(DataError, match="mode LA"):
        read_mask(tmp_path / "la.png", 3)
    (tmp_path / "t.png").write_text("no")
    with pytest.raises(DataError, match=r"t\.png"):
        read_mask(tmp_path / "t.png", 3)


def test_rgb_masks_through_a_colour_map(tmp_path: Path) -> None:
    (tmp_path / "map.txt").write_text("# colours\n0 0 0 background\n\n255 0 0 red car\n0 0 9 cat # blue\n9 9 9 void\n")
    colours = read_colour_map(tmp_path / "map.txt", ["cat", "red car"])
    assert colours == {(0, 0, 0): 0, (255, 0, 0): 2, (0, 0, 9): 1, (9, 9, 9): 255}
    keys = np.array(list(colours), dtype=np.uint8)
    pick = RNG.integers(0, 4, (5, 6))
    Image.fromarray(keys[pick]).save(tmp_path / "m.png")
    found = read_mask(tmp_path / "m.png", 2, colours)
    for y in range(5):
        for x in range(6):
            assert found[y, x] == list(colours.values())[pick[y, x]]
    Image.fromarray(np.full((1, 1, 3), (1, 2, 3), dtype=np.uint8)).save(tmp_path / "u.png")
    with pytest.raises(DataError, match=r"u\.png: colour \(1, 2, 3\)"):
        read_mask(tmp_path / "u.png", 2, colours)


@pytest.mark.parametrize(
    ("text", "message"),
    [("1 2 cat", "line 1"), ("0 0 0 background\n1 2 300 cat", "line 2"), ("1 2 3 cta", "'cta'.*'cat'")],
)
def test_broken_colour_maps(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "map.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        read_colour_map(tmp_path / "map.txt", ["cat"])
    (tmp_path / "map.txt").write_text("1 2 3 cat\n1 2 3 background")
    with pytest.raises(DataError, match="line 2"):
        read_colour_map(tmp_path / "map.txt", ["cat"])


def test_palette_is_that_of_voc() -> None:
    def colour(label: int) -> list[int]:
        result, bits = [0, 0, 0], label
        for j in range(8):
            for c in range(3):
                result[c] |= (bits >> c & 1) << (7 - j)
            bits >>= 3
        return result

    assert palette().tolist() == [colour(i) for i in range(256)]
    assert palette()[[1, 15, 255]].tolist() == [[128, 0, 0], [192, 128, 128], [224, 224, 192]]


def test_write_mask_refuses_what_is_no_label_map(tmp_path: Path) -> None:
    for wrong in (torch.zeros(2, 2), torch.zeros(1, 2, 2, dtype=torch.uint8), torch.tensor([[256]])):
        with pytest.raises(ValueError, match=r"label"):
            write_mask(tmp_path / "a.png", wrong)
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_no_picture_is_named_once(tmp_path: Path) -> None:
    path = tmp_path / "text.jpg"
    path.write_text("no picture", encoding="utf-8")
    for read in (read_image, raw_mask):
        with pytest.raises(DataError) as error:
            read(path)
        assert str(error.value).startswith(f"{path}: cannot be read as ") and str(error.value).count(path.name) == 1
