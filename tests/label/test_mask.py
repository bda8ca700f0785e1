"""A mask shows itself and becomes what other tools take."""

from __future__ import annotations

import io
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from tagmask.data.pixels import palette
from tagmask.errors import ConfigError
from tagmask.label import Mask, Prediction

CLASSES = ["background", "cow", "dog"]
LABELS = np.zeros((6, 8), np.uint8)
LABELS[1:3, 1:4] = 1
LABELS[4:, 6:] = 1
LABELS[5, :2] = 2
LABELS[0] = 255
PHOTO = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
MASK = Mask(LABELS, CLASSES, PHOTO)


def test_a_notebook_shows_the_overlay_reduced() -> None:
    picture = Image.open(io.BytesIO(MASK._repr_png_()))
    assert picture.size == (8, 6) and np.array_equal(np.asarray(picture), MASK.overlay())
    assert np.array_equal(MASK.overlay()[3, 4:], PHOTO[3, 4:]), "background is as it is"
    large = Mask(np.zeros((100, 2000), np.uint8), CLASSES, np.zeros((100, 2000, 3), np.uint8))
    assert large.overlay().shape == (40, 800, 3)


def test_show_asks_the_notebook_or_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[object] = []
    monkeypatch.setattr(Image.Image, "show", lambda picture: shown.append(picture.size))
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    MASK.show()
    display = SimpleNamespace(display=shown.append)
    for shell in (None, SimpleNamespace(), SimpleNamespace(kernel=1)):  # plain Python, IPython's terminal, a notebook
        python = SimpleNamespace(get_ipython=lambda shell=shell: shell, display=display)
        monkeypatch.setitem(sys.modules, "IPython", python)
        MASK.show()
    assert shown == [(8, 6), (8, 6), (8, 6), MASK]


def test_masks_are_printed_short_and_compared_as_objects() -> None:
    prediction = Prediction(LABELS, CLASSES, PHOTO, np.zeros((3, 6, 8), np.float32))
    assert repr(prediction) == f"Prediction(classes={CLASSES})"
    assert prediction != Prediction(LABELS, CLASSES, PHOTO, prediction.scores) and prediction in [MASK, prediction]


def test_a_palette_picture() -> None:
    picture = MASK.to_pil()
    assert picture.mode == "P" and np.array_equal(np.asarray(picture), LABELS)
    assert picture.getpalette() == palette().ravel().tolist()


def test_cocos_objects_are_the_parts() -> None:
    tools = pytest.importorskip("pycocotools.mask")
    found = MASK.to_coco()
    assert [(o["category_id"], o["category"], o["area"], o["bbox"]) for o in found] == [
        (1, "cow", 6, [1, 1, 3, 2]), (1, "cow", 4, [6, 4, 2, 2]), (2, "dog", 2, [0, 5, 2, 1]),
    ]  # fmt: skip
    drawn = sum(o["category_id"] * tools.decode(o["segmentation"]) for o in found)
    assert np.array_equal(drawn, np.where(LABELS == 255, 0, LABELS))


def test_supervisions_detections_are_the_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("supervision")
    scores = np.stack([np.full((3, 4), share, np.float32) for share in (0.1, 0.7, 0.2)])
    found = Prediction(LABELS, CLASSES, PHOTO, scores).to_supervision()
    assert found.class_id.tolist() == [1, 2] and found.data["class_name"].tolist() == ["cow", "dog"]
    assert np.array_equal(found.mask[0], LABELS == 1) and found.xyxy[0].tolist() == [1, 1, 7, 5]
    assert found.confidence.tolist() == pytest.approx([0.7, 0.2]), "of the labels on the scores' grid"
    assert MASK.to_supervision().confidence is None
    assert len(Mask(np.zeros((6, 8), np.uint8), CLASSES, PHOTO).to_supervision()) == 0
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ConfigError, match="supervision"):
        MASK.to_supervision()
