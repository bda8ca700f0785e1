"""Masks that the verbs write: of tagged photos, of new ones, for another run to learn from."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tagmask
from tagmask.config import validate
from tagmask.errors import ConfigError, DataError
from tagmask.files import read_json
from tagmask.label import read_missing
from tagmask.workflow import Run
from tagmask.workflow.opened import open_collection
from tests.cli.calls import SPLITS, TINY, call, raise_error


def test_masks_hold_only_tagged_classes(run: Path, scenes: Path) -> None:
    collection = Run(run).collection
    for item in collection.split("train"):
        labels = set(np.unique(np.array(Image.open(run / "masks" / f"{item.id}.png"))).tolist())
        assert labels <= {0, 255} | {t + 1 for t in item.tags or ()}


def test_masks_that_lack_a_tagged_class_are_listed(run: Path, copy: Path) -> None:
    collection = Run(run).collection
    items = [item for split in ("train", "val") for item in collection.split(split)]
    wanted = {
        (item.id, collection.classes[tag])
        for item in items
        for tag in item.tags or ()
        if tag + 1 not in np.array(Image.open(run / "masks" / f"{item.id}.png"))
    }
    with (run / "masks" / "missing.csv").open(newline="") as file:
        assert {(row["image"], row["class"]) for row in csv.DictReader(file)} == wanted
    item = next(item for item in items if item.tags)
    blank = Image.open(run / "masks" / f"{item.id}.png")
    blank.putdata([0] * (blank.width * blank.height))
    blank.save(copy / "masks" / f"{item.id}.png")
    own = [collection.classes[tag] for tag in item.tags or ()]
    result = call("label", copy, "--split", "train+val", "--json")
    assert json.loads(result.stdout)["missing"]["photos"] == len({i for i, _ in wanted} | {item.id})
    assert read_missing(copy / "masks")[item.id] == own
    call("label", copy, "--split", "test")
    assert own == read_missing(copy / "masks")[item.id], "of another split"
    shown = " ".join(call("label", copy, "--split", "train+val").output.split())
    assert "no pixel of a class that the photo is tagged with" in shown and own[0] in shown
    tagmask.workflow.report(copy, photos=1)
    assert (copy / "report.html").read_text().count("not in the mask:") >= 1


def settings(run: Path) -> dict[str, Any]:
    """Those on the stamp of the run's masks of training photos, scored now."""
    (score,) = json.loads(call("evaluate", run, "--split", "train", "--what", "masks", "--json").stdout)
    return score["stamp"]["settings"]


def test_masks_are_stamped_as_completed_where_they_were(run: Path, copy: Path) -> None:
    (made,) = [s["stamp"]["settings"] for s in read_json(run / "metrics.json")["scores"] if s["name"] == "masks"]
    assert made == settings(copy), "as they are made, too"
    assert made["label.complete"] is True and made["label.refine_masks"] == "none"
    assert (made["label.threshold"], made["label.cam_scales"], made["label.refine"]) == (0.3, [1.0], "par")
    call("label", copy, "label.complete=false", "--overwrite", "--split", "train+val")
    assert settings(copy)["label.complete"] is False and "label.cam_scales" not in settings(copy)


def test_a_dense_crf_changes_masks_and_is_stamped(copy: Path, scenes: Path, tmp_path: Path) -> None:
    words = ("evaluate", copy, "--split", "test", "--json")
    found = [json.loads(call(*words, f"label.crf={crf}").stdout)[0] for crf in ("none", "afa")]
    assert [score["stamp"]["settings"]["label.crf"] for score in found] == ["none", "afa"]
    call("label", copy, "--split", "test", "-o", tmp_path / "masks", "label.crf=afa")
    assert read_json(tmp_path / "masks" / "classes.json")["settings"]["label.crf"] == "afa"
    photo = next((scenes / "images").iterdir())
    soft, hard = (tagmask.load(copy, overrides={"crf": crf}).predict(photo).scores for crf in ("none", "afa"))
    assert np.abs(soft - hard).max() > 0.01
    call("predict", copy, photo, "-o", tmp_path / "new", "-s", "label.crf=afa")
    assert (tmp_path / "new" / f"{photo.stem}.png").is_file()


def test_a_segmenter_learns_from_a_run_in_one_command(copy: Path, scenes: Path, tmp_path: Path) -> None:
    shutil.rmtree(copy / "masks")
    words = [w for w in TINY if not w.startswith("method.")]
    dry = ("run", "--labels-of", copy, "--weights", "none", "--dry-run", "--json", "-o", tmp_path / "none")
    made = json.loads(call(*dry).stdout)["config"]
    assert made["method"]["name"] == "supervised" and not (copy / "masks").exists()
    (tmp_path / "aspp.yaml").write_text("method: {name: supervised, head: aspp}\n")
    second = tmp_path / "second"
    call("train", "--labels-of", copy, "-c", tmp_path / "aspp.yaml", "-o", second, "--seed", 5, *words)
    names = (scenes / "train.txt").read_text().split()
    assert {p.stem for p in (copy / "masks").glob("*.png")} == {Path(n).stem for n in names}, "masks are made"
    config = tagmask.load_config(second / "config.yaml")
    assert config.method.head == "aspp" and config.seed == 5  # type: ignore[attr-defined]
    assert config.data.train_masks == copy / "masks"
    assert (second / "data.json").read_text() == (copy / "data.json").read_text()
    (score,) = json.loads(call("evaluate", second, "--split", "test", "--json").stdout)
    stamp = score["stamp"]
    masks = stamp["run"]["masks"]
    assert stamp["run"]["supervision"] == "masks" and masks["settings"]["label.threshold"] == 0.3
    assert (masks["method"], masks["encoder"], masks["source"]) == ("baseline", "test_resnet", "segmenter")
    assert str(tmp_path) not in json.dumps(stamp), "a stamp is for others to read"
    with pytest.raises(DataError, match="nowhere"):
        raise_error("train", "--labels-of", tmp_path / "nowhere", "-o", tmp_path / "fourth")


