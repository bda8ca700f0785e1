"""Masks that the verbs write: of tagged photos, of new ones, for another run to learn from."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tagmask
from tagmask.errors import ConfigError, DataError
from tagmask.label import read_missing
from tagmask.training import RunFolder
from tagmask.workflow import reopen
from tests.cli.calls import SPLITS, TINY, call, raise_error


def test_masks_hold_only_tagged_classes(run: Path, scenes: Path) -> None:
    collection = reopen(RunFolder(run), tagmask.load_config(run / "config.yaml"))
    for item in collection.split("train"):
        labels = set(np.unique(np.array(Image.open(run / "masks" / f"{item.id}.png"))).tolist())
        assert labels <= {0, 255} | {t + 1 for t in item.tags or ()}


def test_masks_that_lack_a_tagged_class_are_listed(run: Path, scenes: Path, tmp_path: Path) -> None:
    collection = reopen(RunFolder(run), tagmask.load_config(run / "config.yaml"))
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
    shutil.copytree(run, tmp_path / "run")
    blank = Image.open(run / "masks" / f"{item.id}.png")
    blank.putdata([0] * (blank.width * blank.height))
    blank.save(tmp_path / "run" / "masks" / f"{item.id}.png")
    own = [collection.classes[tag] for tag in item.tags or ()]
    result = call("label", str(tmp_path / "run"), "--split", "train+val", "--json")
    assert json.loads(result.stdout)["missing"]["photos"] == len({i for i, _ in wanted} | {item.id})
    assert read_missing(tmp_path / "run" / "masks")[item.id] == own
    call("label", tmp_path / "run", "--split", "test")
    assert own == read_missing(tmp_path / "run" / "masks")[item.id], "of another split"
    shown = " ".join(call("label", str(tmp_path / "run"), "--split", "train+val").output.split())
    assert "no pixel of a class that the photo is tagged with" in shown and own[0] in shown
    tagmask.workflow.report(tmp_path / "run", photos=1)
    assert (tmp_path / "run" / "report.html").read_text().count("not in the mask:") >= 1


def test_masks_are_stamped_as_completed_where_they_were(run: Path, tmp_path: Path) -> None:
    def stamp(folder: Path) -> str:
        found = json.loads((folder / "metrics.json").read_text())["scores"]
        own = [s["protocol"] for s in found if s["name"] == "masks"]
        return [p["refine"] for p in own if p["split"] == "train"][-1]

    assert stamp(run) == "par, tags without a pixel from CAMs (threshold 0.3, scales 1 + flip, refined by par)"
    earlier = tmp_path / "earlier"
    shutil.copytree(run, earlier)
    about = json.loads((earlier / "masks" / "classes.json").read_text())
    assert about["label"].pop("complete") is True
    (earlier / "masks" / "classes.json").write_text(json.dumps(about))
    call("evaluate", earlier, "--split", "train", "--what", "masks")
    assert stamp(earlier) == "par", "made before masks were completed"


def test_a_dense_crf_changes_masks_and_is_stamped(run: Path, scenes: Path, tmp_path: Path) -> None:
    (plain,) = json.loads(call("evaluate", run, "--split", "test", "--json").stdout)
    (sharp,) = json.loads(call("evaluate", run, "--split", "test", "--json", "label.crf=afa").stdout)
    assert plain["protocol"]["crf"] is None and sharp["protocol"]["crf"].startswith("afa (")
    assert "CRF afa" in " ".join(call("evaluate", run, "--split", "test", "label.crf=afa").output.split())
    call("label", run, "--split", "test", "-o", tmp_path / "masks", "label.crf=afa")
    assert json.loads((tmp_path / "masks" / "classes.json").read_text())["label"]["crf"] == "afa"
    photo = next((scenes / "images").iterdir())
    soft, hard = (tagmask.load(run, overrides={"crf": crf}).predict(photo).scores for crf in ("none", "afa"))
    assert np.abs(soft - hard).max() > 0.01
    call("predict", run, photo, "-o", tmp_path / "new", "-s", "label.crf=afa")
    assert (tmp_path / "new" / f"{photo.stem}.png").is_file()


def test_a_segmenter_learns_from_a_run_in_one_command(run: Path, scenes: Path, tmp_path: Path) -> None:
    first = tmp_path / "first"
    shutil.copytree(run, first)
    shutil.rmtree(first / "masks")
    words = [w for w in TINY if not w.startswith("method.")]
    dry = json.loads(
        call("run", "--labels-of", first, "--weights", "none", "--dry-run", "--json", "-o", tmp_path / "none").stdout
    )
    assert dry["config"]["method"]["name"] == "supervised" and not (first / "masks").exists()
    (tmp_path / "aspp.yaml").write_text("method: {name: supervised, head: aspp}\n")
    call("train", "--labels-of", first, "-c", tmp_path / "aspp.yaml", "-o", tmp_path / "second", "--seed", 5, *words)
    names = (scenes / "train.txt").read_text().split()
    assert {p.stem for p in (first / "masks").glob("*.png")} == {Path(n).stem for n in names}, "masks are made"
    made = tagmask.load_config(tmp_path / "second" / "config.yaml")
    assert made.method.head == "aspp" and made.data.train_masks == first / "masks" and made.seed == 5  # type: ignore[attr-defined]
    assert (tmp_path / "second" / "data.json").read_text() == (first / "data.json").read_text()
    (score,) = json.loads(call("evaluate", tmp_path / "second", "--split", "test", "--json").stdout)
    stamp = score["protocol"]
    assert stamp["supervision"] == "masks" and stamp["masks"].startswith("baseline on resnet18, ")
    assert str(tmp_path) not in json.dumps(stamp), "a stamp is for others to read"
    result = json.loads(call("run", "--labels-of", first, "-o", tmp_path / "third", "--json", *words).stdout)
    assert ("segmenter", "test") in {(s["name"], s["protocol"]["split"]) for s in result["scores"]}
    with pytest.raises(DataError, match="not a run folder"):
        raise_error("train", "--labels-of", tmp_path / "nowhere", "-o", tmp_path / "fourth")


def test_photos_that_a_run_held_out_do_not_train_its_segmenter(scenes: Path, tmp_path: Path) -> None:
    photos = [scenes / "images", "--tags", scenes / "tags.csv"]
    call("train", *photos, "-o", tmp_path / "first", *TINY, "--seed", 1)
    words = [w for w in TINY if not w.startswith("method.")]
    call("train", "--labels-of", tmp_path / "first", "-o", tmp_path / "second", "--seed", 2, *words)
    first, second = (json.loads((tmp_path / name / "data.json").read_text()) for name in ("first", "second"))
    assert first == second and first["splits"]["val"]


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
    with pytest.raises(DataError, match="1 photos are not in .*'elsewhere'"):
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
    with pytest.raises(DataError, match="would be written over it"):
        raise_error("predict", run, photo, "-o", tmp_path, "--overwrite")
    assert photo.read_bytes() == before


def test_masks_of_other_settings_are_not_mixed_and_stamped_as_made(run: Path, tmp_path: Path) -> None:
    made = ["label.source=cam", "label.high=0.6", "label.low=0.2"]
    with pytest.raises(ConfigError, match="other settings.*--overwrite"):
        raise_error("label", run, *made)
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    with pytest.raises(ConfigError, match="further photos"):
        raise_error("label", copy, *made, "--overwrite")
    call("label", copy, *made, "--overwrite", "--split", "train+val")
    score = json.loads(call("evaluate", copy, "--split", "train", "--what", "masks", "--json").stdout)[0]
    assert score["protocol"]["unsure"] == [0.6, 0.2] and score["protocol"]["refine"] == "par"
    assert score["protocol"]["supervision"] == "tags"
    assert score["protocol"]["grid"].startswith("photos' own size")


def test_masks_are_stamped_with_the_grid_that_they_were_made_on(run: Path, tmp_path: Path) -> None:
    def stamp() -> tuple[str | None, str | None]:
        score = json.loads(call("evaluate", copy, "--split", "train", "--what", "masks", "--json").stdout)[0]
        return score["protocol"]["grid"], score["protocol"]["precision"]

    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    coarse = ["label.max_side=48", "views.short_side=40", "train.precision=fp32"]
    call("label", copy, *coarse, "--overwrite", "--split", "train+val")
    assert stamp() == ("short side 40, at most 48", "fp32")
    about = copy / "masks" / "classes.json"
    earlier = json.loads(about.read_text())
    del earlier["short_side"], earlier["precision"]
    about.write_text(json.dumps(earlier))
    assert stamp() == (None, None), "an earlier version did not say"
    call("label", copy, "label.max_side=48")  # goes on, and does not claim to know
    assert stamp() == (None, None) and json.loads(about.read_text()) == earlier


def test_large_photos_are_reduced_and_masks_have_their_size(scenes: Path, tmp_path: Path) -> None:
    photos = tmp_path / "large"
    photos.mkdir()
    for path in sorted((scenes / "images").iterdir()):
        Image.open(path).resize((480, 384)).save(photos / path.name)
    words = ("run", photos, "--tags", scenes / "tags.csv")
    plan = json.loads(call(*words, "--weights", "none", "--dry-run", "--json", "views.crop=64").stdout)
    assert plan["plan"]["views.short_side"] == 291, "1.3 times the crop that fits the photos"
    call(*words, "-o", tmp_path / "run", "views.short_side=80", *TINY)
    assert Image.open(next((tmp_path / "run" / "masks").glob("*.png"))).size == (480, 384)
    result = tagmask.load(tmp_path / "run").predict(next(photos.iterdir()))
    assert result.labels.shape == (384, 480) and result.scores.shape[1:] == (80, 100)
