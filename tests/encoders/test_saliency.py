"""Saliency networks: what they are fed, where they are found, and files that are none."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tagmask.data import read_image, read_mask
from tagmask.encoders.base import IMAGENET_MEAN, IMAGENET_STD
from tagmask.encoders.saliency import Saliency, background_factor, find_saliency, open_saliency
from tagmask.errors import ConfigError, TagmaskError, WeightsError
from tests.small_onnx import write_saliency


def photo(height: int = 20, width: int = 30, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 200, (3, height, width), dtype=torch.uint8, generator=generator)


def test_a_network_sees_the_photo_as_u2net_was_trained(tmp_path: Path) -> None:
    image = photo(70, 50)
    found = Saliency(write_saliency(tmp_path / "net.onnx"))(image)
    assert found.shape == (1, 1, 32, 32) and found.dtype == torch.float32
    small = F.interpolate(image[None].double(), size=(32, 32), mode="bilinear", antialias=True)[0]
    largest = max(float(value) for value in small.flatten())
    expected = torch.zeros(32, 32, dtype=torch.float64)
    for y in range(32):
        for x in range(32):
            seen = [(float(small[c, y, x]) / largest - IMAGENET_MEAN[c]) / IMAGENET_STD[c] for c in range(3)]
            expected[y, x] = 1 / (1 + np.exp(-sum(seen) / 3))
    assert (found[0, 0].double() - expected).abs().max() <= 0.5 / 255 + 1e-4


def test_a_network_of_any_size_gets_320_pixels(tmp_path: Path) -> None:
    saliency = Saliency(write_saliency(tmp_path / "net.onnx", shape=("n", 3, "h", "w")))
    assert saliency(photo()).shape == (1, 1, 320, 320)
    assert saliency(torch.zeros(3, 20, 30, dtype=torch.uint8)).isfinite().all(), "a black photo has no largest value"


def test_a_map_is_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saliency, photos = Saliency(write_saliency(tmp_path / "net.onnx")), [photo(seed=i) for i in range(3)]
    first = [saliency(image) for image in photos]
    computed: list[int] = []
    monkeypatch.setattr(saliency, "compute", lambda image: computed.append(1) or torch.zeros(1, 1, 2, 2))
    assert all(torch.equal(saliency(image), kept) for image, kept in zip(photos, first)) and not computed
    saliency(photos[0].transpose(1, 2).contiguous().view(3, 30, 20))
    saliency(photos[0].view(3, 30, 20))
    assert len(computed) == 2, "the same bytes in another shape are another photo"
    monkeypatch.setattr("tagmask.encoders.saliency.KEPT", 0)
    assert [len(computed) for _ in range(2) if saliency(photo(seed=9)) is not None] == [3, 4]


def test_the_factor_of_the_background_equals_the_rule() -> None:
    values = [-0.1, 0, 0.09, 0.25, 0.81, 1, 1.2]
    expected = [2 * (1 - min(max(s, 0), 1) ** 0.5) for s in values]
    torch.testing.assert_close(background_factor(torch.tensor(values)), torch.tensor(expected))


def test_names_are_looked_for_where_networks_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("TAGMASK_WEIGHTS", raising=False)
    with pytest.raises(WeightsError, match=r"no net\.onnx in .*\.u2net\. Put it there"):
        find_saliency("net")
    for place in (tmp_path / "home" / ".u2net", tmp_path / "weights", tmp_path / "own"):
        place.mkdir(parents=True)
        (place / "net.onnx").touch()
        if place.name == "weights":
            monkeypatch.setenv("TAGMASK_WEIGHTS", str(place))
        assert find_saliency("net", place if place.name == "own" else None) == place / "net.onnx"
    assert find_saliency(str(tmp_path / "own" / "net.onnx")) == tmp_path / "own" / "net.onnx"
    with pytest.raises(WeightsError, match=r"gone\.onnx: no such file"):
        find_saliency(str(tmp_path / "gone.onnx"))


@pytest.mark.parametrize(
    "made,named",
    [
        ({}, "not readable as an ONNX network"),
        ({"inputs": 2}, "takes image0 .*, image1 .*one image"),
        ({"shape": (1, 4, 32, 32)}, r"takes image0 \[1, 4, 32, 32\]"),
        ({"end": "Neg"}, "values from .* to .*; a saliency network gives a map"),
        ({"keep": 0}, r"gives \(1, 32, 32\)"),
        ({"shape": (2, 3, 32, 32)}, "does not run on an image of 32x32 pixels"),
    ],
)
def test_files_that_are_no_saliency_network_are_named(tmp_path: Path, made: dict, named: str) -> None:
    path = write_saliency(tmp_path / "net.onnx", **made)
    if not made:
        path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(WeightsError, match=f"net.onnx: .*{named}.*guides.saliency"):
        Saliency(path)(photo())


def test_without_onnxruntime_the_way_out_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    (tmp_path / "net.onnx").touch()
    with pytest.raises(ConfigError, match=r"pip install 'tagmask\[saliency\]'"):
        open_saliency("net", tmp_path)


def test_u2netp_finds_the_objects_of_real_photos(msrc: Path) -> None:
    pytest.importorskip("onnxruntime")
    folder = Path(os.environ.get("TAGMASK_WEIGHTS", msrc.parent.parent / "weights"))
    try:
        saliency = open_saliency("u2netp", folder)
    except TagmaskError as error:
        pytest.skip(str(error))
    ids = (msrc / "ImageSets" / "Segmentation" / "val.txt").read_text().split()[::6]
    shared = union = 0
    for name in ids:
        truth = read_mask(msrc / "SegmentationClass" / f"{name}.png", 14)
        found = F.interpolate(saliency(read_image(msrc / "JPEGImages" / f"{name}.jpg")), size=truth.shape)[0, 0] > 0.2
        known, there = truth != 255, (truth > 0) & (truth != 255)
        shared += int((found & there).sum())
        union += int(((found & known) | there).sum())
    assert shared / union > 0.7, "81 on all of val"