def test_photos_that_a_run_held_out_do_not_train_its_segmenter(plain: Path, tmp_path: Path) -> None:
    words = ("run", "--labels-of", plain, "-o", tmp_path / "second", "--seed", 2, "--weights", "none")
    config = validate(json.loads(call(*words, "--dry-run", "--json").stdout)["config"])
    first = Run(plain)
    assert config.seed == 2 != first.config.seed
    assert open_collection(config).splits == first.collection.splits and first.collection.splits["val"]


def test_predict_writes_masks_of_new_photos_and_lists_broken_ones(run: Path, scenes: Path, tmp_path: Path) -> None:
    photos = tmp_path / "new"
    photos.mkdir()
    Image.open(next((scenes / "images").iterdir())).save(photos / "good.png")
    (photos / "bad.jpg").write_bytes(b"not an image")
    result = call("predict", run, photos, "-o", tmp_path / "out", "--overlay", ok=False)
    assert result.exit_code == 1 and "bad.jpg" in result.output
    assert (tmp_path / "out" / "good.png").is_file() and (tmp_path / "out" / "good_overlay.jpg").is_file()
    again = json.loads(call("predict", run, photos / "good.png", "-o", tmp_path / "out", "--json").stdout)
    assert again["skipped"] == 1 and again["written"] == 0


def test_predict_takes_a_list_of_names(run: Path, scenes: Path, tmp_path: Path) -> None:
    names = sorted(p.name for p in (scenes / "images").iterdir())[:3]
    (tmp_path / "test.txt").write_text(f"{names[2]}\n{Path(names[0]).stem}\n")
    words = ["predict", run, scenes / "images", "-o", tmp_path / "out", "--list", tmp_path / "test.txt"]
    assert json.loads(call(*words, "--json").stdout)["written"] == 2
    assert {p.stem for p in (tmp_path / "out").glob("*.png")} == {Path(names[0]).stem, Path(names[2]).stem}
    (tmp_path / "test.txt").write_text("elsewhere\n")
    with pytest.raises(DataError, match="'elsewhere'"):
        raise_error(*words)


def test_tiles_agree_with_the_whole_photo_in_shape(run: Path, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (150, 230, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.png")
    call("predict", run, tmp_path / "large.png", "-o", tmp_path / "out", "-s", "label.tile=96")
    assert Image.open(tmp_path / "out" / "large.png").size == (230, 150)


def test_supervised_learns_from_the_masks_of_another_run(run: Path, scenes: Path, tmp_path: Path) -> None:
    words = [w for w in TINY if not w.startswith("method.warmup")]
    call("train", scenes, "-m", "supervised", "-o", tmp_path / "second", f"data.train_masks={run / 'masks'}", *SPLITS,
         "--masks", scenes / "masks", *words)  # fmt: skip
    scores = json.loads(call("evaluate", tmp_path / "second", "--split", "test", "--json").stdout)
    assert [s["name"] for s in scores] == ["segmenter"]


def test_photos_are_never_written_over(run: Path, scenes: Path, tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    shutil.copy(next((scenes / "images").iterdir()), photo)
    before = photo.read_bytes()
    with pytest.raises(DataError, match=r"photo\.png"):
        raise_error("predict", run, photo, "-o", tmp_path, "--overwrite")
    assert photo.read_bytes() == before


def test_masks_of_other_settings_are_not_mixed_and_stamped_as_made(run: Path, copy: Path) -> None:
    made = ["label.source=cam", "label.high=0.6", "label.low=0.2"]
    with pytest.raises(ConfigError, match="masks: .*--overwrite"):
        raise_error("label", run, *made)
    with pytest.raises(ConfigError, match="masks: .*further photos"):
        raise_error("label", copy, *made, "--overwrite")
    call("label", copy, *made, "--overwrite", "--split", "train+val")
    found = settings(copy)
    assert (found["label.high"], found["label.low"], found["label.refine"]) == (0.6, 0.2, "par")
    assert "label.scales" not in found, "no segmenter made them"


def test_masks_are_stamped_with_the_grid_that_they_were_made_on(copy: Path) -> None:
    coarse = ["label.max_side=48", "views.short_side=40", "train.precision=fp32"]
    call("label", copy, *coarse, "--overwrite", "--split", "train+val")
    found = settings(copy)
    assert [found[word.partition("=")[0]] for word in coarse] == [48, 40, "fp32"]


def test_large_photos_are_reduced_and_masks_have_their_size(scenes: Path, tmp_path: Path) -> None:
    photos = tmp_path / "large"
    photos.mkdir()
    for path in sorted((scenes / "images").iterdir())[:8]:
        Image.open(path).resize((480, 384)).save(photos / path.name)
    header, *rows = (scenes / "tags.csv").read_text().splitlines()
    (tmp_path / "tags.csv").write_text("\n".join([header, *rows[:8]]) + "\n")
    words = ("run", photos, "--tags", tmp_path / "tags.csv", "--effort", "quick", *TINY)
    plan = json.loads(call(*words, "--dry-run", "--json").stdout)
    assert plan["plan"]["views.short_side"] == 291, "1.3 times the crop that fits the photos"
    call(*words, "-o", tmp_path / "run", "views.short_side=80")
    assert Image.open(next((tmp_path / "run" / "masks").glob("*.png"))).size == (480, 384)
    result = tagmask.load(tmp_path / "run").predict(next(photos.iterdir()))
    assert result.labels.shape == (384, 480) and result.scores.shape[1:] == (80, 100)
