"""``convert masks``, ``convert masks-from`` and ``review --import`` on a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tagmask.cli import app
from tagmask.cli.convert import FORMATS
from tagmask.convert import FORMATS as formats
from tagmask.data import read_mask, write_mask
from tagmask.data.review import Journal
from tagmask.errors import ConfigError, DataError
from tagmask.files import read_json, write_json
from tagmask.workflow import Run


def answer(*words: Any, status: int = 0) -> Any:
    result = CliRunner().invoke(app, [*map(str, words), "--json"], catch_exceptions=False)
    assert result.exit_code == status, result.output
    return json.loads(result.stdout)


def said(*words: Any, status: int = 0) -> str:
    result = CliRunner().invoke(app, [*map(str, words)], catch_exceptions=False)
    assert result.exit_code == status, result.output
    return " ".join(result.stdout.split())


def test_masks_go_out_and_come_back_into_the_review(copy: Path, tmp_path: Path) -> None:
    assert FORMATS.split(", ") == list(formats), "the help names them all"
    run = Run(copy)
    ids = sorted(path.stem for path in (copy / "masks").glob("*.png"))
    done = answer("convert", "masks", copy, "--to", "cvat", "-o", tmp_path / "cvat")
    assert done == {"masks": len(ids), "without_mask": len(run.collection.items) - len(ids), "failed": []}
    back = tmp_path / "back"
    done = answer("convert", "masks-from", "cvat", tmp_path / "cvat" / "annotations.xml", "--of", copy, "-o", back)
    assert done == {"masks": len(ids), "absent": len(run.collection.items) - len(ids), "failed": []}
    # Nothing was changed, so nothing is taken.
    taken = answer("review", copy, "--import", back)["imported"]
    assert taken == {"added": 0, "same": len(ids), "without_photo": 0, "failed": []} and Journal(copy).entries() == []
    # One is corrected, one is no photo of the run, one is damaged, one has another size.
    first, second, third = ids[:3]
    labels = read_mask(back / f"{first}.png", 9).numpy()
    labels[:9, :9] = 1
    write_mask(back / f"{first}.png", labels)
    write_mask(back / "deep" / "stranger.png", labels)
    (back / f"{second}.png").write_bytes(b"no picture")
    Image.new("L", (3, 3)).save(back / f"{third}.png")
    shown = said("review", copy, "--import", back, status=1)
    assert f"1 masks added to the review, {len(ids) - 3} are as the run has them, 1 without a photo" in shown
    assert f"{second}.png" in shown and "3x3" in shown and "1 with a drawn mask" in shown
    (entry,) = Journal(copy).entries()
    assert entry.photo == first and entry.action == "mask"
    np.testing.assert_array_equal(read_mask(copy / str(entry.mask), 9), labels)
    # The drawn mask is the present one from now on, and what --masks writes.
    assert answer("review", copy, "--import", back, status=1)["imported"]["added"] == 0
    answer("review", copy, "--masks", tmp_path / "taken")
    np.testing.assert_array_equal(read_mask(tmp_path / "taken" / f"{first}.png", 9), labels)
    done = answer("convert", "masks", copy, "--to", "geojson", "--masks", tmp_path / "taken", "-o", tmp_path / "geo")
    assert done["masks"] == len(ids)
    # A present mask that is damaged gives way to the drawn one.
    (copy / "masks" / f"{ids[3]}.png").write_bytes(b"")
    assert answer("review", copy, "--import", back, status=1)["imported"]["added"] == 1


def test_unsure_pixels_outlive_a_format_without_them(copy: Path, tmp_path: Path) -> None:
    _, second, *_ = ids = sorted(path.stem for path in (copy / "masks").glob("*.png"))
    labels = {}
    for id in ids:
        path = copy / "masks" / f"{id}.png"
        labels[id] = read_mask(path, 9).numpy()
        labels[id][:5, :7] = 255
        write_mask(path, labels[id])
    answer("convert", "masks", copy, "--to", "yolo", "-o", tmp_path / "yolo")
    answer("convert", "masks-from", "yolo", tmp_path / "yolo", "--of", copy, "-o", tmp_path / "back")
    drawn = read_mask(tmp_path / "back" / f"{second}.png", 9).numpy()
    drawn[0, 0] = 1
    write_mask(tmp_path / "back" / f"{second}.png", drawn)
    taken = answer("review", copy, "--import", tmp_path / "back")["imported"]
    assert taken == {"added": 1, "same": len(ids) - 1, "without_photo": 0, "failed": []}
    (entry,) = Journal(copy).entries()
    labels[second][0, 0] = 1
    np.testing.assert_array_equal(read_mask(copy / str(entry.mask), 9), labels[second])


def test_what_cannot_be_taken_is_said(copy: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["review", str(copy), "--import", str(tmp_path / "none")])
    assert "none" in str(result.exception)
    write_mask(tmp_path / "masks" / "a.png", np.zeros((3, 3), int))
    classes = ["background", *Run(copy).collection.classes]
    for note in ({"classes": ["background", "zebra"]}, {"classes": 5}, {"classes": classes, "converted": 5}, {}):
        write_json(tmp_path / "masks" / "classes.json", note)
        result = CliRunner().invoke(app, ["review", str(copy), "--import", str(tmp_path / "masks")])
        assert isinstance(result.exception, DataError) and "classes.json" in str(result.exception)
        assert Journal(copy).entries() == []
    for words in (["--to", "yolo", "--url", "https://a/"], ["--to", "coco", "--copy"]):
        result = CliRunner().invoke(app, ["convert", "masks", str(copy), *words, "-o", str(tmp_path / "out")])
        assert isinstance(result.exception, ConfigError) and words[2] in str(result.exception)
    result = CliRunner().invoke(app, ["convert", "masks", str(tmp_path), "--to", "coco", "-o", str(tmp_path / "out")])
    assert "config.yaml" in str(result.exception)


@pytest.mark.parametrize("words", [("yolo", "--url", "https://a/"), ("coco", "--copy"), ("labelstudio", "--copy")])
def test_options_that_a_format_does_not_use_are_refused(copy: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    given = ["convert", "masks", str(copy), "-o", str(tmp_path / "out"), "--to", *words]
    with pytest.raises(ConfigError, match=words[1]):
        CliRunner().invoke(app, given, catch_exceptions=False)
    assert not (tmp_path / "out").exists()


def test_failures_are_listed(copy: Path, tmp_path: Path) -> None:
    ids = sorted(path.stem for path in (copy / "masks").glob("*.png"))
    for id in ids:
        (copy / "masks" / f"{id}.png").write_bytes(b"no picture")
    out = tmp_path / "out"
    shown = said("convert", "masks", copy, "--to", "labelstudio", "-o", out, "--url", "https://a/", status=1)
    assert f"failed: {len(ids)}" in shown and shown.count("left out: ") == min(10, len(ids))
    assert read_json(out / "tasks.json") == []
