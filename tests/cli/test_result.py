"""A run as an object: ``tagmask.run`` and ``tagmask.open_run``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tagmask
from tagmask.data import read_mask
from tagmask.errors import ConfigError, DataError
from tagmask.files import read_json, write_json
from tagmask.label import Segmenter


def test_a_run_in_python_is_that_of_the_command_line(plain: Path, scenes: Path, tmp_path: Path) -> None:
    """With the settings of ``plain``, as sections and as dotted keys."""
    settings = {
        "encoder": {"name": "test_resnet", "weights": "none"}, "views.crop": 64, "train.steps": 4, "seed": 1,
        "train": {"batch_size": 4, "workers": 0, "warmup": 1, "accelerator": "cpu"}, "label.cam_scales": [1.0],
        "method": {"warmup": 2, "head_options": {"hidden": 16}}, "evaluate.bootstrap": 20,
    }  # fmt: skip
    words = {"tags": scenes / "tags.csv", "out": tmp_path / "run", "effort": "quick", "quiet": True}
    result = tagmask.run(scenes / "images", **words, **settings)
    own, other = (read_json(place / "model" / "classes.json")["digest"] for place in (result.path, plain))
    assert own == other and result.report.is_file() and result.scores == []
    text = result._repr_html_()
    assert "Delivered masks, from tags" in text and "% estimated" in text and str(result.report) in text
    with pytest.raises(ConfigError, match=r"train\.stepps"):
        tagmask.run(scenes / "images", out=tmp_path / "other", **{"train.stepps": 4})


def test_masks_are_read_when_they_are_asked_for(run: Path, scenes: Path) -> None:
    result = tagmask.open_run(run)
    names = sorted(path.stem for path in (run / "masks").glob("*.png"))
    assert list(result.masks) == names and len(result.masks) == len(names) and "nothing" not in result.masks
    one = result.masks[names[0]]
    assert np.array_equal(one.labels, read_mask(run / "masks" / f"{names[0]}.png", 6).numpy())
    assert one.photo.shape == (64, 80, 3) and one.classes == ["background", *result.segmenter.classes]
    assert isinstance(result.segmenter, Segmenter) and one._repr_png_().startswith(b"\x89PNG")
    assert result.scores == read_json(run / "metrics.json")["scores"]


def test_html_escapes_names_of_classes(copy: Path) -> None:
    metrics = read_json(copy / "metrics.json")
    for score in metrics["scores"]:
        score["per_class"] = {f"<i>{name}": found | {"iou": 0.5} for name, found in score["per_class"].items()}
    write_json(copy / "metrics.json", metrics)
    text = tagmask.open_run(copy)._repr_html_()
    assert "New photos, without tags" in text and "&lt;i&gt;" in text and "<i>" not in text


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        tagmask.open_run(tmp_path / "nowhere")
